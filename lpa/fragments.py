"""Fragments of one component: the basins of its distance transform, and how they hang together.

::

      .-----.     .---.          depth        /\\            /\\
     (   a   )---(  b  )         (nm)        /  \\   neck   /  \\
      '-----'     '---'                  ___/    \\________/    \\___
                                             a: peak        b: peak

Every voxel is as deep as it is far from the nearest voxel outside. A fragment is what drains to one local maximum of
depth (its peak). Two touching fragments have a saddle: the depth of the best way from one to the other, half the width
of their neck. Persistence (the lower peak minus the saddle, nm) and neck ratio (saddle / lower peak, 1 = no neck) are
the two standard measures of a cut; see Grimaud 1992 (dynamics) and Beucher & Meyer 1993 (watershed).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lpa.label import label


@dataclass(frozen=True)
class Fragments:
    """Basins of one component and the contacts between them; fragment ``i`` is written ``i + 1`` in ``basin``."""

    basin: npt.NDArray[np.int32]  # (z, y, x), 0 outside the component
    peak: npt.NDArray[np.float64]  # (n,) depth of the deepest voxel, nm
    voxels: npt.NDArray[np.int64]  # (n,)
    contacts: npt.NDArray[np.int64]  # (m, 2) touching fragments, ascending
    saddle: npt.NDArray[np.float64]  # (m,) depth of the way between them, nm


@dataclass(frozen=True)
class Neck:
    """The most persistent place to cut a component in two."""

    ratio: float  # saddle / lower peak, 0 to 1; 1 where there is nothing to cut
    persistence_nm: float  # lower peak - saddle
    saddle_nm: float


def fragment(mask: npt.NDArray[np.bool_], voxel_size: tuple[float, float, float]) -> Fragments:
    """Cut a component into the basins of its depth.

    Args:
        mask: ``(z, y, x)``, the component in its bounding box, with one voxel of surroundings except at the border of
            the volume: beyond that nothing is known, so the border is no surface.
        voxel_size: ``(z, y, x)`` in nm.

    Returns:
        Fragments by skimage's watershed, started from every 6-connected plateau of local maxima; each is
        6-connected.
    """
    from skimage.segmentation import watershed

    # a mask that fills its box has no outside voxel at all; scipy's result is undefined there
    depth = ndimage.distance_transform_edt(mask, sampling=voxel_size) if not mask.all() else np.ones(mask.shape)
    maxima = mask & (depth == ndimage.maximum_filter(depth, size=3))
    markers = label(maxima, 6, "compact")
    basin = watershed(-depth, markers.astype(np.int32), mask=mask).astype(np.int32)
    # voxels that meet deeper ones at edges or corners only are no maxima, yet nothing drains through there
    apart = label(mask & (basin == 0), 6, "compact")
    basin += np.where(apart > 0, apart.astype(np.int32) + int(basin.max()), 0)
    count = int(basin.max())
    peak = np.zeros(count)
    np.maximum.at(peak, basin[mask] - 1, depth[mask])
    contacts, saddle = _contacts(basin, depth, count)
    voxels = np.bincount(basin.ravel(), minlength=count + 1)[1:]
    return Fragments(basin, peak, voxels, contacts, saddle)


def _contacts(
    basin: npt.NDArray[np.int32], depth: npt.NDArray[np.float64], count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    keys, ways = [np.zeros(0, np.int64)], [np.zeros(0)]
    for axis in range(3):
        here, there = _neighbours(axis)
        a, b = basin[here], basin[there]
        touching = (a != b) & (a > 0) & (b > 0)
        low, high = np.minimum(a[touching], b[touching]), np.maximum(a[touching], b[touching])
        keys.append((low.astype(np.int64) - 1) * count + high - 1)
        ways.append(np.minimum(depth[here][touching], depth[there][touching]))
    unique, index = np.unique(np.concatenate(keys), return_inverse=True)
    saddle = np.zeros(len(unique))
    np.maximum.at(saddle, index, np.concatenate(ways))
    return np.stack(np.divmod(unique, max(count, 1)), axis=1), saddle


def _neighbours(axis: int) -> tuple[Any, Any]:
    here, there = [slice(None)] * 3, [slice(None)] * 3
    here[axis], there[axis] = slice(None, -1), slice(1, None)
    return tuple(here), tuple(there)


class Forest:
    """Union-find over fragments; a tree is named by its smallest member, so results depend on no order of unions."""

    def __init__(self, size: int):
        self.parent = list(range(size))

    def find(self, node: int) -> int:
        """Return the name of the tree that holds ``node``."""
        parent = self.parent
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    def union(self, a: int, b: int) -> int:
        """Join two trees, given by name; return the name of the result."""
        low, high = min(a, b), max(a, b)
        self.parent[high] = low
        return low

    def names(self) -> npt.NDArray[np.int64]:
        """Name of the tree of every node."""
        return np.array([self.find(node) for node in range(len(self.parent))], np.int64)


def deepest_first(fragments: Fragments) -> npt.NDArray[np.int64]:
    """Order of the contacts: widest neck first, ties in raster order of the fragments."""
    order = np.lexsort((fragments.contacts[:, 1], fragments.contacts[:, 0], -fragments.saddle))
    return np.asarray(order, np.int64)


def weakest_neck(fragments: Fragments) -> Neck:
    """Return the most persistent cut of a component: where it would be divided first."""
    forest, peak = Forest(len(fragments.peak)), fragments.peak.tolist()
    weakest = Neck(1.0, 0.0, max(peak, default=0.0))
    contacts, saddles = fragments.contacts.tolist(), fragments.saddle.tolist()
    for index in deepest_first(fragments).tolist():
        a, b = (forest.find(node) for node in contacts[index])
        if a == b:
            continue
        lower, saddle = min(peak[a], peak[b]), saddles[index]
        if lower - saddle > weakest.persistence_nm:
            weakest = Neck(saddle / lower, lower - saddle, saddle)
        peak[forest.union(a, b)] = max(peak[a], peak[b])
    apart = sorted({forest.find(node) for node in range(len(peak))}, key=lambda root: -peak[root])
    if len(apart) > 1 and peak[apart[1]] > weakest.persistence_nm:  # they meet in edges or corners only
        weakest = Neck(0.0, peak[apart[1]], 0.0)
    return weakest
