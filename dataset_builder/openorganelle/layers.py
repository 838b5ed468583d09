"""Reading boxes of one stored array, chunk faults included, and the lazy ``(z, y, x)`` arrays that volumes are made of.

A chunk that is not stored means "all background" in a label array: zarr and N5 writers leave such chunks out. In an
image it means that the voxels are missing, so they are read as 0 and ignored. Anything else that keeps a chunk from
being read (truncated, refused, unreachable) is an ``InputError`` that names it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset_builder.chunk_files import ChunkFiles
from dataset_builder.openorganelle.grids import Box
from dataset_builder.openorganelle.layout import Level
from dataset_builder.openorganelle.store import Store
from em_bench_eval.errors import InputError
from em_bench_eval.opened import box_of
from em_bench_eval.volume_io import Chunked, open_volume

CACHE_BYTES = 256 * 2**20  # decoded chunks: a slab of chunks serves all of its slices
RETRIES = {"max_retries": 5, "initial_delay": "200ms", "max_delay": "5s"}


class Lazy3D:
    """A ``(z, y, x)`` array that reads boxes; subclasses give ``shape``, ``dtype`` and ``read``."""

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Read a box of index ranges."""
        raise NotImplementedError

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        box, afterwards = box_of(index, self.shape)
        if any(side.start == side.stop for side in box):
            return np.zeros([len(range(side.start, side.stop, side.step)) for side in box], self.dtype)[afterwards]
        z, y, x = (slice(side.start, side.stop) for side in box)
        steps = tuple(slice(None, None, side.step) for side in box)
        return np.asarray(self.read((z, y, x))[steps][afterwards])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)


@dataclass(frozen=True)
class Stored:
    """What of a box is stored: from asking for every chunk."""

    chunks: int
    missing: frozenset[tuple[int, int, int]]  # chunk numbers in grid order, (z, y, x)
    stored_bytes: int  # compressed; an estimate from a sample unless ``checked``
    decoded_bytes: int
    checked: bool  # every chunk was asked for


class Layer:
    """One stored array on its ascending grid."""

    def __init__(self, store: Store, level: Level):
        opened = open_volume(store.location(level.key))
        assert isinstance(opened.array, Chunked), "zarr and N5 are"
        self.key = level.key
        self.grid = level.placement.grid(opened.shape)
        self.dtype = opened.dtype
        self._files = ChunkFiles.of(opened.array)
        self.chunk_shape = self._files.chunk_shape
        self._store = store
        self._spec: dict[str, Any] = opened.array.store.spec().to_json()
        self._array = _strict(self._spec)
        self.missing: frozenset[tuple[int, int, int]] = frozenset()  # of the box that was checked
        self.checked = False

    def read(self, box: Box) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
        """Read a box of the grid.

        Returns:
            The values, and a mask of voxels whose chunk is not stored (``None`` if there are none; they read as 0).
        """
        stored = tuple(axis.stored(part) for axis, part in zip(self.grid.axes, box, strict=True))
        values, absent = self._read_stored((stored[0], stored[1], stored[2]))
        turned = tuple(slice(None, None, -1) if axis.flipped else slice(None) for axis in self.grid.axes)
        return values[turned], None if absent is None else absent[turned]

    def _read_stored(self, box: Box) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
        numbers = self._files.numbers(box) if self.missing else []
        if self.missing.isdisjoint(numbers):
            pending = self._array[box].read()
            try:
                return np.asarray(pending.result()), None
            except ValueError as error:
                if not _is_missing(error):
                    raise self._fault(error) from error
        # chunk by chunk; those that are known not to be stored are not asked for
        fill = self._spec["metadata"].get("fill_value") or 0  # N5 has none: 0
        values = np.full([part.stop - part.start for part in box], fill, self.dtype)
        absent = np.zeros(values.shape, bool)
        parts = []
        for number in numbers or self._files.numbers(box):
            sides = zip(number, self.chunk_shape, box, strict=True)
            part = tuple(slice(max(n * edge, b.start), min((n + 1) * edge, b.stop)) for n, edge, b in sides)
            here = tuple(slice(p.start - b.start, p.stop - b.start) for p, b in zip(part, box, strict=True))
            if number in self.missing:
                absent[here] = True
            else:
                parts.append((here, self._array[part].read()))
        for here, pending in parts:
            try:
                values[here] = pending.result()
            except ValueError as error:
                if not _is_missing(error):
                    raise self._fault(error) from error
                absent[here] = True
        return values, absent

    def check(self, box: Box, most: int) -> Stored:
        """Ask for every chunk of a box (for a sample, if there are more than ``most``) and remember what is missing."""
        stored = tuple(axis.stored(part) for axis, part in zip(self.grid.axes, box, strict=True))
        numbers = self._files.numbers((stored[0], stored[1], stored[2]))
        decoded = len(numbers) * int(np.prod(self.chunk_shape)) * self.dtype.itemsize
        checked = len(numbers) <= most
        asked = numbers if checked else numbers[:: -(-len(numbers) // most)]
        whole = math.prod(self._files.grid)
        sizes = self._store.sizes(self.key, [self._files.key(number) for number in asked], whole)
        missing = frozenset(number for number, size in zip(asked, sizes, strict=True) if size is None)
        if checked:
            self.missing, self.checked = missing, True
        total = sum(size or 0 for size in sizes)
        return Stored(len(numbers), missing, round(total * len(numbers) / max(1, len(asked))), decoded, checked)

    def stated_absent(self, store: Store) -> int | None:
        """Number of background voxels as the array's metadata state it (CellMap); ``None`` where they do not."""
        stated = (store.json(f"{self.key}/.zattrs") or {}).get("cellmap", {}).get("annotation", {})
        counts = stated.get("complement_counts") if isinstance(stated, dict) else None
        return sum(map(int, counts.values())) if isinstance(counts, dict) and counts else None

    def _fault(self, error: ValueError) -> InputError:
        text = str(error).split(" [source locations")[0]
        return InputError(
            f"{self._store.location(self.key)} cannot be read",
            found=text,
            expected="complete chunks from a server that answers",
            remedy="run the same command again; a local copy with a truncated chunk has to be downloaded again",
        )


@lru_cache(maxsize=1)
def _context() -> Any:
    import tensorstore as ts

    cache = {"total_bytes_limit": CACHE_BYTES}
    return ts.Context({"cache_pool": cache, "http_request_retries": RETRIES, "s3_request_retries": RETRIES})


def _strict(spec: dict[str, Any]) -> Any:
    """Reopen an array so that a missing chunk is an error, and chunks are kept between boxes without asking again."""
    import tensorstore as ts

    strict = {**spec, "fill_missing_data_reads": False, "recheck_cached_data": "open"}
    return ts.open(strict, read=True, open=True, context=_context()).result()


def _is_missing(error: ValueError) -> bool:
    return str(error).startswith("NOT_FOUND") and "is missing" in str(error)
