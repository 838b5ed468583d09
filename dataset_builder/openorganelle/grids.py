"""Where voxels are, in nm: grids of EM and labels differ in spacing, offset, extent and direction.

All positions are voxel centres. A grid here always ascends; a stored axis with a negative scale is remembered as
flipped and reversed when it is read. The position of a stored voxel ``i`` is ``translation + scale * i`` (OME-Zarr,
COSEM); an array that states ``resolution`` and ``offset`` (the 2021 copies, as daisy writes them) means the corner of
its first voxel, which is half a voxel before its centre.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from em_bench_eval import spacing
from em_bench_eval.errors import InputError

Box = tuple[slice, slice, slice]  # half-open index ranges, (z, y, x)
Extent = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]  # nm, (low, high) of z, y, x
DIGITS = 6  # of a voxel: positions written in decimal nm tie where they are meant to


@dataclass(frozen=True)
class Axis:
    """One axis of a grid, ascending."""

    first_nm: float  # centre of voxel 0
    step_nm: float  # positive
    size: int
    flipped: bool = False  # stored in the opposite direction

    @classmethod
    def of(cls, scale_nm: float, translation_nm: float, size: int) -> Axis:
        """Build from what is stored; a negative scale is a flip."""
        if scale_nm > 0:
            return cls(translation_nm, scale_nm, size)
        return cls(translation_nm + scale_nm * (size - 1), -scale_nm, size, flipped=True)

    @property
    def extent_nm(self) -> tuple[float, float]:
        """Outer edges of the first and the last voxel."""
        return self.first_nm - self.step_nm / 2, self.first_nm + (self.size - 0.5) * self.step_nm

    def centres_nm(self, within: slice) -> npt.NDArray[np.float64]:
        """Positions of voxels ``within.start`` to ``within.stop``."""
        return self.first_nm + self.step_nm * np.arange(within.start, within.stop, dtype=np.float64)

    def nearest(self, positions_nm: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
        """Index of the voxel that holds each position, which may be outside; on an edge the voxel above it."""
        return np.floor(self.fraction(positions_nm) + 0.5).astype(np.intp)

    def fraction(self, positions_nm: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Positions in voxels: 0.0 is the centre of voxel 0."""
        return np.asarray(np.round((positions_nm - self.first_nm) / self.step_nm, DIGITS))

    def within(self, low_nm: float, high_nm: float) -> slice:
        """Voxels whose centre is in ``[low, high)``; an empty slice if there are none."""
        ends = np.ceil(self.fraction(np.array([low_nm, high_nm]))).astype(int).clip(0, self.size)
        return slice(int(ends[0]), int(max(ends)))

    def stored(self, within: slice) -> slice:
        """Index range in the stored array; a flipped axis is reversed after it is read."""
        return slice(self.size - within.stop, self.size - within.start) if self.flipped else within


@dataclass(frozen=True)
class Grid:
    """The voxels of one array: three axes ``(z, y, x)``."""

    z: Axis
    y: Axis
    x: Axis

    @property
    def axes(self) -> tuple[Axis, Axis, Axis]:
        """The axes in order ``(z, y, x)``."""
        return self.z, self.y, self.x

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size in voxels."""
        return self.z.size, self.y.size, self.x.size

    @property
    def voxel_nm(self) -> tuple[float, float, float]:
        """Voxel edges in nm."""
        return self.z.step_nm, self.y.step_nm, self.x.step_nm

    @property
    def extent_nm(self) -> Extent:
        """Outer edges in nm."""
        return self.z.extent_nm, self.y.extent_nm, self.x.extent_nm

    def box(self, extent: Extent) -> Box:
        """Voxels whose centre is in an extent."""
        z, y, x = (axis.within(*ends) for axis, ends in zip(self.axes, extent, strict=True))
        return z, y, x

    def __str__(self) -> str:
        flips = "".join(name for name, axis in zip("zyx", self.axes, strict=True) if axis.flipped)
        first = ", ".join(f"{axis.first_nm:g}" for axis in self.axes)
        voxel = " x ".join(f"{nm:g}" for nm in self.voxel_nm)
        return f"{voxel} nm, first centre at {first} nm, {' x '.join(map(str, self.shape))} voxels" + (
            f", stored with {flips} reversed" if flips else ""
        )


@dataclass(frozen=True)
class Placement:
    """Scale and translation as an array states them, in nm, ``(z, y, x)``; a scale may be negative."""

    scale_nm: tuple[float, float, float]
    translation_nm: tuple[float, float, float]  # centre of the first stored voxel

    def grid(self, shape: tuple[int, int, int]) -> Grid:
        """Return the grid of an array of this shape."""
        z, y, x = map(Axis.of, self.scale_nm, self.translation_nm, shape)
        return Grid(z, y, x)


def placement_of(attributes: Mapping[str, Any], n5: bool, level: int | None = None) -> Placement | None:
    """Read the placement of an array from its own attributes, or from its group's for a level of a pyramid.

    ``None`` where no voxel size in units of length is stated.
    """
    pyramid = spacing.multiscales(attributes) if level is not None else None
    if pyramid is not None and level is not None:
        return _in_nm(spacing.of_multiscales(pyramid, level), corner=False)
    corner = "transform" not in attributes and ("resolution" in attributes or "offset" in attributes)
    return _in_nm(spacing.of_attributes(attributes, n5), corner)


def _in_nm(stated: spacing.Spacing | None, corner: bool) -> Placement | None:
    if stated is None or not set("zyx") <= set(stated.axes) or len(stated.scale) != len(stated.axes):
        return None
    scale, first = [], []
    for name in "zyx":
        axis = stated.axes.index(name)
        factor = spacing.NANOMETRES.get((stated.units[axis] if axis < len(stated.units) else None) or "")
        step = stated.scale[axis]
        if factor is None or not np.isfinite(step) or step == 0:
            return None
        scale.append(step * factor)
        translation = stated.translation[axis] if axis < len(stated.translation) else 0.0
        first.append((translation + (step / 2 if corner else 0.0)) * factor)
    return Placement((scale[0], scale[1], scale[2]), (first[0], first[1], first[2]))


def parse_extent(text: str) -> Extent | None:
    """Read ``z0:z1,y0:y1,x0:x1`` in nm; an empty text is ``None``."""
    if not text.strip():
        return None
    try:
        ends = [tuple(float(end) for end in part.split(":")) for part in text.split(",")]
        (z0, z1), (y0, y1), (x0, x1) = ends
    except ValueError:
        ends = []
    if not ends or not all(low < high for low, high in ends):
        raise InputError(
            "option region_nm is not a box",
            found=repr(text),
            expected="z0:z1,y0:y1,x0:x1 in nm of the data set's coordinates, each range ascending",
            remedy="for example region_nm=0:4000,0:6000,10000:18000",
        )
    return (z0, z1), (y0, y1), (x0, x1)
