"""The matching: one-to-one, maximum total IoU, equal to brute force and to the dense Hungarian algorithm."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from em_bench_eval import matching
from em_bench_eval.matching import best_matching, dice, iou
from em_bench_eval.matching_compiled import kernel

Dense = npt.NDArray[np.float64]


@st.composite
def graphs(draw: st.DrawFn, side: int = 5) -> Dense:
    """IoU of every (reference, prediction) pair; few distinct values, so that ties are common."""
    shape = draw(st.tuples(st.integers(1, side), st.integers(1, side)))
    values = draw(st.lists(st.sampled_from([0, 0, 0.1, 0.25, 0.5, 0.75, 1.0]), min_size=side**2, max_size=side**2))
    return np.array(values[: shape[0] * shape[1]]).reshape(shape)


def match(dense: Dense, voxels: npt.NDArray[np.int64] | None = None) -> list[tuple[int, int]]:
    rows, columns = np.nonzero(dense)
    voxels = np.ones(dense.shape, np.int64) if voxels is None else voxels
    chosen = best_matching(rows, columns, dense[rows, columns], voxels[rows, columns])
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    return [(int(rows[k]), int(columns[k])) for k in chosen]


def total(dense: Dense, pairs: list[tuple[int, int]]) -> float:
    return sum(float(dense[pair]) for pair in pairs)


def brute_force(dense: Dense) -> float:
    if dense.shape[0] > dense.shape[1]:
        dense = dense.T
    columns = range(dense.shape[1])
    return max(
        sum(dense[row, column] for row, column in enumerate(order))
        for order in itertools.permutations(columns, dense.shape[0])
    )


@given(graphs())
def test_total_iou_equals_brute_force(dense: Dense) -> None:
    pairs = match(dense)
    assert len({r for r, _ in pairs}) == len({p for _, p in pairs}) == len(pairs)
    assert all(dense[pair] > 0 for pair in pairs)
    assert total(dense, pairs) == pytest.approx(brute_force(dense), abs=1e-7)


SOLVERS = ["python", "compiled"]


@contextmanager
def solved_by(solver: str, peel: bool = True) -> Iterator[None]:
    """Let Python, or the compiled code, solve whatever is undecided; without ``peel``, everything is."""
    if solver == "compiled":
        pytest.importorskip("numba")
        assert kernel() is not None
    everything = patch.object(matching, "_peel", lambda rows, columns, worth: (rows[:0], np.arange(len(rows))))
    with pytest.MonkeyPatch.context() as limits:
        limits.setattr(matching, "COMPILED_FROM_PAIRS", 0 if solver == "compiled" else 2**62)
        limits.setattr(matching, "ONCE_LOADED_FROM_PAIRS", 0 if solver == "compiled" else 2**62)
        if peel:
            yield
        else:
            with everything:
                yield


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("density", [0.02, 0.1, 0.5])
def test_total_iou_equals_the_dense_hungarian(density: float, solver: str) -> None:
    rng = np.random.default_rng(int(density * 100))
    for shape in ((40, 60), (60, 40), (1, 50), (50, 1)):
        weights = rng.random(shape) * (rng.random(shape) < density)
        best = linear_sum_assignment(weights, maximize=True)
        with solved_by(solver):
            assert total(weights, match(weights)) == pytest.approx(float(weights[best].sum()), abs=1e-10)


def all_matchings(pairs: list[tuple[int, int]]) -> Iterator[list[int]]:
    """Every set of pairs that share no instance, as positions."""
    yield []
    for k, (row, column) in enumerate(pairs):
        free = [n for n in range(k + 1, len(pairs)) if pairs[n][0] != row and pairs[n][1] != column]
        yield from ([k, *(free[n] for n in rest)] for rest in all_matchings([pairs[n] for n in free]))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("peel", [True, False])
@given(graphs(side=4), st.lists(st.integers(1, 3), min_size=16, max_size=16))
def test_no_other_matching_is_worth_as_much(solver: str, peel: bool, dense: Dense, drawn: list[int]) -> None:
    """All matchings compared exactly, in whole numbers: IoU, then Dice, then intersection, then the fixed numbers."""
    rows, columns = np.nonzero(dense)
    pair_iou, voxels = dense[rows, columns], np.array(drawn[: dense.size]).reshape(dense.shape)[rows, columns]
    worth = [tuple(row) for row in matching._worth(pair_iou, voxels).tolist()]
    pairs = list(zip(rows.tolist(), columns.tolist(), strict=True))
    totals = [
        (tuple(map(sum, zip(*(worth[k] for k in chosen), strict=True))), chosen) for chosen in all_matchings(pairs)
    ]
    with solved_by(solver, peel):
        assert best_matching(rows, columns, pair_iou, voxels).tolist() == max(totals)[1]


@given(graphs(side=7), st.booleans())
def test_compiled_equals_python_where_everything_ties(dense: Dense, all_equal: bool) -> None:
    rows, columns = np.nonzero(dense)
    worth = matching._worth(
        np.full(len(rows), 0.5) if all_equal else dense[rows, columns], np.ones(len(rows), np.int64)
    )
    worth[:, 3] = 0  # what tells equals apart is gone: only the same steps give the same choice
    found = []
    for solver in SOLVERS:
        with solved_by(solver):
            found.append(matching._solve(rows, columns, worth).tolist() if len(rows) else [])
    assert found[0] == found[1]


def graph_of(rng: np.random.Generator, name: str, n: int) -> tuple[npt.NDArray[np.int64], ...]:
    """Overlap graphs that wrong or careless predictions make: rows, columns, IoU."""
    steps = np.arange(2 * n - 1)
    along = (steps + 1) // 2, steps // 2  # reference 0, prediction 0, reference 1, prediction 1, ...
    spokes = np.zeros(n, np.int64), np.arange(n)
    square = np.divmod(np.arange(int(n**0.5) ** 2), int(n**0.5))
    return {
        "rising chain": (*along, np.linspace(0.1, 0.5, len(steps))),
        "even chain": (*along, np.full(len(steps), 1 / 3)),
        "ring": (np.append(along[0], 0), np.append(along[1], n - 1), rng.integers(1, 9, len(steps) + 1) / 20),
        "speckle in one instance": (*spokes, np.full(n, 1 / n)),
        "one prediction over many": (*spokes[::-1], np.full(n, 1 / n)),
        "all overlap all": (*square, rng.integers(1, 5, len(square[0])) / 1000),
        "random": (*np.unique(rng.integers(0, n, (2, 4 * n)), axis=1), None),
    }[name]


GRAPHS = ["rising chain", "even chain", "ring", "speckle in one instance", "one prediction over many"]
GRAPHS += ["all overlap all", "random"]


@pytest.mark.parametrize("name", GRAPHS)
def test_adversarial_graphs(name: str) -> None:
    """Equal to scipy's optimum; the same pairs from Python and from compiled code, peeled first or not."""
    rng = np.random.default_rng(4)
    rows, columns, pair_iou = graph_of(rng, name, 400)
    pair_iou = rng.integers(1, 30, len(rows)) / 80 if pair_iou is None else pair_iou
    voxels = rng.integers(1, 4, len(rows))
    dense = np.zeros((rows.max() + 1, columns.max() + 1))
    dense[rows, columns] = pair_iou
    expected = float(dense[linear_sum_assignment(dense, maximize=True)].sum())
    found = []
    for solver, peel in itertools.product(SOLVERS, (True, False)):
        with solved_by(solver, peel):
            found.append(best_matching(rows, columns, pair_iou, voxels).tolist())
        assert float(pair_iou[found[-1]].sum()) == pytest.approx(expected, abs=1e-9)
    assert all(chosen == found[0] for chosen in found)


