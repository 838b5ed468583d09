"""One-to-one matching of predicted to reference instances: maximum total IoU, exact, on a sparse overlap graph.

Most pairs are decided without an assignment problem: a pair that is worth more than the best alternative of its
reference plus the best alternative of its prediction belongs to every optimal matching, because swapping it in for
those two can only gain. What such pairs leave over falls into small connected components, each solved exactly.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Matchings with the same total IoU are told apart by their total Dice, then by the voxels they cover, so that every
# metric depends on the instances and not on the order of their ids. Smaller differences of IoU are not resolved.
_TIE_DICE, _TIE_VOXELS = 1e-9, 1e-12
_DENSE_CELLS = 1_000_000  # components with a larger reference x prediction rectangle go to the sparse solver


def iou(intersection: Ints, reference: Ints, prediction: Ints) -> Floats:
    """Intersection over union of pairs, from voxel counts; 0 < IoU <= 1 for pairs that overlap."""
    return np.asarray(intersection / (reference + prediction - intersection), np.float64)


def dice(intersection: Ints, reference: Ints, prediction: Ints) -> Floats:
    """Dice coefficient of pairs, from voxel counts: 2 I / (R + P)."""
    return np.asarray(2 * intersection / (reference + prediction), np.float64)


def best_matching(pair_reference: Ints, pair_prediction: Ints, pair_iou: Floats, pair_voxels: Ints) -> Ints:
    """Choose pairs so that each instance is used at most once and the sum of their IoU is as large as possible.

    The four arrays describe the overlapping pairs: positions of the two instances, IoU > 0 and intersection. Returns
    the positions of the chosen pairs, ascending. Ties go to the larger total Dice (IoU and Dice rank pairs alike,
    their sums do not), then to the larger total intersection.
    """
    pair_dice = 2 * pair_iou / (1 + pair_iou)
    weight = pair_iou + _TIE_DICE * pair_dice + _TIE_VOXELS * (pair_voxels / pair_voxels.max(initial=1))
    chosen, rest = _peel(pair_reference, pair_prediction, weight)
    parts = [chosen]
    for pairs in _components(pair_reference, pair_prediction, rest):
        parts.append(_solve(pair_reference, pair_prediction, weight, pairs))
    return np.sort(np.concatenate(parts))


def _peel(rows: Ints, columns: Ints, weight: Floats) -> tuple[Ints, Ints]:
    """Take strictly dominant pairs until few are left; returns (taken pairs, undecided pairs)."""
    alive: Ints = np.arange(len(weight), dtype=np.int64)
    taken: list[Ints] = []
    while len(alive):
        r, c, w = rows[alive], columns[alive], weight[alive]
        dominant = w > _best_other(r, w) + _best_other(c, w)  # strict: no two dominant pairs share an instance
        taken.append(alive[dominant])
        decided = np.isin(r, r[dominant]) | np.isin(c, c[dominant])
        alive = alive[~decided]
        if decided.sum() <= 0.02 * decided.size:  # long chains peel one end at a time: leave them to the solver
            break
    return (np.concatenate(taken) if taken else alive), alive


def _best_other(group: Ints, weight: Floats) -> Floats:
    """For each pair, the largest weight among the other pairs of its group, 0 if it is alone."""
    order = np.lexsort((-weight, group))
    sorted_group, sorted_weight = group[order], weight[order]
    first = np.concatenate([[True], sorted_group[1:] != sorted_group[:-1]])
    starts = np.flatnonzero(first)
    sizes = np.diff(starts, append=len(group))
    best = sorted_weight[starts]
    second = np.where(sizes > 1, sorted_weight[np.minimum(starts + 1, len(group) - 1)], 0.0)
    other = np.repeat(best, sizes)
    other[starts] = second
    result = np.empty_like(other)
    result[order] = other
    return result


def _components(rows: Ints, columns: Ints, pairs: Ints) -> list[Ints]:
    """Split the undecided pairs by connected component of the overlap graph, in order of first appearance."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(pairs):
        return []
    row_ids, r = np.unique(rows[pairs], return_inverse=True)
    column_ids, c = np.unique(columns[pairs], return_inverse=True)
    size = len(row_ids) + len(column_ids)
    graph = coo_array((np.ones(len(pairs), np.int8), (r, c + len(row_ids))), shape=(size, size))
    component = connected_components(graph, directed=False)[1][r]
    order = np.argsort(component, kind="stable")
    return np.split(pairs[order], np.flatnonzero(np.diff(component[order])) + 1)


def _solve(rows: Ints, columns: Ints, weight: Floats, pairs: Ints) -> Ints:
    """Solve one component exactly: dense Hungarian if small, sparse shortest augmenting paths otherwise."""
    from scipy.optimize import linear_sum_assignment

    row_ids, r = np.unique(rows[pairs], return_inverse=True)
    column_ids, c = np.unique(columns[pairs], return_inverse=True)
    if len(row_ids) * len(column_ids) > _DENSE_CELLS:
        return _solve_sparse(r, c, weight[pairs], pairs)
    gain = np.zeros((len(row_ids), len(column_ids)))
    gain[r, c] = weight[pairs]
    index = np.full(gain.shape, -1, np.int64)
    index[r, c] = pairs
    found = index[linear_sum_assignment(gain, maximize=True)]
    return np.asarray(found[found >= 0], np.int64)


def _solve_sparse(r: npt.NDArray[Any], c: npt.NDArray[Any], weight: Floats, pairs: Ints) -> Ints:
    """The same without a dense matrix: each row gets a private dummy column that means "unmatched"."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    n_rows, n_columns = int(r.max()) + 1, int(c.max()) + 1
    dummies = np.arange(n_rows)
    # scipy drops explicit zeros, so every weight is raised by 1: each row has exactly one partner in a full matching
    gain = csr_array(
        (
            np.concatenate([weight + 1.0, np.ones(n_rows)]),
            (np.concatenate([r, dummies]), np.concatenate([c, n_columns + dummies])),
        ),
        shape=(n_rows, n_columns + n_rows),
    )
    matched_rows, matched_columns = min_weight_full_bipartite_matching(gain, maximize=True)
    partner = np.full(n_rows, -1, np.int64)
    partner[matched_rows] = matched_columns
    return np.asarray(pairs[partner[r] == c], np.int64)
