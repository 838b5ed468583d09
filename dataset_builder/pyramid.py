"""Coarser levels of a volume: images by averages, labels by the commonest id, ignore regions by any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from lpa.bits import kernel

Factors = tuple[int, int, int]  # (z, y, x), each 1 or 2

SMALLEST_SIDE = 64  # pixels in plane: no coarser level than this


def levels_of(shape: Sequence[int], voxel_size_nm: Sequence[float]) -> list[Factors]:
    """Return the factors of each further level.

    y and x are halved while both keep ``SMALLEST_SIDE`` pixels; z joins in once its spacing is as fine as the plane's,
    so that voxels tend to cubes.
    """
    size, scale_nm = [int(edge) for edge in shape], [float(nm) for nm in voxel_size_nm]
    levels: list[Factors] = []
    while min(size[1:]) >= 2 * SMALLEST_SIDE:
        factors: Factors = (2 if scale_nm[0] <= 1.5 * scale_nm[2] and size[0] > 1 else 1, 2, 2)
        size = [edge // factor for edge, factor in zip(size, factors, strict=True)]
        scale_nm = [nm * factor for nm, factor in zip(scale_nm, factors, strict=True)]
        levels.append(factors)
    return levels


def average(image: npt.NDArray[np.uint8], factors: Factors) -> npt.NDArray[np.uint8]:
    """Average blocks of ``factors`` voxels of a ``(z, y, x)`` image, halves rounded up; a remainder is dropped."""
    blocks = np.ascontiguousarray(_whole_blocks(image, factors))
    out = np.empty([size // factor for size, factor in zip(blocks.shape, factors, strict=True)], np.uint8)
    _average(blocks, factors[0], out)
    return out


@kernel
def _average(blocks: npt.NDArray[np.uint8], depth: int, out: npt.NDArray[np.uint8]) -> None:
    voxels = np.uint32(4 * depth)
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                total = voxels >> np.uint32(1)
                for dz in range(depth):
                    for dy in range(2):
                        for dx in range(2):
                            total += np.uint32(blocks[depth * z + dz, 2 * y + dy, 2 * x + dx])
                out[z, y, x] = total // voxels


def any_of(mask: npt.NDArray[np.uint8], factors: Factors) -> npt.NDArray[np.uint8]:
    """Maximum over blocks of ``factors`` voxels: a block with an ignored voxel is ignored."""
    kept = _whole_blocks(mask, factors)
    for axis, factor in enumerate(factors):
        if factor == 2:
            even, odd = ([slice(None)] * axis + [slice(start, None, 2)] for start in (0, 1))
            kept = np.maximum(kept[tuple(even)], kept[tuple(odd)])
    return kept


def commonest(labels: npt.NDArray[Any], factors: Factors) -> npt.NDArray[Any]:
    """Commonest id of each block of ``factors`` voxels; among equals an instance before background, then the first."""
    blocks = np.ascontiguousarray(_whole_blocks(labels, factors))
    shape = tuple(size // factor for size, factor in zip(blocks.shape, factors, strict=True))
    out = np.empty(shape, labels.dtype)
    if out.size:
        _commonest(blocks, factors[0], out)
    return out


@kernel
def _commonest(blocks: npt.NDArray[Any], depth: int, out: npt.NDArray[Any]) -> None:
    values = np.zeros(8, blocks.dtype)
    for z in range(out.shape[0]):
        for y in range(out.shape[1]):
            for x in range(out.shape[2]):
                count, same = 0, True
                for dz in range(depth):
                    for dy in range(2):
                        for dx in range(2):
                            value = blocks[depth * z + dz, 2 * y + dy, 2 * x + dx]
                            values[count] = value
                            same = same and value == values[0]
                            count += 1
                best = values[0]
                if not same:
                    most, best_score = 0, -1
                    for i in range(count):
                        most = 0
                        for j in range(count):
                            most += values[i] == values[j]
                        score = 2 * most + (values[i] != 0)
                        if score > best_score:
                            best, best_score = values[i], score
                out[z, y, x] = best


def _whole_blocks(array: npt.NDArray[Any], factors: Factors) -> npt.NDArray[Any]:
    kept = tuple(slice(0, size - size % factor) for size, factor in zip(array.shape, factors, strict=True))
    return array[kept]
