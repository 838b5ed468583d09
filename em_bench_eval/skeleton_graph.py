"""The graph of a skeleton: neighbouring voxels, a minimum spanning forest in nm, connected parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse import csgraph

from .components import kernels
from .simple_points import OFFSETS

Ints = npt.NDArray[np.int64]

_AFTER_CENTRE = slice(len(OFFSETS) // 2 + 1, None)  # one of each pair of opposite neighbours


@dataclass(frozen=True)
class Edges:
    """Pairs of nodes, and how long each is in nm; shorter edges first."""

    start: Ints
    end: Ints
    length_nm: npt.NDArray[np.float64]

    def select(self, chosen: npt.NDArray[np.bool_]) -> Edges:
        """Keep the edges where the mask is True."""
        return Edges(self.start[chosen], self.end[chosen], self.length_nm[chosen])


def edges_between(voxels: Ints, shape: Sequence[int], ids: npt.NDArray[Any], voxel_size_nm: Sequence[float]) -> Edges:
    """Return all pairs of skeleton voxels that are neighbours (26, in images 8) and have the same id.

    ``voxels``: ascending flat positions in a label map of ``shape``; nodes are positions in this array. ``ids``: the
    instance of each. Lengths are distances between voxel centres.
    """
    places = np.unravel_index(voxels, tuple(shape))
    steps = []
    for offset in OFFSETS[_AFTER_CENTRE]:
        if len(shape) == 3 or offset[0] == 0:
            step = offset[-len(shape) :]
            length = sum((s * edge) ** 2 for s, edge in zip(step, voxel_size_nm, strict=True)) ** 0.5
            steps.append((length, step))
    found = []
    for length, step in sorted(steps):
        within = np.ones(len(voxels), bool)
        for place, size, s in zip(places, shape, step, strict=True):
            if s:
                within &= (place + s >= 0) & (place + s < size)
        start = np.flatnonzero(within)
        wanted = voxels[start] + int(np.dot(step, [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]))
        end = np.minimum(np.searchsorted(voxels, wanted), len(voxels) - 1)
        joined = (voxels[end] == wanted) & (ids[start] == ids[end])
        found.append((start[joined], end[joined], np.full(int(joined.sum()), length)))
    return Edges(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def spanning_forest(n_nodes: int, edges: Edges) -> npt.NDArray[np.bool_]:
    """Mark the edges of the minimum spanning forest; among edges of one length the earlier one wins."""
    compiled = kernels()
    if compiled is not None:
        return compiled.unite(n_nodes, edges.start, edges.end)[0]
    rank = np.arange(1, len(edges.start) + 1, dtype=np.float64)  # distinct weights: there is only one such forest
    graph = sparse.csr_matrix((rank, (edges.start, edges.end)), shape=(n_nodes, n_nodes))
    chosen = np.zeros(len(rank), bool)
    chosen[csgraph.minimum_spanning_tree(graph).data.astype(np.int64) - 1] = True
    return chosen


def connected_parts(n_nodes: int, edges: Edges) -> Ints:
    """Number the connected parts 0, 1, ... in the order of their first node; return each node's number."""
    compiled = kernels()
    if compiled is not None:
        parts = compiled.unite(n_nodes, edges.start, edges.end)[1]
    else:
        ones = np.ones(len(edges.start), np.int8)
        graph = sparse.csr_matrix((ones, (edges.start, edges.end)), shape=(n_nodes, n_nodes))
        parts = csgraph.connected_components(graph, directed=False)[1]
    _, first, numbers = np.unique(parts, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[numbers].astype(np.int64)
