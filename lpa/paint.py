"""Writing labels: the names of runs (``lpa/components.py``) back into a volume, row by row.

The names may lie in the label volume itself, at its beginning: there is room, as every run has a voxel at least. The
name of a run then lies at or before its first voxel. So rows are written last to first, in groups, and the names that a
group needs are copied before it is written::

    labels      n0 n1 n2 n3 n4 . . . . . | . . . . . . . . . .      5 runs, whose names lie here on loan
                                           first: copy n3 n4, write these rows
                then: copy n0 n1 n2, write these rows

The order inside a group is that of memory, or the processor would not fetch ahead.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lpa.bits import inlined, kernel, lowest_bit, store_first
from lpa.components import WORD, RowFirst
from lpa.runs import ENDS, FIELDS, NEXT_WORD, NONE, ONE, STARTS, Classes, Masks, Runs, mark_row, words_of

GROUP = 2**16  # voxels
LANES = 16  # labels in one store


@inlined
def fill(labels: Runs, begin: int, end: int, label: Any) -> None:
    """``labels[begin:end] = label``, in few instructions where that is short."""
    while end - begin > LANES:
        store_first(labels, begin, label, LANES)
        begin += LANES
    store_first(labels, begin, label, end - begin)


@inlined
def write_row(labels: Runs, voxel: int, width: int, masks: Masks, names: Runs, run: np.uint64, clear: bool) -> None:
    """Write the row at ``labels[voxel:]``, whose runs are named ``names[run]`` and on; background only if ``clear``."""
    background = labels.dtype.type(0)
    label = background
    begin, last = voxel, voxel + width
    word = NONE
    for x in range(voxel, last, 64):
        starts = masks[word + STARTS]
        changes = starts | masks[word + ENDS]
        word += NEXT_WORD
        while changes:
            end = min(last, x + lowest_bit(changes))
            if label or clear:
                fill(labels, begin, end, label)
            label = background
            if starts & changes & (~changes + ONE):
                label = names[run]
                run += ONE
            begin = end
            changes &= changes - ONE
    if label or clear:
        fill(labels, begin, last, label)


@kernel
def write_labels(
    volume: Classes,
    width: int,
    first_row: int,
    last_row: int,
    row_first: RowFirst,
    names: Runs,
    labels: Runs,
    dirty: tuple[int, int],
    dirty_too: tuple[int, int],
) -> None:
    """Write the labels of the rows ``first_row`` to ``last_row`` (exclusive), the part that ``row_first`` is about.

    Outside of the two ranges of voxels that are ``dirty``, ``labels`` holds zeros, and background is left alone.
    """
    words = words_of(width)
    masks = np.zeros(words * FIELDS, np.uint64)
    padded = np.zeros(words * 64 + WORD, volume.dtype)
    rows = max(1, GROUP // width)
    copied = np.empty(rows * width, names.dtype)
    for group in range((last_row - first_row + rows - 1) // rows - 1, -1, -1):
        begin, end = group * rows, min((group + 1) * rows, last_row - first_row)
        first = row_first[begin]
        for k in range(row_first[end] - first):
            copied[k] = names[first + k]
        for row in range(begin, end):
            voxel = (first_row + row) * width
            clear = (voxel < dirty[1] and voxel + width > dirty[0]) or (
                voxel < dirty_too[1] and voxel + width > dirty_too[0]
            )
            if row_first[row] == row_first[row + 1]:
                if clear:
                    fill(labels, voxel, voxel + width, labels.dtype.type(0))
                continue
            if voxel > 0 and voxel + 64 * words <= volume.size:
                mark_row(volume, voxel, width, masks, NONE, NONE)
            else:  # marking might read beyond the array
                for x in range(width):
                    padded[WORD + x] = volume[voxel + x]
                mark_row(padded, WORD, width, masks, NONE, NONE)
            write_row(labels, voxel, width, masks, copied, row_first[row] - first, clear)
