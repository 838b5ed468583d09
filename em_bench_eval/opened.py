"""A volume that is read box by box, whatever file or server holds it."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .schema import VoxelSize

Box = tuple[slice, slice, slice]


class Pixels(Protocol):
    """What a format provides: a size, an element type, and reading one box."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size in voxels, ``(z, y, x)``."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        ...

    @property
    def chunk_shape(self) -> tuple[int, int, int]:
        """Smallest box that is read as one, in voxels, ``(z, y, x)``."""
        ...

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Read ``box``: three slices within the volume, each with a step of at least 1; the result is the caller's."""
        ...


LARGEST = 2**53  # beyond this a float no longer holds every whole number


@dataclass(frozen=True)
class Opened:
    """A lazily read volume; ``opened[z0:z1, y0:y1, x0:x1]`` reads a box as numpy, in native byte order.

    Integers, slices (also with steps and from the end) and ``...`` mean what they mean for numpy. Threads may share
    one; a pickled one is opened again where it arrives.
    """

    location: str  # what was asked for
    format: str  # "zarr v3", "N5", "ImageJ TIFF", "NIfTI", ...
    array: Pixels
    voxel_size_nm: VoxelSize | None
    translation_nm: tuple[float, float, float] | None  # position of the first voxel, (z, y, x)
    attributes: Mapping[str, Any] = field(default_factory=dict)  # what else the file states
    notes: tuple[str, ...] = ()  # what a person should know before relying on this file
    part: Box | None = None  # the part of the array that this is; None: all of it

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size in voxels, ``(z, y, x)``."""
        if self.part is None:
            return self.array.shape
        z, y, x = (side.stop - side.start for side in self.part)
        return z, y, x

    def crop(self, z: tuple[int, int], y: tuple[int, int], x: tuple[int, int]) -> Opened:
        """Return the part ``[z0, z1), [y0, y1), [x0, x1)``; raises ``InputError`` where that is outside."""
        ends = (z, y, x)
        if not all(0 <= low < high <= size for (low, high), size in zip(ends, self.shape, strict=True)):
            raise InputError(
                f"{self.location} has no such box",
                found=", ".join(f"{axis} {low}:{high}" for axis, (low, high) in zip("zyx", ends, strict=True)),
                expected=f"within its shape {self.shape} (z, y, x)",
            )
        first = [0, 0, 0] if self.part is None else [side.start for side in self.part]
        depth, height, width = (slice(at + low, at + high) for at, (low, high) in zip(first, ends, strict=True))
        size, moved = self.voxel_size_nm, self.translation_nm
        if size is not None and moved is not None:
            (a, b, c), (nz, ny, nx) = moved, size
            moved = (a + z[0] * nz, b + y[0] * ny, c + x[0] * nx)
        return replace(self, part=(depth, height, width), translation_nm=moved)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type, in native byte order."""
        return self.array.dtype.newbyteorder("=")

    @property
    def chunk_shape(self) -> tuple[int, int, int]:
        """Smallest box that is read as one, in voxels, ``(z, y, x)``."""
        return self.array.chunk_shape

    def __getitem__(self, index: Any, /) -> npt.NDArray[Any]:
        box, afterwards = box_of(index, self.shape)
        if any(side.start == side.stop for side in box):
            values = np.empty([len(range(side.start, side.stop, side.step)) for side in box], self.dtype)
        else:
            values = self.array.read(box if self.part is None else _moved(box, self.part))
        return np.asarray(values.astype(self.dtype, copy=False)[afterwards])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)

    def as_labels(self) -> Opened:
        """Return the volume with an integer type: floats are taken if each is whole, which is checked when read."""
        if self.dtype.kind != "f":
            return self
        return replace(self, array=WholeNumbers(self.array, self.location))


def _moved(box: Box, part: Box) -> Box:
    z, y, x = (
        slice(side.start + within.start, side.stop + within.start, side.step)
        for side, within in zip(box, part, strict=True)
    )
    return z, y, x


def box_of(index: Any, shape: tuple[int, int, int]) -> tuple[Box, tuple[int | slice, ...]]:
    """Turn any basic numpy index into a box to read, and the index to apply to what was read."""
    items = list(index) if isinstance(index, tuple) else [index]
    dots = [place for place, item in enumerate(items) if item is Ellipsis]
    if dots:
        items[dots[0] : dots[0] + 1] = [slice(None)] * (4 - len(items))
    if len(items) > 3 or len(dots) > 1:
        raise IndexError(f"a volume has three axes (z, y, x), not {len(items)}")
    items += [slice(None)] * (3 - len(items))
    box: list[slice] = []
    afterwards: list[int | slice] = []
    for item, size in zip(items, shape, strict=True):
        if isinstance(item, slice):
            positions = range(*item.indices(size))
            if len(positions) == 0:
                box.append(slice(0, 0, 1))
            elif positions.step > 0:
                box.append(slice(positions[0], positions[-1] + 1, positions.step))
            else:
                box.append(slice(positions[-1], positions[0] + 1, -positions.step))
            afterwards.append(slice(None, None, -1 if positions.step < 0 else 1))
            continue
        place = operator.index(item)
        if not -size <= place < size:
            raise IndexError(f"index {place} is outside an axis of {size} voxels")
        box.append(slice(place % size, place % size + 1, 1))
        afterwards.append(0)
    z, y, x = box
    return (z, y, x), tuple(afterwards)


@dataclass(frozen=True)
class Mapped:
    """An array that supports slicing itself - a memory map, an HDF5 data set - with axes ordered ``(z, y, x)``."""

    values: Any
    chunk_shape: tuple[int, int, int] = (1, 1, 1)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size in voxels, ``(z, y, x)``."""
        z, y, x = self.values.shape
        return z, y, x

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        dtype: np.dtype[Any] = np.dtype(self.values.dtype)
        return dtype

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Copy a box out of the file."""
        return np.array(self.values[box])


def whole_numbers(values: npt.NDArray[Any], where: str) -> npt.NDArray[Any]:
    """Return labels as integers: booleans become 0 and 1, floats are taken if each is whole (NIfTI stores many so).

    Raises ``InputError``, naming ``where``, for any that is not.
    """
    if values.dtype.kind == "b":
        return values.astype(np.uint8)
    if values.dtype.kind in "iu":
        return values
    with np.errstate(invalid="ignore"):
        wrong = ~(np.abs(values) <= LARGEST) | (values != np.rint(values))
    if wrong.any():
        place = tuple(int(at[0]) for at in np.nonzero(wrong))
        raise InputError(
            f"{where} is not a label map",
            found=f"{values.dtype} with the value {values[place]:g}",
            expected="whole numbers (floats too, if every one of them is whole)",
            remedy="threshold probabilities first; rounded interpolation is no label: resample with nearest neighbour",
        )
    return values.astype(np.int64)


@dataclass(frozen=True)
class WholeNumbers:
    """A label map stored as floats, read as int64."""

    values: Pixels
    where: str

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        return np.dtype(np.int64)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size in voxels, ``(z, y, x)``."""
        return self.values.shape

    @property
    def chunk_shape(self) -> tuple[int, int, int]:
        """Smallest box that is read as one, in voxels, ``(z, y, x)``."""
        return self.values.chunk_shape

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Read a box; raises ``InputError`` where a value is not whole."""
        return whole_numbers(self.values.read(box), self.where)
