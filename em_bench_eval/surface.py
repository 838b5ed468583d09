"""Surfaces of instances, and exact distances to the nearest element of a surface, in nm.

A *surface element* is a voxel of an instance with at least one face neighbour (6 in 3D, 4 in 2D) that is not of the
same instance: background and touching instances alike. Neither the border of the image nor a contact with an ignored
voxel makes a surface: nobody knows what is beyond. Distances are between voxel centres.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Groups = npt.NDArray[np.int32]
Ints = npt.NDArray[np.int64]

_BLOCK_VOXELS = 1 << 23  # planes that are worked on at a time hold at most so many voxels; bounds the working memory
_BALL_REACH = 8  # voxels along an axis, at most
# Neighbours that are tried one by one before a tree is asked, about 4 and 2 voxels around in 3D: thousands of small
# trees cost more to build than to ask, one large tree does not (measured).
_BALL_MANY_GROUPS, _BALL_ONE_GROUP = 257, 57
_TREE_QUERIES = 1 << 20  # at a time
_DENSE = 8  # a transform costs per voxel of the block what a tree costs per 8 voxels that are asked for (measured)
_MARGIN_VOXELS = 1 << 22  # planes around a block, on either side, that its transform sees


def blocks(shape: tuple[int, ...]) -> list[slice]:
    """Cut the first axis into slices of at most ``_BLOCK_VOXELS`` voxels (but at least one plane)."""
    thickness = max(1, _BLOCK_VOXELS // max(1, math.prod(shape[1:])))
    return [slice(start, min(shape[0], start + thickness)) for start in range(0, shape[0], thickness)]


def surface_positions(labels: npt.NDArray[Any], ignore: Bools | None = None) -> Ints:
    """Return the flat positions of the surface elements of all instances, ascending.

    ``labels``: integers or booleans, any number of axes, 0 = background. ``ignore``: bool mask of the same shape;
    ignored voxels are no surface elements and contacts with them make none.
    """
    parts = [np.zeros(0, np.int64)]
    for rows in blocks(labels.shape):
        seen = slice(max(0, rows.start - 1), rows.stop + 1)
        block = labels[seen]
        known = None if ignore is None else ~ignore[seen]
        edge = np.zeros(block.shape, bool)
        for axis in range(labels.ndim):
            before = (slice(None),) * axis + (slice(None, -1),)
            after = (slice(None),) * axis + (slice(1, None),)
            contact = block[before] != block[after]
            if known is not None:
                contact &= known[before] & known[after]
            edge[before] |= contact
            edge[after] |= contact
        edge &= block != 0
        first = rows.start - seen.start
        inside = edge[first : first + rows.stop - rows.start]
        parts.append(np.flatnonzero(inside) + rows.start * math.prod(labels.shape[1:]))
    return np.concatenate(parts)


class Surface:
    """Surface elements of an image in groups (one for each matched pair, or one alone), to measure distances to.

    The near ones, which are nearly all in a sensible comparison, are found by looking at the neighbours in order of
    distance, in a painted block of the image; the far ones are asked of a k-d tree per group or, where a group's
    queries fill a block, of a distance transform of the block. All three are exact.
    """

    def __init__(self, positions: Ints, groups: Groups, shape: tuple[int, ...], voxel_size_nm: tuple[float, ...]):
        """Take elements of a (z, y, x) or (y, x) image: flat ``positions``, ascending, and ``groups`` >= 0."""
        self.positions, self.groups = positions, groups
        self._shape = (1,) * (3 - len(shape)) + tuple(shape)
        self._size = (1.0,) * (3 - len(shape)) + tuple(voxel_size_nm)
        many = bool(len(groups)) and bool((groups != groups[0]).any())
        self._offsets, self._offset_nm = _ball(self._shape, self._size, _BALL_MANY_GROUPS if many else _BALL_ONE_GROUP)
        self._halo = tuple(int(reach) for reach in np.abs(self._offsets).max(axis=0))
        self._by_group: tuple[Ints, Ints] | None = None
        self._tree: tuple[int, Any, Ints] = (-1, None, positions[:0])

    def distances_nm(self, positions: Ints, groups: Groups) -> Floats:
        """Return how far each voxel (flat, ascending) is from the nearest element of its group; inf without any."""
        distances = np.full(len(positions), np.inf)
        if not len(self.positions):
            return distances
        plane = self._shape[1] * self._shape[2]
        for rows in blocks(self._shape):
            first, last = np.searchsorted(positions, (rows.start * plane, rows.stop * plane))
            if first < last:
                inside = slice(int(first), int(last))
                self._try_ball(rows, positions[inside], groups[inside], distances[inside])
                self._try_transform(rows, positions[inside], groups[inside], distances[inside])
        self._ask_trees(positions, groups, distances)
        return distances

    def _try_ball(self, rows: slice, positions: Ints, groups: Groups, distances: Floats) -> None:
        """Fill in the distances of elements within the ball of offsets."""
        painted = self._paint(rows)
        strides = np.array(painted.strides) // painted.itemsize
        flat = painted.reshape(-1)
        at = (self._unravel(positions) + self._halo - (rows.start, 0, 0)) @ strides
        wanted, left = groups + np.int32(1), np.arange(len(positions))
        for step, step_nm in zip((self._offsets @ strides).tolist(), self._offset_nm, strict=True):
            hit = flat[at + step] == wanted
            if hit.any():
                distances[left[hit]] = step_nm
                at, wanted, left = at[~hit], wanted[~hit], left[~hit]
            if not len(left):
                break

    def _paint(self, rows: slice) -> Groups:
        """Paint group + 1 at the elements in these planes and in a halo, which is on all sides to save bound checks."""
        halo, (_, height, width) = self._halo, self._shape
        painted = np.zeros((rows.stop - rows.start + 2 * halo[0], height + 2 * halo[1], width + 2 * halo[2]), np.int32)
        inside = self._inside(rows.start - halo[0], rows.stop + halo[0])
        z, y, x = (self._unravel(self.positions[inside]) + halo - (rows.start, 0, 0)).T
        painted[z, y, x] = self.groups[inside] + 1
        return painted

    def _try_transform(self, rows: slice, positions: Ints, groups: Groups, distances: Floats) -> None:
        """Fill in distances by a transform of the block and a margin, where the queries of one group fill the block.

        A distance counts if no plane that the transform has not seen is nearer.
        """
        from scipy import ndimage

        left = np.flatnonzero(np.isinf(distances))
        depth, height, width = self._shape
        margin = max(1, _MARGIN_VOXELS // (height * width))
        low, high = max(0, rows.start - margin), min(depth, rows.stop + margin)
        if len(left) * _DENSE < (high - low) * height * width or (groups != groups[0]).any():
            return
        inside = self._inside(low, high)
        mine = self.positions[inside][self.groups[inside] == groups[0]]
        if not len(mine):
            return
        free = np.ones((high - low, height, width), bool)
        free.reshape(-1)[mine - low * height * width] = False
        nearest = ndimage.distance_transform_edt(
            free, sampling=self._size, return_distances=False, return_indices=True
        ).reshape(3, -1)
        for start in range(0, len(left), _TREE_QUERIES):
            some = left[start : start + _TREE_QUERIES]
            where = self._unravel(positions[some]) - (low, 0, 0)
            found = _length_nm(nearest[:, positions[some] - low * height * width].T - where, self._size)
            below = (where[:, 0] + 1) * self._size[0] if low > 0 else np.inf
            above = (high - low - where[:, 0]) * self._size[0] if high < depth else np.inf
            distances[some] = np.where(found <= np.minimum(below, above), found, np.inf)

    def _ask_trees(self, positions: Ints, groups: Groups, distances: Floats) -> None:
        """Fill in whatever is left, group by group."""
        left = np.flatnonzero(np.isinf(distances))
        left = left[np.argsort(groups[left], kind="stable")]
        for members in np.split(left, np.flatnonzero(np.diff(groups[left])) + 1):
            tree, elements = self._tree_of(int(groups[members[0]])) if len(members) else (None, positions)
            if tree is None:
                continue
            for start in range(0, len(members), _TREE_QUERIES):
                some = members[start : start + _TREE_QUERIES]
                where = self._unravel(positions[some])
                nearest = elements[tree.query(where * self._size)[1]]
                distances[some] = _length_nm(self._unravel(nearest) - where, self._size)

    def _tree_of(self, group: int) -> tuple[Any, Ints]:
        """Return a tree of a group's elements, None if it has none, and their positions; remembers the last one."""
        from scipy.spatial import cKDTree

        if self._tree[0] != group:
            if self._by_group is None:
                stops = np.cumsum(np.bincount(self.groups))
                self._by_group = self.positions[np.argsort(self.groups, kind="stable")], np.append(0, stops)
            grouped, bounds = self._by_group
            elements = grouped[slice(*bounds[group : group + 2])] if group + 1 < len(bounds) else grouped[:0]
            tree = None
            if len(elements):  # they lie on a grid: such a tree is as quick to ask as a balanced one, quicker to build
                points = self._unravel(elements) * self._size
                tree = cKDTree(points, leafsize=64, balanced_tree=False, compact_nodes=False)
            self._tree = (group, tree, elements)
        return self._tree[1], self._tree[2]

    def _inside(self, low: int, high: int) -> slice:
        """Return the range of elements in the planes from ``low`` to below ``high``."""
        plane = self._shape[1] * self._shape[2]
        first, last = np.searchsorted(self.positions, (max(0, low) * plane, max(0, high) * plane))
        return slice(int(first), int(last))

    def _unravel(self, positions: Ints) -> Ints:
        """Return (n, 3) indices (z, y, x)."""
        _, height, width = self._shape
        row = positions // width  # numpy divides by a constant ten times faster than it takes remainders
        z = row // height
        return np.stack([z, row - z * height, positions - row * width], axis=1)


def _ball(shape: tuple[int, ...], voxel_size_nm: tuple[float, ...], most: int) -> tuple[Ints, Floats]:
    """Return at most so many (n, 3) offsets, nearest first, and their lengths; no other offset is as short."""
    reach = [max(0, min(length - 1, _BALL_REACH)) for length in shape]
    axes = [np.arange(-r, r + 1) for r in reach]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    length = _length_nm(offsets, voxel_size_nm)
    beyond = [(r + 1) * edge for r, edge, extent in zip(reach, voxel_size_nm, shape, strict=True) if r + 1 < extent]
    order = np.lexsort((*offsets.T, length))
    order = order[length[order] < min(beyond, default=np.inf)]
    if len(order) > most:  # cut between two lengths, so that equal ones are all in or all out
        order = order[length[order] < length[order[most]]]
    return offsets[order].astype(np.int64), length[order]


def _length_nm(offsets: npt.NDArray[np.integer[Any]], voxel_size_nm: tuple[float, ...]) -> Floats:
    """Return the lengths of (n, 3) offsets; one offset has one length, to the last bit, however it was found."""
    z, y, x = (offsets * np.array(voxel_size_nm)).T
    return np.asarray(np.sqrt(z * z + y * y + x * x), np.float64)