@pytest.mark.parametrize("name", ["rising chain", "even chain", "ring", "speckle in one instance"])
def test_work_on_long_graphs_stays_in_proportion(name: str) -> None:
    """Augmenting paths along the whole graph would need some 10 ** 8 steps here."""
    rows, columns, pair_iou = graph_of(np.random.default_rng(4), name, 10_000)
    with solved_by("python"), patch.object(matching.heapq, "heappush", wraps=heapq.heappush) as steps:
        chosen = best_matching(rows, columns, pair_iou, np.ones(len(rows), np.int64))
    assert len(set(rows[chosen].tolist())) == len(set(columns[chosen].tolist())) == len(chosen)
    assert steps.call_count < 10 * len(rows)


def test_a_swap_that_the_greedy_choice_misses() -> None:
    # taking the best pair first (0.6) leaves 0.1; the two others together are worth more
    assert match(np.array([[0.6, 0.5], [0.5, 0.1]])) == [(0, 1), (1, 0)]


def test_equal_totals_go_to_the_larger_total_dice() -> None:
    # 0.5 + 0.5 and 0.75 + 0.25 sum to the same IoU; Dice is concave in IoU, so the even pairs win
    assert match(np.array([[0.75, 0.5], [0.5, 0.25]])) == [(0, 1), (1, 0)]


