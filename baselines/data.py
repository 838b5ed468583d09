"""Training crops from dataset rows: aligned, balanced over organelles, and a pure function of (seed, number).

Crop ``n`` of a seed is always the same crop, whatever was drawn before it and whichever worker draws it, so a resumed
training sees exactly what an uninterrupted one would have seen. Crops leave here as they lie in memory;
``baselines.augment`` turns them into a batch on the device that trains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from baselines.aligned_rows import AlignedRows
from baselines.model import DEFAULT_CONFIG, BaselineConfig
from baselines.preprocess import IGNORE, AlignedImage, annotated_vector
from baselines.recipe import Recipe
from em_bench_eval.errors import InputError
from em_bench_eval.schema import ORGANELLES, Organelle

Crop: TypeAlias = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Target:
    """An instance to centre a crop on: its row, and its bounding box (y0, x0, y1, x1) in native pixels."""

    row: int
    bbox: tuple[int, int, int, int]


class Crops:
    """A map-style dataset of training crops: ``crops[n]`` is crop number ``n``, for any ``n >= 0``.

    With probability ``recipe.foreground`` a crop is placed over a random instance, the organelles equally often and
    then the instances of an organelle equally often; otherwise anywhere in a random image. A crop that is larger than
    its image is filled up by reflection, marked unknown.
    """

    def __init__(
        self,
        rows: Any,
        recipe: Recipe,
        seed: int,
        config: BaselineConfig = DEFAULT_CONFIG,
        cache_bytes: int = 2 << 30,
    ) -> None:
        index = read_index(rows)
        self.annotated = index.annotated
        self.pixel_size_nm = index.pixel_size_nm
        self.targets = index.targets
        self.trained_organelles = annotated_organelles(index.annotated)
        self.usable = [row for row, flags in enumerate(index.annotated) if flags.any()]
        self.aligned = AlignedRows(rows, config, cache_bytes)
        self.recipe, self.seed = recipe, seed

    def __getitem__(self, number: int) -> Crop:
        generator = np.random.default_rng((self.seed, number))
        row, centre = self._place(generator)
        aligned = self.aligned[row]
        point = None if centre is None else self._aligned_point(row, centre)
        corner = corner_of(aligned.image.shape, self.recipe.crop, point, generator)
        return cut_out(aligned, corner, self.recipe.crop) | {
            "annotated": self.annotated[row],
            "number": np.asarray(number),
        }

    def _place(self, generator: np.random.Generator) -> tuple[int, tuple[float, float] | None]:
        """Choose a row and, for a foreground crop, a point (y, x) in native pixels that the crop must contain."""
        organelles = list(self.targets)
        if not organelles or generator.random() >= self.recipe.foreground:
            return self.usable[int(generator.integers(len(self.usable)))], None
        of_one = self.targets[organelles[int(generator.integers(len(organelles)))]]
        target = of_one[int(generator.integers(len(of_one)))]
        y0, x0, y1, x1 = target.bbox
        return target.row, (generator.uniform(y0, y1), generator.uniform(x0, x1))

    def _aligned_point(self, row: int, native: tuple[float, float]) -> tuple[float, float]:
        target_nm = self.aligned.config.pixel_size_nm
        y, x = (place * nm / target_nm for place, nm in zip(native, self.pixel_size_nm[row], strict=True))
        return y, x


def corner_of(
    shape: tuple[int, ...], crop: int, point: tuple[float, float] | None, generator: np.random.Generator
) -> tuple[int, int]:
    """Choose the upper left pixel of a crop: inside the image if that is large enough, over ``point`` if given."""
    corner = []
    for axis in (0, 1):
        last = max(0, shape[axis] - crop)
        if point is None:
            corner.append(int(generator.integers(last + 1)))
        else:
            corner.append(int(np.clip(point[axis] - generator.uniform(0.2, 0.8) * crop, 0, last)))
    return corner[0], corner[1]


def cut_out(aligned: AlignedImage, corner: tuple[int, int], crop: int) -> Crop:
    """Cut a crop out of all planes of an image, as stored."""
    return {
        "image": np.ascontiguousarray(crop_plane(aligned.image, corner, crop, None))[None],
        "semantic": np.ascontiguousarray(crop_plane(aligned.semantic, corner, crop, IGNORE)),
        "instances": crop_plane(aligned.instances, corner, crop, 0).astype(np.int32),
        "distance": np.ascontiguousarray(crop_plane(aligned.distance, corner, crop, 0)),
    }


@dataclass(frozen=True)
class RowIndex:
    """What the sampler knows of all rows without decoding an image."""

    annotated: list[npt.NDArray[np.bool_]]  # five flags a row
    pixel_size_nm: list[tuple[float, float]]
    targets: dict[Organelle, list[Target]]  # only organelles that occur


def annotated_organelles(annotated: Sequence[npt.NDArray[np.bool_]]) -> tuple[str, ...]:
    """Name the organelles that are annotated in at least one row; raises ``InputError`` if there is none."""
    found = tuple(name for place, name in enumerate(ORGANELLES) if any(flags[place] for flags in annotated))
    if not found:
        raise InputError(
            "the training split has nothing to learn from",
            found=f"{len(annotated)} rows, none with an annotated organelle",
            remedy="check --config, and the sources that the dataset was built from",
        )
    return found


def read_index(rows: Any) -> RowIndex:
    """Read the columns ``annotated``, ``pixel_size_nm`` and ``objects`` of all rows; no image is read."""
    columns = ["annotated", "pixel_size_nm", "objects"]
    light: Iterable[Mapping[str, Any]] = rows.select_columns(columns) if hasattr(rows, "select_columns") else rows
    annotated, sizes, targets = [], [], {organelle: list[Target]() for organelle in Organelle}
    for number, row in enumerate(light):
        annotated.append(annotated_vector(row))
        sizes.append((float(row["pixel_size_nm"][0]), float(row["pixel_size_nm"][1])))
        for organelle, bbox in objects_of(row):
            targets[organelle].append(Target(number, bbox))
    return RowIndex(annotated, sizes, {organelle: found for organelle, found in targets.items() if found})


def objects_of(row: Mapping[str, Any]) -> list[tuple[Organelle, tuple[int, int, int, int]]]:
    """Return the organelle and bounding box (native pixels) of the row's instances whose organelle is annotated."""
    found = []
    for entry in row["objects"]:
        if entry["organelle"] in row["annotated"]:
            y0, x0, y1, x1 = (int(value) for value in entry["bbox"])
            found.append((Organelle(entry["organelle"]), (y0, x0, y1, x1)))
    return found


def crop_plane(plane: npt.NDArray[Any], corner: tuple[int, int], crop: int, fill: int | None) -> npt.NDArray[Any]:
    """Cut a ``crop`` x ``crop`` square out of a ``(y, x)`` plane; what lies beyond is ``fill``, or reflected."""
    cut = plane[corner[0] : corner[0] + crop, corner[1] : corner[1] + crop]
    missing = [(0, crop - size) for size in cut.shape]
    if not any(after for _, after in missing):
        return cut
    if fill is None:
        return np.pad(cut, missing, mode="reflect")
    return np.pad(cut, missing, constant_values=fill)


def name_without_path(place: str) -> str:
    """Name of a dataset or checkpoint for the records: a Hub name as it is, a folder without the path leading to it."""
    return Path(place).resolve().name if Path(place).is_dir() else place
