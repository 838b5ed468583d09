"""Lazy views of files as the builder wants them: 8-bit gray, organelle classes, instance ids, ignore regions.

Every view is computed voxel by voxel from the same box of its files, so that a box reads what it needs and no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset_builder.harmonise import Window
from dataset_builder.label_values import IGNORED, Lookup
from em_bench_eval.errors import InputError
from em_bench_eval.opened import Opened, whole_numbers
from em_bench_eval.schema import Array3D, Organelle

Box = tuple[slice, slice, slice]
BOX_VOXELS = 2**24  # of a pass over a whole file


@dataclass(frozen=True)
class Gray:
    """An image as uint8, dark membranes: windowed to 8 bits, then inverted."""

    file: Opened
    window: Window | None = None  # None: it is 8-bit already
    invert: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size as ``(z, y, x)``."""
        return self.file.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8."""
        return np.dtype(np.uint8)

    def __getitem__(self, index: Any, /) -> npt.NDArray[np.uint8]:
        values = self.file[index]
        gray = values if self.window is None else self.window.apply(values)
        return np.asarray(np.uint8(255) - gray if self.invert else gray)


@dataclass(frozen=True)
class Classes:
    """``Organelle.label_id`` of every voxel, uint8; where several files claim a voxel the first wins."""

    files: Sequence[tuple[Opened, Lookup]]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size as ``(z, y, x)``."""
        return self.files[0][0].shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8."""
        return np.dtype(np.uint8)

    def __getitem__(self, index: Any, /) -> npt.NDArray[np.uint8]:
        merged: npt.NDArray[np.uint8] | None = None
        for opened, lookup in self.files:
            codes = lookup.codes(opened[index])
            codes[codes == IGNORED] = 0
            merged = codes if merged is None else np.where(merged > 0, merged, codes)
        assert merged is not None, "there is a file"
        return merged


@dataclass(frozen=True)
class Ids:
    """Instance ids; ids that mean no organelle are 0, and where several files claim a voxel the first wins.

    ``renumber`` holds, for each file, its ids in ascending order and the id that each gets.
    """

    files: Sequence[tuple[Array3D, Lookup]]
    renumber: Sequence[tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]]
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size as ``(z, y, x)``."""
        z, y, x = self.files[0][0].shape
        return z, y, x

    def __getitem__(self, index: Any, /) -> npt.NDArray[Any]:
        merged: npt.NDArray[Any] | None = None
        for (opened, lookup), (known, given) in zip(self.files, self.renumber, strict=True):
            values = whole_numbers(opened[index], lookup.where)
            ids = values.astype(np.uint64)
            place = np.minimum(np.searchsorted(known, ids), max(0, len(known) - 1))
            here = np.where(known[place] == ids, given[place], 0) if len(known) else np.zeros_like(ids)
            merged = here if merged is None else np.where(merged > 0, merged, here)
        assert merged is not None, "there is a file"
        return merged.astype(self.dtype)


@dataclass(frozen=True)
class Ignored:
    """True where a mask, or a value of a label file, says that nobody annotated the voxel."""

    files: Sequence[tuple[Opened, Lookup]]  # label files with a value that means "ignore"
    mask: Opened | None
    values: tuple[int, ...] | None  # of the mask; None: any but 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size as ``(z, y, x)``."""
        return (self.mask or self.files[0][0]).shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """bool."""
        return np.dtype(bool)

    def __getitem__(self, index: Any, /) -> npt.NDArray[np.bool_]:
        regions = [lookup.codes(opened[index]) == IGNORED for opened, lookup in self.files]
        if self.mask is not None:
            values = self.mask[index]
            regions.append(values != 0 if self.values is None else np.isin(values, self.values))
        return np.asarray(np.logical_or.reduce(regions))


