"""``matching._augment`` in compiled code: the same steps in the same order, so the same pairs, ties included.

Worth is a row of four int64 instead of one long Python integer, and the heap is written out, because numba knows
neither long integers nor a heap whose entries move. The function is plain Python as numba reads it; numba is imported
when it is first needed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

_WORDS = 4
_LAST = _WORDS - 1
_UNREACHED, _SETTLED, _FREE = -1, -2, -3  # in the place of a column; otherwise its position in the heap


@cache
def kernel() -> Callable[[Ints, Ints, Ints, Ints], Ints] | None:
    """Compile, or load from numba's cache; None without a working numba."""
    try:
        from numba import config, int64, njit
    except Exception:  # absent, or broken: numba refuses some versions of numpy with errors of several types
        return None
    if config.DISABLE_JIT:
        return None
    signature = int64[::1](int64[::1], int64[::1], int64[:, ::1], int64[::1])
    options = {"nogil": True, "boundscheck": False, "error_model": "numpy"}
    try:
        compiled: Callable[[Ints, Ints, Ints, Ints], Ints] = njit(signature, cache=True, **options)(_augment)
    except (RuntimeError, OSError):  # no folder for the machine code can be written: it is compiled in each process
        compiled = njit(signature, **options)(_augment)
    return compiled


def _augment(starts: Ints, columns: Ints, worth: Ints, turns: Ints) -> Ints:
    """Return the chosen pair of each row, or -1; see ``matching._augment`` for what happens here and why."""
    n_rows, n_columns = starts.size - 1, 0
    for pair in range(columns.size):
        n_columns = max(n_columns, columns[pair] + 1)
    row_of = np.empty(columns.size, np.int64)
    row_price, column_price = np.zeros((n_rows, _WORDS), np.int64), np.zeros((n_columns, _WORDS), np.int64)
    chosen, owner = np.full(n_rows, -1, np.int64), np.full(n_columns, -1, np.int64)
    for row in range(n_rows):
        best = starts[row]
        for pair in range(starts[row], starts[row + 1]):
            row_of[pair] = row
            word = 0
            while word < _LAST and worth[pair, word] == worth[best, word]:
                word += 1
            if worth[pair, word] > worth[best, word]:
                best = pair
        for word in range(_WORDS):
            row_price[row, word] = worth[best, word]

    distance = np.zeros((n_columns, _WORDS), np.int64)
    reached_by, place = np.zeros(n_columns, np.int64), np.full(n_columns, _UNREACHED, np.int64)
    heap, reached = np.empty(n_columns, np.int64), np.empty(n_columns, np.int64)  # reached: all columns with a place
    settled, settled_at = np.empty(n_rows, np.int64), np.empty((n_rows, _WORDS), np.int64)
    here, there, shortest = np.zeros(_WORDS, np.int64), np.zeros(_WORDS, np.int64), np.zeros(_WORDS, np.int64)
    for root in turns:
        in_heap, n_reached, n_settled = 0, 0, 0
        row, end_row, end_column = root, root, -1
        for word in range(_WORDS):
            here[word], shortest[word] = 0, row_price[root, word]
        while True:
            settled[n_settled] = row
            for word in range(_WORDS):
                settled_at[n_settled, word] = here[word]
            n_settled += 1
            for pair in range(starts[row], starts[row + 1]):
                column = columns[pair]
                there[0] = here[0] + row_price[row, 0] + column_price[column, 0] - worth[pair, 0]
                if there[0] > shortest[0] or place[column] == _SETTLED:
                    continue
                for word in range(1, _WORDS):
                    there[word] = here[word] + row_price[row, word] + column_price[column, word] - worth[pair, word]
                word = 0
                while word < _LAST and there[word] == shortest[word]:
                    word += 1
                if there[word] >= shortest[word]:
                    continue
                if place[column] != _UNREACHED:
                    word = 0
                    while word < _LAST and there[word] == distance[column, word]:
                        word += 1
                    if there[word] >= distance[column, word]:
                        continue
                else:
                    reached[n_reached] = column
                    n_reached += 1
                for word in range(_WORDS):
                    distance[column, word] = there[word]
                reached_by[column] = pair
                if owner[column] < 0:
                    end_row, end_column = -1, column
                    for word in range(_WORDS):
                        shortest[word] = there[word]
                    place[column] = _FREE
                    continue
                at = place[column]
                if at == _UNREACHED:
                    at = in_heap
                    in_heap += 1
                while at > 0:  # up, past all that are farther
                    parent = heap[(at - 1) // 2]
                    word = 0
                    while word < _LAST and distance[column, word] == distance[parent, word]:
                        word += 1
                    difference = distance[column, word] - distance[parent, word]
                    if difference > 0 or (difference == 0 and column > parent):
                        break
                    heap[at] = parent
                    place[parent] = at
                    at = (at - 1) // 2
                heap[at] = column
                place[column] = at
            if in_heap == 0:
                break
            column = heap[0]
            word = 0
            while word < _LAST and distance[column, word] == shortest[word]:
                word += 1
            if distance[column, word] >= shortest[word]:
                break
            place[column] = _SETTLED
            in_heap -= 1
            last, at = heap[in_heap], 0
            while 2 * at + 1 < in_heap:  # the last one moves to the top, and down past all that are nearer
                child = 2 * at + 1
                if child + 1 < in_heap:
                    left, right = heap[child], heap[child + 1]
                    word = 0
                    while word < _LAST and distance[right, word] == distance[left, word]:
                        word += 1
                    difference = distance[right, word] - distance[left, word]
                    if difference < 0 or (difference == 0 and right < left):
                        child += 1
                nearer = heap[child]
                word = 0
                while word < _LAST and distance[last, word] == distance[nearer, word]:
                    word += 1
                difference = distance[last, word] - distance[nearer, word]
                if difference < 0 or (difference == 0 and last < nearer):
                    break
                heap[at] = nearer
                place[nearer] = at
                at = child
            if in_heap:
                heap[at] = last
                place[last] = at
            for word in range(_WORDS):
                here[word] = distance[column, word]
            row = owner[column]
            word = 0
            while word < _LAST and here[word] + row_price[row, word] == shortest[word]:
                word += 1
            if here[word] + row_price[row, word] < shortest[word]:
                end_row, end_column = row, -1
                for word in range(_WORDS):
                    shortest[word] = here[word] + row_price[row, word]
        for k in range(n_settled):
            row = settled[k]
            for word in range(_WORDS):
                row_price[row, word] -= shortest[word] - settled_at[k, word]
                if row != root:
                    column_price[columns[chosen[row]], word] += shortest[word] - settled_at[k, word]
        for k in range(n_reached):
            place[reached[k]] = _UNREACHED
        if end_row == root:
            continue
        column = end_column
        if end_column < 0:
            column = columns[chosen[end_row]]
            chosen[end_row] = -1
        while True:
            pair = reached_by[column]
            row = row_of[pair]
            before = chosen[row]
            chosen[row] = pair
            owner[column] = row
            if row == root:
                break
            column = columns[before]
    return chosen
