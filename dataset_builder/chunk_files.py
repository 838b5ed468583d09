"""Which chunks of a zarr or N5 array are stored: each is a file, or an object, of its own. No chunk is read.

Readers answer the fill value where a chunk is not there. Writers may leave out chunks that hold nothing else, which in
a label array means background; in an image it cannot be told from a lost file, so it counts as not recorded.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from dataset_builder.lazy import any_of
from dataset_builder.openorganelle.store import Store
from em_bench_eval.errors import InputError
from em_bench_eval.opened import Box, Opened, box_of
from em_bench_eval.schema import Volume
from em_bench_eval.volume_io import Chunked, is_remote

Number = tuple[int, int, int]  # of a chunk: its place in the grid of chunks, (z, y, x)
NOT_RECORDED = "taken as not recorded, and ignored"
MOST_LOCAL, MOST_REMOTE = 50_000, 256  # chunks that an inspection asks for


class Asked(NamedTuple):
    """The answer to asking for some of an array's chunks."""

    chunks: int  # of the array
    asked: int
    missing: int  # of those asked for

    def __str__(self) -> str:
        if self.asked == self.chunks:
            return f"{self.missing:,} of {self.chunks:,} chunks are not stored"
        return f"{self.missing:,} of {self.asked:,} chunks that were looked up, of {self.chunks:,}, are not stored"


@dataclass(frozen=True)
class ChunkFiles:
    """The chunk files of an array whose axes are read as ``(z, y, x)``; of a sharded array a file is a shard."""

    shape: tuple[int, int, int]
    chunk_shape: tuple[int, int, int]  # voxels in one file
    axes: tuple[int | None, ...]  # of each stored axis: which of (z, y, x) it is; None: an axis of length 1
    prefix: str
    separator: str

    @classmethod
    def of(cls, pixels: Chunked) -> ChunkFiles:
        """Read the layout of an opened array."""
        spec: dict[str, Any] = pixels.store.spec().to_json()
        z, y, x = pixels.store.chunk_layout.write_chunk.shape
        axes = tuple(output.input_dimension for output in pixels.store.spec().transform.output)
        return cls(pixels.shape, (z, y, x), axes, *_naming(spec["driver"], spec["metadata"]))

    @property
    def grid(self) -> tuple[int, int, int]:
        """Number of chunks along each axis."""
        z, y, x = (-(-size // edge) for size, edge in zip(self.shape, self.chunk_shape, strict=True))
        return z, y, x

    def touched(self, box: Box) -> tuple[range, range, range]:
        """Return the chunks that a box touches, as ranges along each axis."""
        z, y, x = (range(p.start // edge, -(-p.stop // edge)) for p, edge in zip(box, self.chunk_shape, strict=True))
        return z, y, x

    def numbers(self, box: Box) -> list[Number]:
        """Return the chunks that a box touches, in order."""
        return list(itertools.product(*self.touched(box)))

    def key(self, number: Number) -> str:
        """Return the name of a chunk's file below its array."""
        return self.prefix + self.separator.join(str(0 if axis is None else number[axis]) for axis in self.axes)


def _naming(driver: str, metadata: Mapping[str, Any]) -> tuple[str, str]:
    """Return what the names of chunks begin with, and what stands between their numbers."""
    if driver == "n5":
        return "", "/"
    if driver == "zarr":
        return "", str(metadata.get("dimension_separator", "."))
    encoding = metadata.get("chunk_key_encoding", {})
    default = encoding.get("name", "default") == "default"
    separator = str(encoding.get("configuration", {}).get("separator", "/" if default else "."))
    return f"c{separator}" if default else "", separator


def ask(opened: Opened) -> Asked | None:
    """Ask for chunks of a volume, evenly spaced if there are very many; ``None`` for a format without chunk files."""
    if not isinstance(opened.array, Chunked):
        return None
    files = ChunkFiles.of(opened.array)
    chunks = math.prod(files.grid)
    most = MOST_REMOTE if is_remote(opened.array.location) else MOST_LOCAL
    places = np.unravel_index(np.arange(0, chunks, -(-chunks // most)), files.grid)
    stored = _are_stored(opened.array.location, files, list(zip(*(axis.tolist() for axis in places), strict=True)))
    return Asked(chunks, len(stored), stored.count(False))


def not_stored(opened: Opened) -> NotStored | None:
    """Ask for every chunk of a volume, or of the part that it is; ``None`` for a format without chunk files."""
    if not isinstance(opened.array, Chunked):
        return None
    files = ChunkFiles.of(opened.array)
    z, y, x = opened.part or tuple(slice(0, size) for size in opened.shape)
    ranges = files.touched((z, y, x))
    stored = _are_stored(opened.array.location, files, files.numbers((z, y, x)))
    absent = ~np.array(stored, bool).reshape([len(numbers) for numbers in ranges])
    start = [
        side.start - numbers.start * edge
        for side, numbers, edge in zip((z, y, x), ranges, files.chunk_shape, strict=True)
    ]
    return NotStored(opened.shape, absent, files.chunk_shape, start)


def ignore_not_stored(volume: Volume, image: Opened) -> Volume:
    """Ignore where chunks of the image are not stored; as it is, if all are. Raises ``InputError`` if none is."""
    gaps = not_stored(image)
    if gaps is None or not gaps.missing:
        return volume
    if gaps.missing == gaps.chunks:
        raise InputError(
            f"{image.location}: nothing of the image is stored",
            found=f"none of its {gaps.chunks:,} chunks",
            expected="an image",
            remedy="does the server answer HEAD requests? If not, download the image"
            if is_remote(image.location)
            else "was the copy interrupted? Copy it again, or correct the path",
        )
    note = f"{gaps.missing} of {gaps.chunks} chunks of the image are not stored: {NOT_RECORDED}"
    tqdm.write(f"note: {volume.volume_id}: {note}", file=sys.stderr)
    ignore = gaps if volume.ignore is None else any_of([volume.ignore, gaps])
    record = {"chunks_missing_in_image": f"{gaps.missing} of {gaps.chunks}"}
    return replace(volume, ignore=ignore, provenance={**volume.provenance, **record})


def _are_stored(location: str, files: ChunkFiles, numbers: Sequence[Number]) -> list[bool]:
    root, _, name = location.rpartition("/")
    sizes = Store(root).sizes(name, [files.key(number) for number in numbers], math.prod(files.grid))
    return [size is not None for size in sizes]


class NotStored:
    """The mask of voxels whose chunk is not stored, ``(z, y, x)``, bool; made for the box that is read."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        absent: npt.NDArray[np.bool_],
        chunk_shape: tuple[int, int, int],
        start: Sequence[int],
    ):
        self.shape, self.dtype = shape, np.dtype(bool)
        self._absent, self._chunk_shape, self._start = absent, chunk_shape, tuple(start)

    @property
    def chunks(self) -> int:
        """How many chunks were asked for."""
        return self._absent.size

    @property
    def missing(self) -> int:
        """How many of them are not stored."""
        return int(np.count_nonzero(self._absent))

    def __getitem__(self, index: Any) -> npt.NDArray[np.bool_]:
        box, afterwards = box_of(index, self.shape)
        places = [
            (np.arange(side.start, side.stop, side.step) + start) // edge
            for side, start, edge in zip(box, self._start, self._chunk_shape, strict=True)
        ]
        return np.asarray(self._absent[np.ix_(*places)][afterwards])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)
