"""Instances from affinities: maps that say of a place and the one at an offset whether one instance holds both.

Offsets are whole steps on the grid that the network sees, ``affinity:0,4`` or ``affinity:1,0,0``. Those of one step
along one axis join; the longer ones, where a rule asks for them, keep apart (``mutex_watershed``). Each says only what
it is sure of: above a threshold a short one joins, below it a long one keeps apart. What is left over is small.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from baselines.mutex_watershed import mutex_watershed

AFFINITY = "affinity:"  # + offset
Offset = tuple[int, ...]
Values = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int32]
Slices = tuple[slice, ...]


def offsets_in(map_names: Sequence[str]) -> dict[str, Offset]:
    """Return the offset of each affinity map among ``map_names``."""
    return {
        name: tuple(int(step) for step in name[len(AFFINITY) :].split(","))
        for name in map_names
        if name.startswith(AFFINITY)
    }


def is_short(offset: Offset) -> bool:
    """True for one step along one axis."""
    return sum(abs(step) for step in offset) == 1


def join_all_axes(map_names: Sequence[str], axes: int) -> bool:
    """True if neighbours along each of the axes of an image (2) or a volume (3) have an affinity.

    Without one along z the slices of a volume would stay apart: a 2D model's affinities make no instances of a volume.
    """
    short = [offset for offset in offsets_in(map_names).values() if len(offset) == axes and is_short(offset)]
    return {axis for offset in short for axis in range(axes) if offset[axis]} == set(range(axes))


def both_ends(shape: Sequence[int], offset: Offset) -> tuple[Slices, Slices]:
    """Return the places that have a partner at ``offset`` inside ``shape``, and the partners."""
    here = tuple(slice(max(0, -step), max(0, min(size, size - step))) for size, step in zip(shape, offset, strict=True))
    there = tuple(slice(max(0, step), max(0, min(size, size + step))) for size, step in zip(shape, offset, strict=True))
    return here, there


def edges_of(
    ids: npt.NDArray[Any],
    groups: npt.NDArray[Any],
    offsets: Sequence[Offset],
    values: Callable[[int], Values],
    threshold: float,
    repulsive: bool,
) -> tuple[Any, Any, Values, npt.NDArray[np.bool_]]:
    """List the edges between places of different ``ids`` inside one group: ends (ids), strength, and whether it joins.

    ``groups``: 0 is nowhere. ``values(k)``: affinities of ``offsets[k]``, in the shape of ``ids`` and ``groups``;
    asked for one after the other. Edges come in the order of offsets, then in raster order.
    """
    columns: list[tuple[Any, ...]] = []
    for k, offset in enumerate(offsets):
        joins = is_short(offset)
        if not joins and not repulsive:
            continue
        here, there = both_ends(ids.shape, offset)
        value = values(k)[here]
        sure = value > threshold if joins else value < threshold
        sure &= (groups[here] == groups[there]) & (groups[here] > 0)
        first, second = ids[here][sure], ids[there][sure]
        strength = value[sure]
        differ = first != second
        strength = strength[differ] if joins else 1 - strength[differ]
        columns.append((first[differ], second[differ], strength, np.full(len(strength), joins)))
    if not columns:
        return np.zeros(0, ids.dtype), np.zeros(0, ids.dtype), np.zeros(0, np.float32), np.zeros(0, bool)
    first, second, strength, joining = (np.concatenate(column) for column in zip(*columns, strict=True))
    return first, second, strength, joining


def pieces(
    groups: npt.NDArray[Any],
    offsets: Sequence[Offset],
    values: Callable[[int], Values],
    threshold: float,
    repulsive: bool,
) -> Labels:
    """Take groups (connected components, 0 = none) apart; returns pieces 1..N in the order of their first places.

    No piece lies in two groups. ``repulsive``: also listen to the long offsets; without them pieces are the connected
    components over short affinities above the threshold. Parameters as in ``edges_of``.
    """
    inside = groups > 0
    count = int(np.count_nonzero(inside))
    ids = np.zeros(groups.shape, np.int32 if count < 2**31 else np.int64)
    ids[inside] = np.arange(count)
    piece_of = mutex_watershed(count, *edges_of(ids, groups, offsets, values, threshold, repulsive))
    is_first = piece_of == np.arange(count)
    labels = np.zeros(groups.shape, np.int32)
    labels[inside] = np.cumsum(is_first)[piece_of]
    return labels


def affinity_maps(maps: Mapping[str, Values]) -> tuple[list[Offset], list[Values]]:
    """Return the offsets of the affinity maps among ``maps``, and the maps."""
    found = offsets_in(list(maps))
    return list(found.values()), [maps[name] for name in found]
