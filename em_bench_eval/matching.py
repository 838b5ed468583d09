"""One-to-one matching of predicted to reference instances: maximum total IoU, exact, on a sparse overlap graph.

Worth is compared in whole numbers, so that nothing depends on how a sum was rounded: IoU in units of 2**-40, and where
the totals of two matchings agree, total Dice (in the same units), then total intersection, then the total of a fixed
pseudo-random number of each pair. A matching is thus better or worse than another, whatever their size; the total IoU
is within 2**-40 per matched pair of the maximum over all matchings, and the choice among equals depends on the
instances, hardly ever on the order of their ids.

Most pairs are decided without an assignment problem: a pair that is worth more than the best alternative of its
reference plus the best alternative of its prediction belongs to every best matching, because swapping it in for those
two can only gain. What such pairs leave over is solved by shortest augmenting paths (Kuhn 1955; Edmonds and Karp 1972),
which stay within the neighbourhood of the instance that they start from.
"""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

from .matching_compiled import kernel

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_UNIT = 2.0**40  # of IoU and Dice: 2**22 matched pairs add up to less than 2**63
# Undecided pairs from which compiled code pays: the first time (numba is imported), and then.
COMPILED_FROM_PAIRS, ONCE_LOADED_FROM_PAIRS = 50_000, 100


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
    worth = _worth(pair_iou, pair_voxels)
    chosen, rest = _peel(pair_reference, pair_prediction, worth)
    if len(rest):
        solved = _solve(pair_reference[rest], pair_prediction[rest], worth[rest])
        chosen = np.concatenate([chosen, rest[solved]])
    return np.sort(chosen)


def _worth(pair_iou: Floats, pair_voxels: Ints) -> Ints:
    """Return whole numbers, shape (pairs, 4), that are added by column and compared by row, first column first."""
    random = np.arange(1, len(pair_iou) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # SplitMix64
    random = (random ^ (random >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    random = (random ^ (random >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    columns = [
        np.rint(pair_iou * _UNIT),
        np.rint(2 * pair_iou / (1 + pair_iou) * _UNIT),
        pair_voxels,
        (random ^ (random >> np.uint64(31))) >> np.uint64(24),
    ]
    return np.stack([column.astype(np.int64) for column in columns], axis=1)


def _peel(rows: Ints, columns: Ints, worth: Ints) -> tuple[Ints, Ints]:
    """Take dominant pairs, by IoU alone, until few are left; returns (taken pairs, undecided pairs)."""
    alive: Ints = np.arange(len(worth), dtype=np.int64)
    taken = [alive[:0]]
    while len(alive):
        r, c, w = rows[alive], columns[alive], worth[alive, 0]
        dominant = alive[w > _best_other(r, w) + _best_other(c, w)]  # strictly: no two of them share an instance
        taken.append(dominant)
        gone_row, gone_column = np.zeros(r.max() + 1, bool), np.zeros(c.max() + 1, bool)
        gone_row[rows[dominant]], gone_column[columns[dominant]] = True, True
        left = alive[~(gone_row[r] | gone_column[c])]
        few = len(alive) - len(left) <= 0.1 * len(alive)  # chains peel from their ends: leave them to the solver
        alive = left
        if few:
            break
    return np.concatenate(taken), alive


def _best_other(group: Ints, worth: Ints) -> Ints:
    """For each pair, the largest worth among the other pairs of its group, 0 if it is alone."""
    best = np.zeros(int(group.max()) + 1, np.int64)
    second = best.copy()
    np.maximum.at(best, group, worth)
    is_best = best[group] == worth
    np.maximum.at(second, group[~is_best], worth[~is_best])
    tied = np.bincount(group[is_best], minlength=len(best)) > 1
    second[tied] = best[tied]
    return np.asarray(np.where(is_best, second[group], best[group]), np.int64)


def _solve(rows: Ints, columns: Ints, worth: Ints) -> Ints:
    """Solve what is left over exactly; returns positions of the chosen pairs."""
    order = np.argsort(rows, kind="stable")
    row_starts = np.unique(rows[order], return_index=True)[1]
    column = np.unique(columns[order], return_inverse=True)[1].reshape(-1)
    starts = np.append(row_starts, len(rows)).astype(np.int64)
    # In an order without pattern, augmenting paths stay short on average, also in chains made to be long.
    turns = np.argsort(worth[order[row_starts], 3], kind="stable")
    loaded = kernel.cache_info().currsize
    compiled = None
    if len(rows) >= (ONCE_LOADED_FROM_PAIRS if loaded else COMPILED_FROM_PAIRS):
        compiled = kernel()
    if compiled is None:
        found = np.array(_augment(starts.tolist(), column.tolist(), _packed(worth[order]), turns.tolist()), np.int64)
    else:
        found = compiled(starts, column.astype(np.int64), np.ascontiguousarray(worth[order]), turns.astype(np.int64))
    return np.asarray(order[found[found >= 0]], np.int64)


def _packed(worth: Ints) -> list[int]:
    """One Python integer for each pair, in which the columns cannot run into each other."""
    return [(((a << 64) + b << 64) + c << 64) + d for a, b, c, d in worth.tolist()]


def _augment(starts: list[int], columns: list[int], worth: list[int], turns: list[int]) -> list[int]:
    """Return the chosen pair of each row, or -1. The pairs of row ``r`` are ``starts[r]`` up to ``starts[r + 1]``.

    The dual of the problem is kept: ``price[row] + price[column] >= worth`` for all pairs, equal for chosen ones, 0
    for columns that are free and for rows that were left without a partner. Each row in turn looks for the cheapest
    alternating path (Dijkstra) that ends in a free column, or in a row that is better left without its partner.
    """
    row_of = [row for row in range(len(starts) - 1) for _ in range(starts[row], starts[row + 1])]
    row_price = [max(worth[starts[row] : starts[row + 1]]) for row in range(len(starts) - 1)]
    column_price = [0] * (max(columns) + 1)
    chosen, owner = [-1] * len(row_price), [-1] * len(column_price)
    for root in turns:
        distance: dict[int, int] = {}  # of columns
        reached_by: dict[int, int] = {}  # the pair through which each column is reached
        settled: list[tuple[int, int]] = []  # rows of the tree, and how far they are
        heap: list[tuple[int, int]] = []
        row, here = root, 0
        end_row, end_column, shortest = root, -1, row_price[root]  # so far: leave the root without a partner
        while True:
            settled.append((row, here))
            for pair in range(starts[row], starts[row + 1]):
                column = columns[pair]
                there = here + row_price[row] + column_price[column] - worth[pair]
                if there < shortest and (column not in distance or there < distance[column]):
                    distance[column], reached_by[column] = there, pair
                    if owner[column] < 0:
                        end_row, end_column, shortest = -1, column, there
                    else:
                        heapq.heappush(heap, (there, column))
            while heap and heap[0][0] > distance[heap[0][1]]:
                heapq.heappop(heap)  # reached on a shorter way since
            if not heap or heap[0][0] >= shortest:
                break
            here, column = heapq.heappop(heap)
            row = owner[column]
            if here + row_price[row] < shortest:
                end_row, end_column, shortest = row, -1, here + row_price[row]
        for row, here in settled:
            row_price[row] -= shortest - here
            if row != root:
                column_price[columns[chosen[row]]] += shortest - here
        if end_row == root:
            continue
        column = end_column
        if end_column < 0:
            column, chosen[end_row] = columns[chosen[end_row]], -1
        while True:
            pair = reached_by[column]
            row = row_of[pair]
            chosen[row], before, owner[column] = pair, chosen[row], row
            if row == root:
                break
            column = columns[before]
    return chosen