def test_dice_never_outweighs_iou() -> None:
    # the uneven pairs are worth 4e-12 more; their Dice is 0.19 less
    assert match(np.array([[0.75 + 4e-12, 0.5], [0.5, 0.25]])) == [(0, 0), (1, 1)]


def test_sums_are_exact() -> None:
    # one difference of 1e-11 must not drown in the rounding errors of many others
    n = 1000
    rows, columns = np.repeat(np.arange(n), 2), np.repeat(np.arange(n), 2)
    rows[1::2], columns[1::2] = np.arange(n), (np.arange(n) + 1) % n  # a ring: all even pairs, or all odd ones
    pair_iou = np.full(2 * n, 1 / 3)
    for winner in (0, 1):
        pair_iou[:], pair_iou[10 + winner] = 1 / 3, 1 / 3 + 1e-11
        for solver in SOLVERS:
            with solved_by(solver):
                chosen = best_matching(rows, columns, pair_iou, np.ones(2 * n, np.int64))
            assert (chosen % 2 == winner).all()
            assert len(chosen) == n


def test_equal_dice_goes_to_the_larger_total_intersection() -> None:
    voxels = np.array([[3, 1], [1, 2]])
    for order in ([0, 1], [1, 0]):
        assert {int(voxels[order][pair]) for pair in match(np.full((2, 2), 0.5), voxels[order])} == {2, 3}


@given(graphs(), st.randoms(use_true_random=False))
def test_the_values_of_the_matching_do_not_depend_on_the_order_of_ids(dense: Dense, random: object) -> None:
    rows, columns = list(range(dense.shape[0])), list(range(dense.shape[1]))
    random.shuffle(rows)  # type: ignore[attr-defined]
    random.shuffle(columns)  # type: ignore[attr-defined]
    permuted = dense[np.ix_(rows, columns)]
    assert sorted(dense[pair] for pair in match(dense)) == sorted(permuted[pair] for pair in match(permuted))


def test_nothing_to_match() -> None:
    nothing = np.zeros(0, np.int64)
    assert best_matching(nothing, nothing, np.zeros(0), nothing).tolist() == []


@given(st.integers(1, 50), st.integers(0, 50), st.integers(0, 50))
def test_iou_and_dice_of_counts(intersection: int, more_reference: int, more_prediction: int) -> None:
    counts = [np.array([n]) for n in (intersection, intersection + more_reference, intersection + more_prediction)]
    value, twin = float(iou(*counts)[0]), float(dice(*counts)[0])
    assert value == intersection / (intersection + more_reference + more_prediction)
    assert twin == pytest.approx(2 * value / (1 + value))
    assert value <= twin