@dataclass(frozen=True)
class Named:
    """A structure outside the five organelles, where ``Lookup.codes`` of files are ``IGNORED`` (``ValueMap.marking``).

    A mask where any of the files has it; or, if ``dtype`` is no bool, the ids of the only one.
    """

    files: Sequence[tuple[Opened, Lookup]]
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size as ``(z, y, x)``."""
        return self.files[0][0].shape

    def __getitem__(self, index: Any, /) -> npt.NDArray[Any]:
        if self.dtype.kind == "b":
            masks = [lookup.codes(opened[index]) == IGNORED for opened, lookup in self.files]
            return np.asarray(np.logical_or.reduce(masks))
        opened, lookup = self.files[0]
        ids = whole_numbers(opened[index], lookup.where)
        return np.where(lookup.codes(ids) == IGNORED, ids, 0).astype(self.dtype)


def boxes(volume: Array3D, voxels: int = BOX_VOXELS) -> Iterator[Box]:
    """Cut a volume into boxes of about ``voxels``, in whole chunks as far as these are smaller."""
    shape = volume.shape
    edges = [min(pair) for pair in zip(getattr(volume, "chunk_shape", (1, 1, 1)), shape, strict=True)]
    while np.prod(edges) > voxels:  # a chunk that is too large itself is read more than once
        longest = int(np.argmax(edges))
        edges[longest] = -(-edges[longest] // 2)
    for axis in (2, 1, 0):
        chunk, size = edges[axis], shape[axis]
        room = voxels // max(1, int(np.prod(edges)) // chunk)
        edges[axis] = min(size, max(1, room // chunk) * chunk)
    for z in range(0, shape[0], edges[0]):
        for y in range(0, shape[1], edges[1]):
            for x in range(0, shape[2], edges[2]):
                ends = [
                    slice(start, min(start + edge, size))
                    for start, edge, size in zip((z, y, x), edges, shape, strict=True)
                ]
                yield ends[0], ends[1], ends[2]


def distinct_ids(volume: Array3D, where: str) -> npt.NDArray[np.uint64]:
    """Read a whole label file and return its ids but 0, ascending; raises ``InputError`` for what is no id."""
    from tqdm import tqdm

    found: set[int] = set()
    for box in tqdm(list(boxes(volume)), f"ids of {where}", unit="box", leave=False):
        values = np.unique(whole_numbers(volume[box], where))
        if values.size and int(values[0]) < 0:
            raise InputError(
                f"{where} holds negative ids",
                found=int(values[0]),
                expected="0 for background and positive ids",
                remedy="was it saved with a signed type? Export it as an unsigned one",
            )
        found.update(values.tolist())
    return np.array(sorted(found - {0}), np.uint64)


def ids_of(
    files: Sequence[tuple[Array3D, Lookup]], class_of: Mapping[int, Organelle]
) -> tuple[Ids, dict[int, Organelle]]:
    """Number the instances of several files: ``(ids, {id: class})``; ``class_of`` translates ``Lookup`` codes.

    The ids of a single file stay as they are; those of several become 1..N, in the order of the files and of their ids.
    """
    renumber = []
    classes: dict[int, Organelle] = {}
    for opened, lookup in files:
        known = distinct_ids(opened, lookup.where)
        codes = [lookup.values.code(int(value)) for value in known.tolist()]
        strangers = [
            int(value) for value, code in zip(known, codes, strict=True) if code not in (*class_of, 0, IGNORED)
        ]
        if strangers:
            raise InputError(
                f"{lookup.where} holds ids of which the spec says nothing",
                found=f"{len(strangers)} ids: {', '.join(map(str, strangers[:8]))}",
                expected=str(lookup.values),
                remedy="add what they are, or 'rest: other'",
            )
        kept = [(int(value), code) for value, code in zip(known.tolist(), codes, strict=True) if code in class_of]
        first = len(classes) + 1
        given = [value for value, _ in kept] if len(files) == 1 else list(range(first, first + len(kept)))
        classes.update({name: class_of[code] for name, (_, code) in zip(given, kept, strict=True)})
        renumber.append((np.array([value for value, _ in kept], np.uint64), np.array(given, np.uint64)))
    dtype = np.dtype(np.uint32) if max(classes, default=0) < 2**32 else np.dtype(np.uint64)
    return Ids(files, renumber, dtype), classes
