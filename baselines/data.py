"""Training crops from dataset rows: aligned, balanced over organelles, and a pure function of (seed, number).

Crop ``n`` of a seed is always the same crop, whatever was drawn before it and whichever worker draws it, so a resumed
training sees exactly what an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from baselines.augment import random_intensity, random_symmetry
from baselines.preprocess import IGNORE, AlignedImage, align_row, annotated_vector
from baselines.recipe import Recipe
from em_bench_eval.errors import InputError
from em_bench_eval.rows import decode_row
from em_bench_eval.schema import ORGANELLES, TARGET_PIXEL_SIZE_NM, Organelle

NORMALISATION = "percentile-1-99"


@dataclass(frozen=True)
class Target:
    """An instance to centre a crop on: its row, and its bounding box (y0, x0, y1, x1) in native pixels."""

    row: int
    bbox: tuple[int, int, int, int]


class AlignedRows(Sized):
    """Dataset rows, aligned when first needed and then kept in memory up to ``cache_bytes`` (least recently used).

    One pixel at 8 nm takes 4 bytes, so 2 GiB hold 2000 images of 512 x 512. Each data-loading worker has its own cache.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], cache_bytes: int = 2 << 30) -> None:
        self.rows = rows
        self.cache_bytes = cache_bytes
        self._cache: OrderedDict[int, AlignedImage] = OrderedDict()
        self._held = 0

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> AlignedImage:
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        aligned = align_row(decode_row(self.rows[index]), TARGET_PIXEL_SIZE_NM, NORMALISATION)
        self._cache[index] = aligned
        self._held += aligned.nbytes
        while self._held > self.cache_bytes and len(self._cache) > 1:
            self._held -= self._cache.popitem(last=False)[1].nbytes
        return aligned


class Crops:
    """A map-style dataset of training crops: ``crops[n]`` is crop number ``n``, for any ``n >= 0``.

    With probability ``recipe.foreground`` a crop is placed over a random instance, the organelles equally often and
    then the instances of an organelle equally often; otherwise anywhere in a random image. A crop that is larger than
    its image is filled up by reflection, marked unknown.
    """

    def __init__(self, rows: Any, recipe: Recipe, seed: int, cache_bytes: int = 2 << 30) -> None:
        index = read_index(rows)
        self.annotated = index.annotated
        self.pixel_size_nm = index.pixel_size_nm
        self.targets = index.targets
        self.usable = [row for row, flags in enumerate(index.annotated) if flags.any()]
        if not self.usable:
            raise InputError(
                "the training split has nothing to learn from",
                found=f"{len(index.annotated)} rows, none with an annotated organelle",
                remedy="check --config, and the sources that the dataset was built from",
            )
        self.aligned = AlignedRows(rows, cache_bytes)
        self.recipe, self.seed = recipe, seed

    @property
    def trained_organelles(self) -> tuple[str, ...]:
        """Organelles that are annotated in at least one row."""
        flags = np.any([self.annotated[row] for row in self.usable], axis=0)
        return tuple(name for name, flag in zip(ORGANELLES, flags, strict=True) if flag)

    def __getitem__(self, number: int) -> dict[str, npt.NDArray[Any]]:
        generator = np.random.default_rng((self.seed, number))
        row, centre = self._place(generator)
        aligned = self.aligned[row]
        corner = self._corner(aligned, row, centre, generator)
        planes = [
            crop_plane(plane, corner, self.recipe.crop, fill)
            for plane, fill in ((aligned.image, None), (aligned.semantic, IGNORE), (aligned.distance, 0))
        ]
        if self.recipe.augment:
            planes = random_symmetry(planes, generator)
        image = planes[0].astype(np.float32)
        if self.recipe.augment:
            image = random_intensity(image, generator)
        return {
            "image": np.ascontiguousarray(image)[None],
            "semantic": planes[1].astype(np.int64),
            "distance": planes[2].astype(np.float32) / np.float32(255),
            "annotated": self.annotated[row],
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

    def _corner(
        self, aligned: AlignedImage, row: int, centre: tuple[float, float] | None, generator: np.random.Generator
    ) -> tuple[int, int]:
        """Upper left pixel of the crop, inside the image wherever the image is large enough."""
        crop, corner = self.recipe.crop, []
        for axis in (0, 1):
            last = max(0, aligned.image.shape[axis] - crop)
            if centre is None:
                corner.append(int(generator.integers(last + 1)))
            else:
                point = centre[axis] * self.pixel_size_nm[row][axis] / TARGET_PIXEL_SIZE_NM
                corner.append(int(np.clip(point - generator.uniform(0.2, 0.8) * crop, 0, last)))
        return corner[0], corner[1]


@dataclass(frozen=True)
class RowIndex:
    """What the sampler knows of all rows without decoding an image."""

    annotated: list[npt.NDArray[np.bool_]]  # five flags a row
    pixel_size_nm: list[tuple[float, float]]
    targets: dict[Organelle, list[Target]]  # only organelles that occur


def read_index(rows: Any) -> RowIndex:
    """Read the columns ``annotated``, ``pixel_size_nm`` and ``objects`` of all rows."""
    columns = ["annotated", "pixel_size_nm", "objects"]
    light = rows.select_columns(columns) if hasattr(rows, "select_columns") else rows
    annotated, sizes, targets = [], [], {organelle: list[Target]() for organelle in Organelle}
    for number, row in enumerate(light):
        annotated.append(annotated_vector(row))
        sizes.append((float(row["pixel_size_nm"][0]), float(row["pixel_size_nm"][1])))
        for entry in row["objects"]:
            if entry["organelle"] in row["annotated"]:
                y0, x0, y1, x1 = (int(value) for value in entry["bbox"])
                targets[Organelle(entry["organelle"])].append(Target(number, (y0, x0, y1, x1)))
    return RowIndex(annotated, sizes, {organelle: found for organelle, found in targets.items() if found})


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
