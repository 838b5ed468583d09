"""Joining blocks: which components of neighbouring blocks touch, and the name that all their pieces get.

A block touches 26 others; each pair is looked at once, from the block that comes first in raster order::

      plane above        own plane          a face meets a face, an edge a line of voxels, a corner one voxel;
       . . .              . . .             all of them lie in the six face planes, so nothing else is kept
       . . .              . B >
       . . .   below:     > > >   and the 9 blocks of the next plane
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from lpa.bits import inlined, kernel

Index = tuple[int, int, int]  # of a block in the grid, (z, y, x)
Plane = npt.NDArray[Any]  # component numbers, 1..K among those of the block that touch a face; 0 = background

FORWARD: tuple[Index, ...] = tuple(
    step for step in itertools.product((-1, 0, 1), (-1, 0, 1), (-1, 0, 1)) if step > (0, 0, 0)
)
OWN_SIDE = {-1: slice(0, 1), 0: slice(None), 1: slice(-1, None)}  # where a block meets the neighbour at this step


def contacts(
    block: Index, others: Container[Index], plane: Callable[[Index, str], Plane]
) -> Iterator[tuple[Index, int, Plane, Plane]]:
    """List what a block touches: ``(neighbour, steps, own voxels, the neighbour's)``.

    Args:
        block: where it lies in the grid.
        others: the blocks that have something to touch.
        plane: gives a face, named as in ``lpa.block.FACES``, of a block.

    Yields:
        The two arrays are the touching planes, lines (one axis of length 1) or points; ``steps`` is 1, 2 or 3: along
        how many axes the neighbour lies.
    """
    for step in FORWARD:
        neighbour = (block[0] + step[0], block[1] + step[1], block[2] + step[2])
        if neighbour not in others:
            continue
        axis = next(axis for axis in range(3) if step[axis])  # the step along it is always forward
        in_plane = [step[k] for k in range(3) if k != axis]
        own = plane(block, f"{'zyx'[axis]}1")[tuple(OWN_SIDE[d] for d in in_plane)]
        other = plane(neighbour, f"{'zyx'[axis]}0")[tuple(OWN_SIDE[-d] for d in in_plane)]
        yield neighbour, sum(map(abs, step)), np.ascontiguousarray(own), np.ascontiguousarray(other)


@inlined
def _root(parent: npt.NDArray[Any], node: Any) -> Any:
    while True:
        above = np.int64(parent[node])
        if above == node:
            return node
        parent[node] = parent[above]
        node = above


@kernel
def join_planes(
    own: Plane,
    other: Plane,
    steps: int,
    own_offset: int,
    other_offset: int,
    kind: npt.NDArray[Any],
    reach: npt.NDArray[np.uint8],
    uid: npt.NDArray[np.uint64],
    parent: npt.NDArray[Any],
) -> None:
    """Union the components that touch between two blocks.

    Two voxels touch if they differ by 1 along at most ``reach`` axes (1, 2, 3 for 6, 18, 26): ``steps`` of them between
    the blocks, the others within the plane. Component ``k`` of a block is entry ``offset + k - 1`` of ``kind`` (its
    class, an index into ``reach``), ``uid`` and ``parent``; a root is the entry of its tree with the smallest ``uid``.
    """
    height, width = own.shape
    last_a = last_b = np.int64(-1)
    for i in range(height):
        for j in range(width):
            if own[i, j] == 0:
                continue
            a = own_offset + np.int64(own[i, j]) - 1
            spare = np.int64(reach[kind[a]]) - steps
            if spare < 0:
                continue
            for di in range(-1, 2):
                for dj in range(-1, 2):
                    k, m = i + di, j + dj
                    if abs(di) + abs(dj) > spare or k < 0 or m < 0 or k >= height or m >= width or other[k, m] == 0:
                        continue
                    b = other_offset + np.int64(other[k, m]) - 1
                    if (a == last_a and b == last_b) or kind[a] != kind[b]:
                        continue
                    last_a, last_b = a, b
                    root_a, root_b = _root(parent, a), _root(parent, b)
                    if uid[root_a] < uid[root_b]:
                        parent[root_b] = root_a
                    elif root_a != root_b:
                        parent[root_a] = root_b


@kernel
def flatten(parent: npt.NDArray[Any]) -> None:
    """Point every entry at its root."""
    for node in range(parent.size):
        parent[node] = _root(parent, node)
