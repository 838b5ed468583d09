"""Skeletons of organelles: lines in tubules, medial surfaces in sheets; no object is ever lost.

The foreground is peeled in the order of its distance to the background (distance-ordered homotopic thinning, Pudney
1998, doi:10.1006/cviu.1998.0680), deleting nothing but simple voxels, so the skeleton has exactly the objects, tunnels
and cavities of the mask (26-connected foreground, 6-connected background; 8 and 4 in images). The voxels of one of the
eight parity subfields (even or odd z, y, x) are never neighbours: deleting them all at once is the same as one by one
(Bertrand & Aktouf 1994, Proc. SPIE 2356, 113-124). Parity counts from the corner of the bounding box, so that empty
margins change nothing.

What stays beyond topology are *anchors*. A voxel becomes one if, when its turn comes, it is the tip of a line, or holds
a line together, or (in volumes) is inside a surface one voxel thick (isthmuses: Couprie & Bertrand 2016,
doi:10.1016/j.patrec.2015.03.014), provided that it is *salient*: that no thicker part of its own body explains it as
mere boundary noise. A body of radius R explains whatever is thinner than R - 0.4 x at a distance x from its centre,
measured within the mask (in surfaces, less half a voxel edge): a branch of radius r stays if it sticks out of its
parent by more than 1.5 (R - r).

What that means: a tube of any diameter, odd or even, becomes a line that ends one tube radius before the tube does.
A sheet becomes a medial surface, and not a line, because a round sheet (a Golgi cisterna) would become one voxel as a
line, and a metric would no longer see it. A ball becomes one or two voxels. A cavity keeps a closed shell around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .simple_points import CURVE, OFFSETS, SIMPLE, SURFACE, TIP, classify
from .squared_distance import squared_distance, voxel_steps
from .thinning_compiled import ANCHORED, LEVEL, SALIENT_LINE, SALIENT_SURFACE, kernels
from .touching import without_contacts

Ints = npt.NDArray[np.int64]
State = npt.NDArray[np.uint16]

_SLOPE = 0.4  # how fast a body's claim on its surroundings falls with distance
_UNITS_PER_EDGE = 16  # resolution of distances, in the shortest voxel edge
_UNITS_PER_LEVEL = 4
_SURFACE_SLACK = _UNITS_PER_EDGE // 2  # in surfaces, half an edge less is explained: that is how distances jitter there


@dataclass(frozen=True)
class Skeleton:
    """The skeleton voxels of a label map.

    ``voxels``: ascending positions in the flattened map (C order). ``radius_nm``: for each, the distance to the nearest
    voxel outside its instance, to a quarter of the shortest voxel edge.
    """

    voxels: Ints
    radius_nm: npt.NDArray[np.float64]


def skeletonise(labels: npt.NDArray[Any], voxel_size_nm: Sequence[float]) -> Skeleton:
    """Thin every instance of a label map, or a boolean mask; instances that touch are thinned separately.

    ``labels``: (y, x) or (z, y, x), integers, 0 = background, or booleans. ``voxel_size_nm``: in the same order. What
    lies outside the array counts as background.
    """
    occupied = [
        np.flatnonzero((labels != 0).any(axis=tuple(other for other in range(labels.ndim) if other != axis)))
        for axis in range(labels.ndim)
    ]
    if not len(occupied[0]):
        return Skeleton(np.zeros(0, np.int64), np.zeros(0, np.float64))
    box = tuple(slice(int(where[0]), int(where[-1]) + 1) for where in occupied)
    parts = [_thin_mask(mask, tuple(voxel_size_nm)) for mask in without_contacts(labels[box])]
    places, radii = (np.concatenate([part[index] for part in parts]) for index in range(2))
    inside = np.unravel_index(places, tuple(b.stop - b.start for b in box))
    voxels = np.ravel_multi_index(tuple(i + b.start for i, b in zip(inside, box, strict=True)), labels.shape)
    order = np.argsort(voxels, kind="stable")
    return Skeleton(np.asarray(voxels, np.int64)[order], radii[order])


def _thin_mask(mask: npt.NDArray[np.bool_], voxel_size_nm: tuple[float, ...]) -> tuple[Ints, npt.NDArray[np.float64]]:
    """Return the positions in the flattened mask that remain, and their radii in nm."""
    image = mask.ndim == 2
    padded = np.pad(mask[None] if image else mask, 1)
    steps, step_nm = voxel_steps((min(voxel_size_nm), *voxel_size_nm) if image else voxel_size_nm)
    squared = squared_distance(padded[1:2] if image else padded, steps)
    del padded
    state = _state(np.pad(squared, ((1, 1), (0, 0), (0, 0))) if image else squared, steps, surfaces=not image)
    del squared
    _thin(state)
    inner = state[1:-1, 1:-1, 1:-1]
    left = np.concatenate([np.flatnonzero(part) + z * part.size for z, part in enumerate(inner)])
    levels = np.concatenate([part[part != 0] & LEVEL for part in inner])
    return left, levels * (min(steps) * step_nm * _UNITS_PER_LEVEL / _UNITS_PER_EDGE)


def _flat_offsets(shape: tuple[int, ...]) -> Ints:
    return np.array([(z * shape[1] + y) * shape[2] + x for z, y, x in OFFSETS], np.int64)


def _state(squared: npt.NDArray[Any], steps: Sequence[int], surfaces: bool) -> State:
    """Turn squared distances into the level of each voxel, with the flags of salience; images have no surfaces."""
    unit = _UNITS_PER_EDGE / min(steps)
    highest = (LEVEL + 1) * _UNITS_PER_LEVEL - 1  # bodies more than a thousand voxels thick are peeled in any order
    distance: State = squared if squared.dtype == np.uint16 else np.empty(squared.shape, np.uint16)
    for z, part in enumerate(squared):
        top = int(part.max())
        if part.dtype == np.uint16:  # in place, by a table
            distance[z] = np.minimum(np.sqrt(np.arange(top + 1)) * unit, highest).astype(np.uint16)[part]
        else:
            distance[z] = np.minimum(np.sqrt(part) * unit, highest)
    cost = [_SLOPE * unit * sum((o * s) ** 2 for o, s in zip(offset, steps, strict=True)) ** 0.5 for offset in OFFSETS]
    claim = distance.copy()
    _spread(claim, np.round(cost).astype(np.uint16))
    for z, part in enumerate(distance):
        excess = claim[z] - part
        inside = part != 0
        part //= _UNITS_PER_LEVEL
        part[inside & (excess == 0)] |= SALIENT_LINE
        if surfaces:
            part[inside & (excess <= _SURFACE_SLACK)] |= SALIENT_SURFACE
    return distance


def _spread(claim: State, cost: npt.NDArray[np.uint16]) -> None:
    """Raise every claim to the highest ``neighbour's claim - cost[neighbour]``, again and again, until all stand.

    The result is unique, so that any order gives it.
    """
    compiled = kernels()
    if compiled is not None:
        compiled.spread(claim, cost)
        return
    changed: npt.NDArray[np.bool_] = np.asarray(claim.any(axis=(1, 2)))
    while changed.any():
        for z in [*np.flatnonzero(changed), *np.flatnonzero(changed)[::-1]]:
            window, here = claim[z - 1 : z + 2], claim[z, 1:-1, 1:-1]
            changed[z] = False
            raised = here.copy()
            for (dz, dy, dx), price in zip(OFFSETS, cost, strict=True):
                if price:
                    rows, columns = slice(1 + dy, claim.shape[1] - 1 + dy), slice(1 + dx, claim.shape[2] - 1 + dx)
                    offer = window[1 + dz, rows, columns]
                    np.maximum(raised, np.maximum(offer, price) - price, out=raised)
            raised[here == 0] = 0
            if not np.array_equal(raised, here):
                here[:] = raised
                changed[z - 1 : z + 2] |= claim[z - 1 : z + 2].any(axis=(1, 2))


def _thin(state: State) -> None:
    """Delete voxels until none can go.

    Level after level, rounds are repeated until one deletes nothing. A round visits the eight subfields in turn; the
    first round of a level visits its voxels, the next ones the neighbours of what was deleted in the round before.
    """
    flat, offsets = state.reshape(-1), _flat_offsets(state.shape)
    compiled = kernels()
    if compiled is not None:
        order = np.empty(int(np.count_nonzero(flat)), np.int32 if flat.size < 1 << 31 else np.int64)
        compiled.thin(flat, offsets, order, compiled.first_queue(state, order))
        return
    foreground = np.flatnonzero(flat)
    levels = flat[foreground] & LEVEL
    ascending = np.argsort(levels, kind="stable")
    foreground, levels = foreground[ascending], levels[ascending]
    starts = np.flatnonzero(np.concatenate([[True], levels[1:] != levels[:-1]]))
    for begin, end in zip(starts, [*starts[1:], len(levels)], strict=True):
        queue = foreground[begin:end]
        while len(queue):
            z, y, x = np.unravel_index(queue, state.shape)
            fields = (z & 1) << 2 | (y & 1) << 1 | x & 1
            gone = np.concatenate([_visit(flat, queue[fields == field], offsets) for field in range(8)])
            near = np.unique(gone[:, None] + offsets)
            queue = near[(flat[near] != 0) & (flat[near] & (ANCHORED | LEVEL) <= levels[begin])]


def _visit(flat: State, voxels: Ints, offsets: Ints) -> Ints:
    """Anchor or delete voxels of which no two are neighbours; return the deleted ones."""
    voxels = voxels[flat[voxels] != 0]
    codes = np.zeros(len(voxels), np.uint32)
    for bit, offset in enumerate(offsets):
        if offset:
            codes |= (flat[voxels + offset] != 0).astype(np.uint32) << np.uint32(bit)
    kinds = classify(codes)
    salience = np.where(kinds == SURFACE, SALIENT_SURFACE, SALIENT_LINE)
    kept = np.isin(kinds, (CURVE, TIP, SURFACE)) & (flat[voxels] & salience != 0)
    flat[voxels[kept]] |= ANCHORED
    gone: Ints = voxels[~kept & ((kinds == SIMPLE) | (kinds == TIP))]
    flat[gone] = 0
    return gone
