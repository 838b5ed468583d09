"""The mutex watershed against the sentence that defines it, and without edges that keep apart against components."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from baselines import mutex_watershed as module
from baselines.mutex_watershed import mutex_watershed

Graph = tuple[int, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def _graph(seed: int, n_nodes: int, n_edges: int, levels: int) -> Graph:
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, n_nodes, (2, n_edges))
    return n_nodes, first, second, rng.integers(0, levels + 1, n_edges) / levels, rng.random(n_edges) < 0.6


def _slow(n_nodes: int, first: np.ndarray, second: np.ndarray, strength: np.ndarray, joins: np.ndarray) -> np.ndarray:
    """Sets of nodes, and a set of forbidden pairs of nodes."""
    pieces = [{node} for node in range(n_nodes)]
    forbidden: set[frozenset[int]] = set()
    for edge in sorted(range(len(first)), key=lambda e: (-strength[e], joins[e], e)):
        a, b = pieces[first[edge]], pieces[second[edge]]
        if a is b:
            continue
        if not joins[edge]:
            forbidden.add(frozenset((int(first[edge]), int(second[edge]))))
        elif not any(frozenset((p, q)) in forbidden for p in a for q in b):
            a |= b
            for node in b:
                pieces[node] = a
    return np.array([min(piece) for piece in pieces])


@given(st.integers(0, 10_000), st.integers(1, 14), st.integers(0, 60), st.sampled_from([1, 3, 1000]))
@settings(max_examples=150, deadline=None)
def test_it_does_what_its_definition_says_also_where_edges_tie(
    seed: int, n_nodes: int, n_edges: int, levels: int
) -> None:
    graph = _graph(seed, n_nodes, n_edges, levels)
    np.testing.assert_array_equal(mutex_watershed(*graph), _slow(*graph))


def test_without_a_compiler_the_same_loop_runs_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = [_graph(seed, 12, 50, 5) for seed in range(10)]
    expected = [mutex_watershed(*graph) for graph in graphs]
    monkeypatch.setattr(module, "compile_kernels", lambda *functions: None)
    module._compiled.cache_clear()
    for graph, known in zip(graphs, expected, strict=True):
        np.testing.assert_array_equal(mutex_watershed(*graph), known)
    module._compiled.cache_clear()


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(0, 60))
@settings(max_examples=40, deadline=None)
def test_where_nothing_keeps_apart_pieces_are_components_in_any_order_of_edges(
    seed: int, n_nodes: int, n_edges: int
) -> None:
    _, first, second, strength, _ = _graph(seed, n_nodes, n_edges, 4)
    joins = np.ones(n_edges, bool)
    found = mutex_watershed(n_nodes, first, second, strength, joins)
    _, parts = connected_components(coo_matrix((joins, (first, second)), (n_nodes, n_nodes)), directed=False)
    expected = np.array([np.flatnonzero(parts == part)[0] for part in parts])
    np.testing.assert_array_equal(found, expected)
    order = np.random.default_rng(seed).permutation(n_edges)
    again = mutex_watershed(n_nodes, second[order], first[order], strength[order], joins)
    np.testing.assert_array_equal(again, expected)


def test_a_stronger_word_goes_before_a_weaker_one_and_holds_for_what_is_joined_later() -> None:
    first, second = np.array([0, 1, 0, 2]), np.array([1, 2, 2, 3])
    joins = np.array([True, True, False, True])
    strength = np.array([0.9, 0.6, 0.8, 0.7])  # 0-1 join, 0|2, 2-3 join, then 1-2 may not: 0|2
    assert mutex_watershed(4, first, second, strength, joins).tolist() == [0, 0, 2, 2]
    late = np.array([0.9, 0.6, 0.5, 0.7])  # all have joined before 0|2 is heard
    assert mutex_watershed(4, first, second, late, joins).tolist() == [0, 0, 0, 0]


def test_many_pieces_that_all_keep_apart_are_done_in_time() -> None:
    """A chain of 20,000 nodes, each also forbidden to join the one two further on: pairs."""
    n = 20_000
    node = np.arange(n)
    first = np.concatenate([node[:-1], node[:-2]])
    second = np.concatenate([node[1:], node[2:]])
    joins = np.arange(len(first)) < n - 1
    found = mutex_watershed(n, first, second, np.full(len(first), 0.5), joins)
    np.testing.assert_array_equal(found, node // 2 * 2)


def test_no_nodes_and_no_edges() -> None:
    none = np.zeros(0, np.int64)
    assert mutex_watershed(0, none, none, np.zeros(0), np.zeros(0, bool)).shape == (0,)
    assert mutex_watershed(3, none, none, np.zeros(0), np.zeros(0, bool)).tolist() == [0, 1, 2]
