"""Where the rows of a split lie in their volumes, and predictions of rows cut from predictions of volumes.

A row is a tile of a slice along z, y or x (``offset`` is its first pixel in the slice); the folds of a volume are slabs
along z. So the rows of one split lie in a box of each volume, and only that box is read and predicted.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from baselines.volumes.map_store import Box, Shape
from baselines.volumes.volume_instances import Instances
from em_bench_eval.errors import InputError, unknown_name
from em_bench_eval.rows import decode_png, row_id
from em_bench_eval.schema import Organelle, Prediction
from em_bench_eval.volume_io import Opened, open_volume

VOLUMES_FILE = "volumes.parquet"
LARGEST_PNG_ID = 65535
ROWS_AND_COLUMNS = {"z": (1, 2), "y": (0, 2), "x": (0, 1)}  # axis of the slices -> axes of the image


@dataclass(frozen=True)
class Place:
    """One row in its volume."""

    record_id: str
    volume_id: str
    axis: str
    box: Box  # one voxel thick along ``axis``

    def plane(self, volume: Any) -> npt.NDArray[Any]:
        """Cut the row's ``(y, x)`` image from a ``(z, y, x)`` volume."""
        return np.asarray(volume[self.box]).squeeze("zyx".index(self.axis))


def places(rows: Any) -> list[Place]:
    """Where each row lies, in their order; of the images, only headers are read."""
    found = []
    for row in rows.select_columns(["volume_id", "axis", "slice", "offset", "image"]):
        height, width = _size(row["image"])
        offset = row.get("offset") or (0, 0)
        sides = [slice(int(row["slice"]), int(row["slice"]) + 1)] * 3
        for axis, first, size in zip(ROWS_AND_COLUMNS[row["axis"]], offset, (height, width), strict=True):
            sides[axis] = slice(int(first), int(first) + size)
        z, y, x = sides
        found.append(Place(row_id(row), row["volume_id"], row["axis"], (z, y, x)))
    return found


def hull(of: Iterable[Place]) -> Box:
    """The smallest box that holds all of them."""
    boxes = [place.box for place in of]
    z, y, x = (slice(min(b[k].start for b in boxes), max(b[k].stop for b in boxes)) for k in range(3))
    return z, y, x


class Uncovered:
    """True where no row lies, or where the dataset says that nobody annotated; called with boxes."""

    def __init__(self, of: Sequence[Place], unannotated: Opened | None) -> None:
        self.boxes = [place.box for place in of]
        self.unannotated = unannotated

    def __call__(self, box: Box) -> npt.NDArray[np.bool_]:
        """The mask of a box."""
        mask = np.ones([side.stop - side.start for side in box], bool)
        for other in self.boxes:
            parts = [
                slice(max(a.start, b.start) - b.start, min(a.stop, b.stop) - b.start)
                for a, b in zip(other, box, strict=True)
            ]
            if all(part.start < part.stop for part in parts):
                mask[tuple(parts)] = False
        if self.unannotated is not None:
            mask |= self.unannotated[box] != 0
        return mask

    def is_needed(self, shape: Shape) -> bool:
        """False if the rows cover a volume whose every voxel is annotated."""
        if self.unannotated is not None:
            return True
        covered = len(
            {b[0].start for b in self.boxes if all(s == slice(0, n) for s, n in zip(b[1:], shape[1:], strict=True))}
        )
        return covered < shape[0]


@dataclass(frozen=True)
class DatasetVolume:
    """A volume of a dataset folder."""

    volume_id: str
    image: Opened
    annotated: tuple[str, ...]
    unannotated: Opened | None  # labels/ignore


def dataset_volumes(dataset: str | os.PathLike[str]) -> Mapping[str, Mapping[str, Any]]:
    """Rows of ``volumes.parquet`` by volume id; ``InputError`` if the dataset is no folder with volumes."""
    import pyarrow.parquet as pq

    path = Path(dataset) / VOLUMES_FILE
    if not path.is_file():
        raise InputError(
            f"the volumes of {dataset} cannot be read",
            found="no folder of that name" if not Path(dataset).is_dir() else f"no {VOLUMES_FILE}",
            expected="a dataset folder on this machine, written by `em-bench build`",
            remedy="download it (huggingface-cli download --repo-type dataset), or predict its images: --config wild",
        )
    columns = ["volume_id", "zarr", "has_image", "annotated"]
    return {row["volume_id"]: row for row in pq.read_table(path, columns=columns).to_pylist()}


def open_dataset_volume(dataset: str | os.PathLike[str], row: Mapping[str, Any]) -> DatasetVolume:
    """Open a volume that ``dataset_volumes`` lists."""
    path = Path(dataset) / row["zarr"]
    ignore = path / "labels" / "ignore"
    return DatasetVolume(
        row["volume_id"],
        open_volume(path),
        tuple(row["annotated"]),
        open_volume(ignore) if ignore.is_dir() else None,
    )


def chosen(only: Sequence[str], known: Iterable[str]) -> list[str]:
    """Check the names of ``--only``; a misspelt one answers "did you mean ..."."""
    names = list(known)
    for name in only:
        if name not in names:
            raise unknown_name("volume of this split", name, names)
    return [name for name in names if not only or name in only]


def predictions_of_rows(
    of: Iterable[Place], labels: Mapping[str, Opened], instances: Mapping[str, Instances]
) -> Iterator[Prediction]:
    """Cut predictions of rows from the instances of their volumes.

    An instance has one id in all slices of its volume, which is what `--reference-ids volume` judges. The PNG column
    holds 16 bits: the ids of a volume with more instances are numbered anew in each image.
    """
    organelle_of = {volume_id: found.organelle_of() for volume_id, found in instances.items()}
    for place in of:
        found = instances[place.volume_id]
        plane = place.plane(labels[place.volume_id]).astype(np.uint32)
        ids = np.unique(plane)
        ids = ids[ids > 0]
        names = ids
        if len(found.voxels) > LARGEST_PNG_ID:
            names = np.arange(1, len(ids) + 1, dtype=np.uint32)
            plane = np.where(plane > 0, np.searchsorted(ids, plane) + 1, 0).astype(np.uint32)
        known: Mapping[int, Organelle] = organelle_of[place.volume_id]
        pairs = list(zip(names.tolist(), ids.tolist(), strict=True))
        yield Prediction(
            place.record_id,
            plane,
            {name: known[id_] for name, id_ in pairs},
            {name: float(found.confidence[id_ - 1]) for name, id_ in pairs},
        )


def _size(cell: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of an encoded PNG, from its header."""
    data = cell.get("bytes")
    if data is None:
        height, width = decode_png(cell).shape
        return int(height), int(width)
    return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
