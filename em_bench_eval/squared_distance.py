"""Exact squared distances to the background in whole numbers, on any voxel shape.

Whole numbers, so that every way to compute them gives the same bits; 16 bits a voxel where they are enough, since
this is the largest array that thinning needs. The three axes are done one after the other (Saito & Toriwaki 1994,
doi:10.1016/0031-3203(94)90133-3), slice by slice in the processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_RESOLUTION = 64  # the shortest voxel edge is at most this many steps long
_FAR_16, _FAR_32 = (1 << 15) - 1, (1 << 31) - 1  # distances are capped here: a sum of two still fits


def voxel_steps(voxel_size_nm: Sequence[float]) -> tuple[tuple[int, ...], float]:
    """Express a voxel size in whole steps, and return them with the length of one step in nm.

    (8, 8, 8) becomes (1, 1, 1) steps of 8 nm, (30, 8, 8) becomes (15, 4, 4) steps of 2 nm. Ratios of edges that are not
    multiples of 1/64 are rounded to one.
    """
    shortest = min(voxel_size_nm)
    steps = [max(1, round(edge / shortest * _RESOLUTION)) for edge in voxel_size_nm]
    divisor = math.gcd(*steps)
    return tuple(step // divisor for step in steps), shortest * divisor / _RESOLUTION


def squared_distance(mask: npt.NDArray[np.bool_], steps: Sequence[int]) -> npt.NDArray[Any]:
    """Return the squared distance in steps of each voxel of a (z, y, x) mask to the nearest voxel outside it.

    ``mask`` must be False in its outermost layer along y and x, and along z unless it has one slice (an image: the
    distance is then measured in the plane). uint16, or uint32 if that is too small.
    """
    squared = _squared_distance(mask, steps, np.dtype(np.uint16), _FAR_16)
    if squared.size and int(squared.max()) == _FAR_16:
        squared = _squared_distance(mask, steps, np.dtype(np.uint32), _FAR_32)
    return squared


def _squared_distance(
    mask: npt.NDArray[np.bool_], steps: Sequence[int], dtype: np.dtype[Any], far: int
) -> npt.NDArray[Any]:
    squared = np.empty(mask.shape, dtype)
    for z in range(mask.shape[0]):
        if not mask[z].any():
            squared[z] = 0
            continue
        run = _along_rows(mask[z]).astype(np.int64) * steps[2]
        squared[z] = _along_columns(np.minimum(run * run, far).astype(dtype), steps[1])
    if mask.shape[0] > 1:
        for y in range(mask.shape[1]):
            squared[:, y] = _along_columns(np.ascontiguousarray(squared[:, y]), steps[0])
    return squared


def _along_rows(mask: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Voxels to the nearest False of the same row, on either side."""
    outside = ~mask
    place = np.arange(mask.shape[1], dtype=np.int16 if mask.shape[1] < 1 << 15 else np.int32)
    before = place - np.maximum.accumulate(place * outside, axis=1)
    after = place - np.maximum.accumulate(place * outside[:, ::-1], axis=1)
    return np.asarray(np.minimum(before, after[:, ::-1]))


def _along_columns(squared: npt.NDArray[Any], step: int) -> npt.NDArray[Any]:
    """For every voxel the minimum over its column of what is there, plus the squared distance to there."""
    nearest = squared.copy()
    for offset in range(1, len(squared)):
        added = squared.dtype.type(min((offset * step) ** 2, np.iinfo(squared.dtype).max // 2))
        if added >= nearest.max():
            break
        moved = squared + added
        np.minimum(nearest[offset:], moved[:-offset], out=nearest[offset:])
        np.minimum(nearest[:-offset], moved[offset:], out=nearest[:-offset])
    return nearest
