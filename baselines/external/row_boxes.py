"""Where the rows of a dataset lie in their volumes: what an export cuts out, and an import has to cover."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from em_bench_eval.errors import InputError
from em_bench_eval.rows import ID_COLUMNS, labels_are_private, open_rows, row_id

AXES = ("z", "y", "x")
PNG_START = b"\x89PNG\r\n\x1a\n"
Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Box:
    """A box of a volume in voxels, ``(z, y, x)``."""

    volume_id: str
    start: Triple
    shape: Triple

    def covers(self, other: Box) -> bool:
        """Tell whether the other box lies inside this one."""
        return self.overlap(other) == other

    def overlap(self, other: Box) -> Box | None:
        """Return the part that both have, or None."""
        start = [max(a, b) for a, b in zip(self.start, other.start, strict=True)]
        stop = [min(a, b) for a, b in zip(self.stop, other.stop, strict=True)]
        if self.volume_id != other.volume_id or any(b <= a for a, b in zip(start, stop, strict=True)):
            return None
        return Box(self.volume_id, triple(start), triple(b - a for a, b in zip(start, stop, strict=True)))

    def within(self, other: Box) -> tuple[slice, slice, slice]:
        """Return the index of this box in an array of the other, which covers it."""
        z, y, x = (
            slice(mine - its, mine - its + size)
            for mine, its, size in zip(self.start, other.start, self.shape, strict=True)
        )
        return z, y, x

    @property
    def stop(self) -> Triple:
        """One past the last voxel."""
        return triple(a + size for a, size in zip(self.start, self.shape, strict=True))

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        return self.shape[0] * self.shape[1] * self.shape[2]


@dataclass(frozen=True)
class RowBox:
    """A row of a dataset without its pixels."""

    record_id: str
    index: int  # of the row in its split
    axis: str  # that the slice is perpendicular to
    box: Box  # one voxel thick along ``axis``
    voxel_size_nm: tuple[float, float, float]  # (z, y, x)
    annotated: tuple[str, ...]
    has_ignore: bool


@dataclass(frozen=True)
class SplitRows:
    """All rows of a split, and a digest of their labels, by which another state of the dataset is told."""

    rows: Any  # the opened split, for ``decode_row``
    boxes: tuple[RowBox, ...]
    digest: str


def triple(values: Iterable[int]) -> Triple:
    """Return three whole numbers."""
    z, y, x = (int(value) for value in values)
    return z, y, x


def read_split(dataset: str, config: str, split: str) -> SplitRows:
    """Read where every row of a split lies; decodes no image."""
    rows = open_rows(dataset, config, split)
    known = [name for name in ID_COLUMNS if name in rows.column_names]
    light = rows.select_columns([*known, "instances", "ignore", "voxel_size_nm", "annotated"])
    digest = hashlib.sha256()
    boxes = []
    for index, row in enumerate(light):
        if row["instances"] is None:
            raise labels_are_private(f"{dataset} ({config}/{split})")
        labels = png_bytes(row["instances"])
        digest.update(row_id(row).encode() + labels)
        boxes.append(_row_box(index, row, png_size(labels)))
    return SplitRows(rows, tuple(boxes), digest.hexdigest())


def png_bytes(cell: Mapping[str, Any]) -> bytes:
    """Return the bytes of an encoded image cell."""
    if cell.get("bytes") is not None:
        return bytes(cell["bytes"])
    with open(cell["path"], "rb") as file:
        return file.read()


def png_size(data: bytes) -> tuple[int, int]:
    """Read ``(y, x)`` from the header of a PNG."""
    if not data.startswith(PNG_START) or len(data) < 24:
        raise InputError("a label map of the dataset is no PNG", expected="a dataset written by `em-bench build`")
    width, height = struct.unpack(">II", data[16:24])
    return height, width


def volume_boxes(dataset: str) -> dict[str, tuple[Box, tuple[float, float, float]]]:
    """Read shape and voxel size of every volume with an image from the configuration ``volumes``."""
    import datasets

    try:
        rows = datasets.load_dataset(dataset, "volumes", split="volumes")
    except (ValueError, FileNotFoundError, ConnectionError) as error:
        raise InputError(
            f"{dataset} has no list of volumes",
            found=str(error),
            expected="a dataset folder or Hub dataset with the configuration 'volumes'",
        ) from error
    return {
        row["volume_id"]: (Box(row["volume_id"], (0, 0, 0), triple(row["shape"])), nm_triple(row["voxel_size_nm"]))
        for row in rows
        if row["has_image"]
    }


def nm_triple(values: Sequence[float]) -> tuple[float, float, float]:
    """Return three edge lengths."""
    z, y, x = (float(value) for value in values)
    return z, y, x


def _row_box(index: int, row: Mapping[str, Any], size: tuple[int, int]) -> RowBox:
    along = AXES.index(row["axis"])
    offset = row.get("offset") or (0, 0)
    start, shape = list(map(int, offset)), list(size)
    start.insert(along, int(row["slice"]))
    shape.insert(along, 1)
    return RowBox(
        row_id(row),
        index,
        row["axis"],
        Box(row["volume_id"], triple(start), triple(shape)),
        nm_triple(row["voxel_size_nm"]),
        tuple(row["annotated"]),
        row["ignore"] is not None,
    )
