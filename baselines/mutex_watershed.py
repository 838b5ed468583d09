"""Mutex watershed on a graph: edges that join and edges that keep apart, the strongest first.

An edge that joins merges the pieces of its two nodes unless something has forbidden it; an edge that keeps apart
forbids every later merger of the two pieces, whatever becomes of them (Wolf et al. 2018, "The Mutex Watershed", ECCV).
Without edges that keep apart it gives connected components, in any order of edges.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from em_bench_eval.numba_kernels import compile_kernels

Nodes = npt.NDArray[np.signedinteger[Any]]
Bools = npt.NDArray[np.bool_]
LEVELS = 65535  # strengths are compared in steps of 1 / LEVELS: finer than float16, and sorted in linear time


def mutex_watershed(
    n_nodes: int, first: Nodes, second: Nodes, strength: npt.NDArray[np.floating[Any]], joins: Bools
) -> Nodes:
    """Return each node's piece, named by the piece's first node.

    ``first``, ``second``: (E,) ends of the edges, 0 to ``n_nodes - 1``. ``strength``: (E,) in 0..1. ``joins``: (E,)
    False for edges that keep apart. Of two edges of one strength the one that keeps apart comes first, then the one
    that is listed first: the result is the same on every machine. Memory: about 30 bytes an edge.
    """
    if not joins.all():
        level = np.rint((1.0 - strength) * LEVELS).astype(np.uint16)
        apart = np.flatnonzero(~joins)
        listed = np.concatenate([apart, np.flatnonzero(joins)])
        order = listed[np.argsort(level[listed], kind="stable")]
        first, second, joins = first[order], second[order], joins[order]
    return _compiled()(n_nodes, first, second, joins)


@cache
def _compiled() -> Callable[[int, Nodes, Nodes, Bools], Nodes]:
    compiled = compile_kernels(_pieces)
    return _pieces if compiled is None else compiled[0]


def _pieces(n_nodes: int, first: Nodes, second: Nodes, joins: Bools) -> Nodes:
    """Take the edges in their order. A root lists the nodes that its piece must not join, as a chain of entries."""
    root = np.arange(n_nodes)
    apart = len(joins) - np.count_nonzero(joins)
    head, tail = np.full(n_nodes, -1), np.full(n_nodes, -1)
    length = np.zeros(n_nodes, np.int64)
    after, foe = np.empty(2 * apart, np.int64), np.empty(2 * apart, np.int64)
    used = 0
    for edge in range(len(joins)):
        a, b = first[edge], second[edge]
        while root[a] != a:
            root[a] = root[root[a]]
            a = root[a]
        while root[b] != b:
            root[b] = root[root[b]]
            b = root[b]
        if a == b:
            continue
        if length[a] > length[b]:
            a, b = b, a  # the shorter list is read
        entry, allowed = head[a], True
        while entry >= 0 and allowed:
            c = foe[entry]
            while root[c] != c:
                root[c] = root[root[c]]
                c = root[c]
            foe[entry] = c
            allowed = c != b
            entry = after[entry]
        if not allowed:
            continue
        if joins[edge]:
            low, high = min(a, b), max(a, b)
            root[high] = low
            if head[high] >= 0:
                if head[low] >= 0:
                    after[tail[low]] = head[high]
                else:
                    head[low] = head[high]
                tail[low] = tail[high]
                length[low] += length[high]
        else:
            for mine, other in ((a, b), (b, a)):
                foe[used] = other
                after[used] = head[mine]
                if head[mine] < 0:
                    tail[mine] = used
                head[mine] = used
                length[mine] += 1
                used += 1
    for node in range(n_nodes):
        root[node] = root[root[node]]  # a piece's first node comes earlier and is final
    return root
