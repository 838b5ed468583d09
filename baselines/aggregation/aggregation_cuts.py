"""How a volume is cut into patches, slices and blocks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

Shape = tuple[int, int, int]  # (z, y, x)
Box = tuple[slice, slice, slice]

SLAB_VOXELS = 1 << 24  # read at a time; a slice that is larger is still read as one


def even(size: int, most: int) -> list[slice]:
    """Cut ``size`` into as few parts of at most ``most`` as possible, their sizes differing by at most 1.

    Even parts leave no sliver at the end: a patch with next to nothing in it that counts like the others.
    """
    parts = -(-size // most)
    ends = [size * part // parts for part in range(parts + 1)]
    return [slice(first, end) for first, end in itertools.pairwise(ends)]


def boxes(shape: Sequence[int], edges: Sequence[int]) -> Iterator[Box]:
    """Cover ``shape`` with boxes of at most ``edges``, evenly cut along each axis, in raster order."""
    depths, heights, widths = (even(size, edge) for size, edge in zip(shape, edges, strict=True))
    yield from itertools.product(depths, heights, widths)


def slabs(shape: Sequence[int]) -> Iterator[Box]:
    """Cover ``shape`` with whole slices, about ``SLAB_VOXELS`` at a time."""
    depth, height, width = shape
    yield from boxes(shape, (max(1, min(depth, SLAB_VOXELS // max(1, height * width))), height, width))
