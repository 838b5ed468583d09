"""Instances that touch, set apart: label maps as a few masks in each of which every object is one whole instance."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations, product
from typing import Any

import numpy as np
import numpy.typing as npt


def without_contacts(labels: npt.NDArray[Any]) -> Iterator[npt.NDArray[np.bool_]]:
    """Yield masks that hold every instance once, and no two instances that touch (26 or 8 neighbours).

    ``labels``: (y, x) or (z, y, x), integers or booleans, 0 = background. The masks are a colouring of the graph of
    touching instances: one mask if nothing touches, and rarely more than ten. What an instance looks like to anything
    that stays within it and its background does not depend on the mask that it shares.
    """
    pairs = contacts(labels)
    if not len(pairs):
        yield labels != 0
        return
    neighbours: dict[int, list[int]] = defaultdict(list)
    for low, high in pairs.tolist():
        neighbours[high].append(low)
        neighbours.setdefault(low, [])
    colours: dict[int, int] = {}
    for id_ in sorted(neighbours):
        taken = {colours[other] for other in neighbours[id_]}
        colours[id_] = next(colour for colour in range(len(taken) + 1) if colour not in taken)
    later: dict[int, list[int]] = defaultdict(list)
    for id_, colour in colours.items():
        if colour:
            later[colour].append(id_)
    coloured = np.isin(labels, np.array([id_ for ids in later.values() for id_ in ids], labels.dtype))
    yield (labels != 0) & ~coloured
    for ids in later.values():
        yield np.isin(labels, np.array(ids, labels.dtype))


def contacts(labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the pairs of ids (rows, the lower one first) with voxels that share a face, an edge or a corner.

    Two voxels touch exactly if one cube of 2 x 2 x 2 voxels holds both, so cubes whose highest and lowest id differ
    are all that has to be looked at.
    """
    nothing = np.zeros((0, 2), labels.dtype)
    highest = int(labels.max(initial=0))
    if highest <= 1:  # a mask
        return nothing
    volume = labels if labels.ndim == 3 else labels[None]
    unsigned = np.min_scalar_type(highest)
    found = [nothing]
    for z in range(max(1, len(volume) - 1)):
        pair = volume[z : z + 2]
        ids = pair.astype(unsigned, copy=False)
        high, low = ids.max(axis=0), (ids - unsigned.type(1)).min(axis=0)  # background: the highest number of all
        for axis in (0, 1):
            if high.shape[axis] > 1:
                (high_a, high_b), (low_a, low_b) = _halves(high, axis), _halves(low, axis)
                high, low = np.maximum(high_a, high_b), np.minimum(low_a, low_b)
        y, x = np.nonzero((high != 0) & (high - unsigned.type(1) != low))
        if len(y):
            last = np.array(pair.shape) - 1
            corners = [
                pair[min(dz, last[0]), np.minimum(y + dy, last[1]), np.minimum(x + dx, last[2])]
                for dz, dy, dx in product((0, 1), repeat=3)
            ]
            found.append(_distinct(corners))
    return np.asarray(np.unique(np.concatenate(found), axis=0))


def _halves(values: npt.NDArray[Any], axis: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    return (values[:-1], values[1:]) if axis == 0 else (values[:, :-1], values[:, 1:])


def _distinct(corners: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    pairs = []
    for one, other in combinations(corners, 2):
        differ = (one != other) & (one != 0) & (other != 0)
        pairs.append(np.stack([np.minimum(one, other)[differ], np.maximum(one, other)[differ]], axis=1))
    return np.asarray(np.unique(np.concatenate(pairs), axis=0))
