"""Where each instance lies: ids, sizes, bounding boxes and first voxels in one pass over the runs of a volume.

A run is a stretch of equal voxels along x. Everything that is a sum or an extreme over voxels is a sum or an extreme
over runs, and there are about ten times fewer of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from em_bench_eval.errors import InputError, unknown_name
from em_bench_eval.schema import ORGANELLES, Organelle


@dataclass(frozen=True)
class Extents:
    """One entry per instance, in ascending order of id."""

    ids: npt.NDArray[Any]  # dtype of the volume
    voxels: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]  # linear index of the first voxel in raster order
    start: npt.NDArray[np.int64]  # (n, 3) (z, y, x), first voxel of the bounding box
    stop: npt.NDArray[np.int64]  # (n, 3), half-open

    def box(self, index: int, shape: tuple[int, ...], margin: int = 0) -> tuple[slice, slice, slice]:
        """Bounding box of the instance at ``index``, widened by ``margin`` voxels but never beyond the volume."""
        z, y, x = (
            slice(max(0, int(low) - margin), min(size, int(high) + margin))
            for low, high, size in zip(self.start[index], self.stop[index], shape, strict=True)
        )
        return z, y, x


@dataclass(frozen=True)
class Runs:
    """Runs of foreground voxels along x: the value, the voxel ``(z, y, x)`` it starts at, the length."""

    value: npt.NDArray[Any]
    z: npt.NDArray[np.int64]
    y: npt.NDArray[np.int64]
    x: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]


def runs(instances: npt.NDArray[Any]) -> Runs:
    """Return the runs of non-zero voxels of a C-contiguous ``(z, y, x)`` array, in raster order."""
    flat = instances.reshape(-1)
    width = instances.shape[2]
    is_start = np.ones(flat.size, bool)
    np.not_equal(flat[1:], flat[:-1], out=is_start[1:])
    is_start[::width] = True
    starts = np.flatnonzero(is_start)
    length = np.diff(starts, append=flat.size)
    keep = flat[starts] != 0
    starts, length = starts[keep], length[keep]
    z, y, x = np.unravel_index(starts, instances.shape)
    return Runs(flat[starts], z, y, x, length)


def extents(instances: npt.NDArray[Any]) -> Extents:
    """Measure every instance of a C-contiguous ``(z, y, x)`` volume."""
    found = runs(instances) if instances.size else Runs(instances.reshape(-1), *(np.zeros(0, np.int64),) * 4)
    order = np.argsort(found.value, kind="stable")  # stable: the first run of an id stays its first in raster order
    value = found.value[order]
    heads = np.flatnonzero(np.concatenate([[True], value[1:] != value[:-1]])) if value.size else np.zeros(0, np.int64)
    if not heads.size:
        none = np.zeros(0, np.int64)
        return Extents(value, none, none, np.zeros((0, 3), np.int64), np.zeros((0, 3), np.int64))
    z, y, x, length = (part[order] for part in (found.z, found.y, found.x, found.length))
    low = [np.minimum.reduceat(part, heads) for part in (z, y, x)]
    high = [np.maximum.reduceat(part, heads) for part in (z + 1, y + 1, x + length)]
    first = np.ravel_multi_index((z[heads], y[heads], x[heads]), instances.shape).astype(np.int64)
    return Extents(value[heads], np.add.reduceat(length, heads), first, np.stack(low, 1), np.stack(high, 1))


def as_instances(instances: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return a C-contiguous ``(z, y, x)`` array of integers; raise ``InputError`` for anything else."""
    array = np.asarray(instances)
    if array.ndim != 3 or array.dtype.kind not in "ui":
        raise InputError(
            "an instance volume holds ids on three axes",
            found=f"shape {array.shape}, dtype {array.dtype}",
            expected="(z, y, x) integers, 0 = background",
            remedy="a 2D image: array[np.newaxis]; ids stored as floats: array.astype('uint32')",
        )
    if array.dtype.kind == "i" and array.size and int(array.min()) < 0:
        raise InputError("an instance volume has no negative ids", found=f"minimum {int(array.min())}", expected=">= 0")
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def organelles_of(ids: npt.NDArray[Any], organelle_of: Mapping[int, Organelle | str]) -> list[Organelle]:
    """Look up the organelle of every id; raise ``InputError`` for an id without one or an unknown organelle."""
    missing = [int(value) for value in ids if int(value) not in organelle_of]
    if missing:
        raise InputError(
            "some instances have no organelle",
            found=f"{len(missing)} ids, the first {missing[:5]}",
            expected="organelle_of names an organelle for every id in the volume",
        )
    names = [str(organelle_of[int(value)]) for value in ids]
    for name in names:
        if name not in ORGANELLES:
            raise unknown_name("organelle", name, ORGANELLES)
    return [Organelle(name) for name in names]
