"""The matching: one-to-one, maximum total IoU, equal to brute force and to the dense Hungarian algorithm."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from em_bench_eval import matching
from em_bench_eval.matching import best_matching, dice, iou

Dense = npt.NDArray[np.float64]


@st.composite
def graphs(draw: st.DrawFn, side: int = 5) -> Dense:
    """IoU of every (reference, prediction) pair; few distinct values, so that ties are common."""
    shape = draw(st.tuples(st.integers(1, side), st.integers(1, side)))
    values = draw(st.lists(st.sampled_from([0, 0, 0.1, 0.25, 0.5, 0.75, 1.0]), min_size=25, max_size=25))
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


@pytest.mark.parametrize("dense_cells", [0, 10**6], ids=["sparse solver", "dense solver"])
@pytest.mark.parametrize("density", [0.02, 0.1, 0.5])
def test_total_iou_equals_the_dense_hungarian(
    density: float, dense_cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "_DENSE_CELLS", dense_cells)
    rng = np.random.default_rng(int(density * 100))
    for shape in ((40, 60), (60, 40), (1, 50), (50, 1)):
        weights = rng.random(shape) * (rng.random(shape) < density)
        best = linear_sum_assignment(weights, maximize=True)
        assert total(weights, match(weights)) == pytest.approx(float(weights[best].sum()), abs=1e-6)


def test_a_swap_that_the_greedy_choice_misses() -> None:
    # taking the best pair first (0.6) leaves 0.1; the two others together are worth more
    assert match(np.array([[0.6, 0.5], [0.5, 0.1]])) == [(0, 1), (1, 0)]


def test_equal_totals_go_to_the_larger_total_dice() -> None:
    # 0.5 + 0.5 and 0.75 + 0.25 sum to the same IoU; Dice is concave in IoU, so the even pairs win
    assert match(np.array([[0.75, 0.5], [0.5, 0.25]])) == [(0, 1), (1, 0)]


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
