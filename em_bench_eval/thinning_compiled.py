"""The inner loops of thinning as numba compiles them; ``thinning`` and ``squared_distance`` hold their twins in numpy.

Both give the same voxels, which the tests hold; without numba thinning takes several times as long.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .numba_kernels import compile_kernels
from .simple_points import CENTRE, FACES, NEAREST_18, X_DOWN, X_UP, Y_DOWN, Y_UP, Z_DOWN, Z_UP

Ints = npt.NDArray[np.int64]
State = npt.NDArray[np.uint16]

LEVEL = 0x0FFF  # a voxel's state: its distance level, 0 = background, and four flags
SALIENT_LINE = 0x1000
QUEUED = 0x2000
ANCHORED = 0x4000
SALIENT_SURFACE = 0x8000


class Kernels(NamedTuple):
    """The compiled functions below, without their underscore."""

    spread: Callable[[State, npt.NDArray[np.uint16]], None]
    first_queue: Callable[[State, npt.NDArray[Any]], Ints]
    thin: Callable[[npt.NDArray[np.uint16], Ints, npt.NDArray[Any], Ints], None]


@cache
def kernels() -> Kernels | None:
    """Return the compiled functions; None without a working numba."""
    found = compile_kernels(_spread, _first_queue, _thin)
    return None if found is None else Kernels(*found)


def _spread(claim: State, cost: npt.NDArray[np.uint16]) -> None:
    """Do what ``thinning._spread`` does: sweep down and up until nothing changes."""
    depth, height, width = claim.shape
    best = np.zeros(width, np.int32)
    changed = True
    downward = True
    while changed:
        changed = False
        for row in range((depth - 2) * (height - 2)):
            place = row if downward else (depth - 2) * (height - 2) - 1 - row
            z, y = place // (height - 2) + 1, place % (height - 2) + 1
            here = claim[z, y]
            best[:] = 0
            for dz in range(3):
                for dy in range(3):
                    if dz != 1 or dy != 1:
                        other = claim[z + dz - 1, y + dy - 1]
                        first = (dz * 3 + dy) * 3
                        straight, aslant = np.int32(cost[first + 1]), np.int32(cost[first])
                        for x in range(1, width - 1):
                            offer = max(np.int32(other[x - 1]), np.int32(other[x + 1])) - aslant
                            best[x] = max(best[x], offer, np.int32(other[x]) - straight)
            along = np.int32(cost[CENTRE - 1])
            for x in range(1, width - 1):
                if here[x]:
                    offer = max(best[x], np.int32(here[x - 1]) - along)
                    if offer > here[x]:
                        here[x] = offer
                        changed = True
            for x in range(width - 2, 0, -1):
                if here[x] and np.int32(here[x + 1]) - along > here[x]:
                    here[x] = np.int32(here[x + 1]) - along
                    changed = True
        downward = not downward


def _first_queue(state: State, order: npt.NDArray[Any]) -> Ints:
    """Sort the foreground into ``order`` by level, then by subfield; return where each (level, subfield) starts."""
    depth, height, width = state.shape
    flat = state.ravel()
    starts = np.zeros((LEVEL + 1) * 8 + 1, np.int64)
    for fill in range(2):
        voxel = 0
        for z in range(depth):
            for y in range(height):
                row = (z & 1) << 2 | (y & 1) << 1
                for x in range(width):
                    value = flat[voxel]
                    if value:
                        bucket = (value & LEVEL) * 8 + (row | (x & 1))
                        if fill:
                            order[starts[bucket]] = voxel
                            starts[bucket] += 1
                        else:
                            starts[bucket + 1] += 1
                    voxel += 1
        if not fill:
            starts[:] = np.cumsum(starts)
    starts[1:] = starts[:-1].copy()  # filling moved every start to the next one
    starts[0] = 0
    return starts


def _thin(state: npt.NDArray[np.uint16], offsets: Ints, order: npt.NDArray[Any], starts: Ints) -> None:
    """Delete voxels from the flattened state until none can go: ``thinning._thin``, voxel by voxel."""
    flips = np.zeros(27, np.int64)  # what a step to the neighbour does to the subfield
    for bit in range(27):
        flips[bit] = (bit // 9 != 1) << 2 | (bit // 3 % 3 != 1) << 1 | (bit % 3 != 1)
    queue: Ints = np.empty(1024, np.int64)
    queue_field: Ints = np.empty(1024, np.int64)
    turn = np.empty(1024, np.int64)
    bounds = np.zeros(9, np.int64)
    place = np.zeros(9, np.int64)
    for level in range(1, LEVEL + 1):
        first = True
        n_queued = starts[level * 8 + 8] - starts[level * 8]
        while n_queued > 0:
            n_queued = 0
            for field in range(8):
                begin = starts[level * 8 + field] if first else bounds[field]
                end = starts[level * 8 + field + 1] if first else bounds[field + 1]
                for k in range(begin, end):
                    voxel = np.int64(order[k]) if first else turn[k]
                    value = state[voxel]
                    if value == 0 or value & ANCHORED:  # anchored after it was queued
                        continue
                    code = near = 0  # bits of the neighbours there are, and of those to visit again if this one goes
                    for bit in range(27):
                        other = np.int64(state[voxel + offsets[bit]])
                        code |= (other != 0) << bit
                        near |= ((other != 0) & ((other & (LEVEL | QUEUED | ANCHORED)) <= level)) << bit
                    code &= ~(1 << CENTRE)
                    near &= ~(1 << CENTRE)

                    # What simple_points.classify does, for one code.
                    objects = code & -code
                    line = objects == code  # one neighbour, or none
                    while True:
                        grown = objects | ((objects & X_UP) << 1) | ((objects & X_DOWN) >> 1)
                        grown |= ((grown & Y_UP) << 3) | ((grown & Y_DOWN) >> 3)
                        grown |= ((grown & Z_UP) << 9) | ((grown & Z_DOWN) >> 9)
                        grown &= code
                        if grown == objects:
                            break
                        objects = grown
                    background = ~code & NEAREST_18
                    faces = background & FACES
                    if code == 0 or (objects == code and faces == 0):
                        continue
                    holes = faces & -faces
                    while True:
                        grown = holes | ((holes & X_UP) << 1) | ((holes & X_DOWN) >> 1)
                        grown |= ((holes & Y_UP) << 3) | ((holes & Y_DOWN) >> 3)
                        grown |= ((holes & Z_UP) << 9) | ((holes & Z_DOWN) >> 9)
                        grown &= background
                        if grown == holes:
                            break
                        holes = grown
                    curve = objects != code
                    surface = not curve and faces & ~holes != 0

                    if ((curve or (line and not surface)) and value & SALIENT_LINE) or (
                        surface and value & SALIENT_SURFACE
                    ):
                        state[voxel] = value | ANCHORED
                    elif not curve and not surface:
                        state[voxel] = 0
                        while near:
                            bit = 0
                            while not near >> bit & 1:
                                bit += 1
                            near &= near - 1
                            if n_queued == len(queue):
                                queue = np.concatenate((queue, np.empty_like(queue)))
                                queue_field = np.concatenate((queue_field, np.empty_like(queue_field)))
                            queue[n_queued] = voxel + offsets[bit]
                            queue_field[n_queued] = field ^ flips[bit]
                            state[queue[n_queued]] |= QUEUED
                            n_queued += 1
            first = False
            bounds[:] = 0
            for k in range(n_queued):
                bounds[queue_field[k] + 1] += 1
            bounds[:] = np.cumsum(bounds)
            place[:] = bounds
            if len(turn) < n_queued:
                turn = np.empty(len(queue), np.int64)
            for k in range(n_queued):
                turn[place[queue_field[k]]] = queue[k]
                place[queue_field[k]] += 1
                state[queue[k]] &= LEVEL | SALIENT_LINE | SALIENT_SURFACE | ANCHORED
