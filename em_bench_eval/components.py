"""Sizes of connected components, and joining nodes by edges: run by run where numba is, by scipy where it is not."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from .numba_kernels import compile_kernels

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Kernels(NamedTuple):
    """The compiled functions below, without their underscore."""

    unite: Callable[[int, Ints, Ints], tuple[Bools, Ints]]
    component_sizes: Callable[[Bools, Bools], Ints]


@cache
def kernels() -> Kernels | None:
    """Return the compiled functions; None without a working numba."""
    found = compile_kernels(_unite, _component_sizes)
    return None if found is None else Kernels(*found)


def component_sizes(mask: Bools, ignore: Bools | None = None) -> Ints:
    """Return the voxels of each 26-connected (in images 8-connected) component, in the order of their first voxels.

    Voxels where ``ignore`` is True are not counted, but connect; components without a counted voxel are left out.
    """
    compiled = kernels()
    if compiled is not None:
        hidden = np.zeros((0, 0, 0), bool) if ignore is None else np.ascontiguousarray(ignore)
        volumes = [part if part.ndim == 3 else part[None] for part in (np.ascontiguousarray(mask), hidden)]
        sizes = compiled.component_sizes(*volumes)
    else:
        numbers, _ = ndimage.label(mask, structure=np.ones((3,) * mask.ndim))
        sizes = np.bincount((numbers if ignore is None else numbers[~ignore]).reshape(-1))[1:]
    return np.asarray(sizes[sizes > 0], np.int64)


def _unite(n_nodes: int, start: Ints, end: Ints) -> tuple[Bools, Ints]:
    """Join nodes edge by edge: which edges joined two parts (Kruskal's forest), and each node's part's first node."""
    part = np.arange(n_nodes)
    joins = np.zeros(len(start), np.bool_)
    for edge in range(len(start)):
        a, b = start[edge], end[edge]
        while part[a] != a:
            part[a] = part[part[a]]
            a = part[a]
        while part[b] != b:
            part[b] = part[part[b]]
            b = part[b]
        if a != b:
            joins[edge] = True
            part[max(a, b)] = min(a, b)
    for node in range(n_nodes):
        part[node] = part[part[node]]  # the part's first node comes earlier and is final
    return joins, part


def _component_sizes(mask: Bools, ignore: Bools) -> Ints:
    """Join runs of True along x with the touching runs of the rows before; ``ignore`` may be empty."""
    depth, height, width = mask.shape
    first = np.zeros(depth * height + 1, np.int64)  # of the runs of each row
    for row in range(depth * height):
        line = mask[row // height, row % height]
        n = 0
        for x in range(width):
            n += line[x] and (x == 0 or not line[x - 1])
        first[row + 1] = first[row] + n
    begin = np.empty(first[-1], np.int32)
    end = np.empty(first[-1], np.int32)
    part = np.arange(first[-1])
    sizes = np.zeros(first[-1], np.int64)
    for row in range(depth * height):
        z, y = row // height, row % height
        line = mask[z, y]
        run = first[row] - 1
        for x in range(width):
            if line[x]:
                if x == 0 or not line[x - 1]:
                    run += 1
                    begin[run] = x
                end[run] = x + 1
                if ignore.size == 0 or not ignore[z, y, x]:
                    sizes[run] += 1
        for dz, dy in ((0, -1), (-1, -1), (-1, 0), (-1, 1)):
            if z + dz < 0 or not 0 <= y + dy < height:
                continue
            other = row + dz * height + dy
            a, b = first[row], first[other]
            while a < first[row + 1] and b < first[other + 1]:
                if begin[a] <= end[b] and begin[b] <= end[a]:  # corners touch too
                    i, j = a, b
                    while part[i] != i:
                        part[i] = part[part[i]]
                        i = part[i]
                    while part[j] != j:
                        part[j] = part[part[j]]
                        j = part[j]
                    part[max(i, j)] = min(i, j)
                if end[a] < end[b]:
                    a += 1
                else:
                    b += 1
    for run in range(len(part)):
        root = part[part[run]]
        part[run] = root
        if root != run:
            sizes[root] += sizes[run]
            sizes[run] = 0
    return sizes
