"""Runs of equal voxels and their contacts: the first half of the fast labeller's kernels (``lpa/engine.py`` calls).

A run is a maximal row segment of one class. Runs are numbered in raster order and never stored: voxel ``x`` lies in the
run whose number is the count of run starts up to ``x``, one ``popcount`` in a 64-bit mask::

    classes     . 1 1 1 . . 2 2 3 3 3 . . 1 1      (one row, "." is background)
    changes     . ^ . . ^ . ^ . ^ . . ^ . ^ .      differs from the voxel on its left
    starts      . ^ . . . . ^ . ^ . . . . ^ .      changes into a class: one run each
    run         - 7 7 7 - - 8 8 9 9 9 - - 10 10    7 + starts up to here - 1, if 7 is the row's first run

Each row ``here`` is compared with the rows that come before it in raster order::

        plane z - 1          plane z                 a contact is a voxel x where both rows hold one class;
    y-1  up_back          y-1  back                  a segment is a stretch of contacts of one pair of runs:
    y    up               y    here                  it needs one union at most
    y+1  up_front

Most segments need none. Where ``here`` touches ``back`` and also ``up`` at some voxel of a segment, and ``up`` touches
``back`` there too, the two runs were joined before, through ``up``::

    up    1 1 1 1 . . . .       contact here-back        0 1 1 1 1 0 1 1
    back  . 1 1 1 1 . 1 1       of them, known via up    0 1 1 1 0 0 0 0
    here  . 1 1 1 1 . 1 1       segments left to join                  ^     (the second one only)

``news`` finds these segments with one addition per 64 voxels. It is what makes 26-connectivity cost little more than 6.
Diagonal steps along x can only bring news where both rows change class at the same x.

A union hangs the larger run number below the smaller one, so the root of a component is its first run in raster order,
and the start of that run is the component's minimum linear index: the paper's representative needs no search.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lpa.bits import count_bits, equal_bits, inlined, kernel

Classes = npt.NDArray[Any]  # unsigned integers, C-contiguous, flat
Masks = npt.NDArray[np.uint64]  # (row, word, field)
Links = npt.NDArray[Any]  # parent of each run, unsigned

FIELDS = 4
FOREGROUND, STARTS, ENDS, FIRST = range(FIELDS)  # FIRST: number of the first run that starts in this word
MARGIN = 64  # empty voxels before each row, so that voxel -1 exists and is background
NONE, ONE, TOP = np.uint64(0), np.uint64(1), np.uint64(63)
ALL = ~NONE


@kernel
def count_runs(volume: Classes, width: int, first_row: int, last_row: int, background: Classes) -> int:
    """Count the runs of the rows ``first_row`` to ``last_row`` (exclusive); ``background`` is 64 zeros."""
    position, end = first_row * width, last_row * width
    count = int(volume[position] != 0)
    position += 1
    while position + 64 <= end:  # the rows end to end, as if they were one
        no_start = equal_bits(volume, position, volume, position - 1) | equal_bits(volume, position, background, 0)
        count += 64 - count_bits(no_start)
        position += 64
    while position < end:
        count += int(volume[position] != volume[position - 1] and volume[position] != 0)
        position += 1
    for row in range(first_row + 1, last_row):  # a run ends with its row
        begin = row * width
        count += int(volume[begin] == volume[begin - 1] and volume[begin] != 0)
    return count


@inlined
def load_row(volume: Classes, voxel: int, width: int, classes: Classes, row: int) -> None:
    """Copy a row into the window, where it has a margin and may be read in whole words."""
    begin = row * ((width + 63) // 64 * 64 + MARGIN) + MARGIN
    to, source = np.uint64(begin), np.uint64(voxel)  # unsigned, or numba provides for Python's negative indices
    for x in range(np.uint64(width)):
        classes[to + x] = volume[source + x]


@inlined
def mark_row(classes: Classes, masks: Masks, row: int, run: int) -> int:
    """Derive the masks of a row and number its runs from ``run``; return the next free run number."""
    words = masks.shape[1]
    begin = row * (words * 64 + MARGIN) + MARGIN
    foreground_left = NONE
    for word in range(words):
        here = begin + 64 * word
        changes = ~equal_bits(classes, here, classes, here - 1)
        foreground = ~equal_bits(classes, here, classes, 0)  # the window begins with a margin
        starts = changes & foreground
        masks[row, word, FOREGROUND] = foreground
        masks[row, word, STARTS] = starts
        masks[row, word, ENDS] = changes & ((foreground << ONE) | (foreground_left >> TOP))
        foreground_left = foreground
        masks[row, word, FIRST] = np.uint64(run)
        run += count_bits(starts)
    return run


@inlined
def news(contact: np.uint64, known: np.uint64, changes: np.uint64) -> np.uint64:
    """One bit for each segment of ``contact`` that holds no bit of ``known``; ``changes`` separates segments.

    Adding the start of a segment to its bits carries through to the first bit after it; a known bit stops the carry::

        contact  0 1 1 1 0 0 1 1 1 0     known       0 0 0 0 0 0 0 1 0 0
        + start  0 1 0 0 0 0 1 0 0 0     carry ends  0 0 0 0 1 0 0 1 0 0

    The first carry ends outside the contact: the first segment is news.
    """
    starts = contact & (~(contact << ONE) | changes)
    if starts & (contact << ONE):  # segments without a gap would hand on the carry: join each of them
        return starts
    unknown = contact & ~known
    carried = unknown + (starts & ~known)
    last = (carried & ~unknown & ~contact) >> ONE
    if carried < unknown:  # carried out of the word
        last |= ONE << TOP
    return last


@inlined
def run_of(masks: Masks, row: int, word: int, voxels: np.uint64) -> int:
    """Return the number of the run that holds the last of ``voxels`` (a mask of the lowest bits of ``word``)."""
    before = int(masks[row, word, FIRST])
    return before + int(count_bits(masks[row, word, STARTS] & voxels)) - 1


@inlined
def add_straight(pairs: Links, count: int, masks: Masks, here: int, other: int, word: int, bits: np.uint64) -> int:
    """List the two runs at each of ``bits``."""
    while bits:
        through = bits ^ (bits - ONE)  # up to and including the lowest bit
        pairs[count, 0] = run_of(masks, here, word, through)
        pairs[count, 1] = run_of(masks, other, word, through)
        count += 1
        bits &= bits - ONE
    return count


@inlined
def add_diagonal(
    pairs: Links,
    count: int,
    classes: Classes,
    masks: Masks,
    here: int,
    other: int,
    word: int,
    allowed: np.uint64,
    allowed_before: np.uint64,
) -> int:
    """List the runs that touch across a corner: ``x`` with ``x - 1``, where both rows change at ``x``.

    ``allowed`` says which voxels of ``here`` may step to ``x - 1``; ``allowed_before`` which voxels one to the left of
    the bit may step to ``x``.
    """
    before = masks[here, word, STARTS] & masks[other, word, ENDS] & allowed
    after = masks[here, word, ENDS] & masks[other, word, STARTS] & allowed_before
    x_here = (here * masks.shape[1] + word) * 64 + (here + 1) * MARGIN
    x_other = (other * masks.shape[1] + word) * 64 + (other + 1) * MARGIN
    before &= equal_bits(classes, x_here, classes, x_other - 1)
    after &= equal_bits(classes, x_here - 1, classes, x_other)
    crossed = before & after  # two classes change places
    bits = before | after
    while bits:  # one loop for both: in noise, its end is what the processor fails to predict
        upto = bits ^ (bits - ONE)
        is_before = np.uint64(before & upto != NONE)
        pairs[count, 0] = run_of(masks, here, word, upto >> (ONE - is_before))
        pairs[count, 1] = run_of(masks, other, word, upto >> is_before)
        count += 1
        before &= ~upto
        bits &= bits - ONE
    while crossed:
        upto = crossed ^ (crossed - ONE)
        pairs[count, 0] = run_of(masks, here, word, upto >> ONE)
        pairs[count, 1] = run_of(masks, other, word, upto)
        count += 1
        crossed &= crossed - ONE
    return count


@kernel
def list_contacts(
    pairs: Links,
    classes: Classes,
    masks: Masks,
    here: int,
    up: int,
    all_edges: np.uint64,
    all_corners: np.uint64,
    edge_classes: Classes,
    corner_classes: Classes,
) -> int:
    """List the pairs of runs to join between the row ``here`` and the rows before it; return their count.

    ``here`` and ``up`` are rows of the window; ``back`` is the row before ``here``, ``up_back`` and ``up_front`` lie
    beside ``up``; rows outside the volume are empty. ``all_edges`` and ``all_corners`` are all ones where every class
    has contacts across edges (18, 26) and corners (26); if only some classes have, those are in ``edge_classes`` and
    ``corner_classes``, each repeated 64 times.
    """
    words = masks.shape[1]
    stride = words * 64 + MARGIN
    back, up_back, up_front = here - 1, up - 1, up + 1
    count = 0
    up_left = back_left = edges_left = corners_left = NONE  # the same masks in the word to the left
    for word in range(words):
        foreground, changes = masks[here, word, FOREGROUND], masks[here, word, STARTS] | masks[here, word, ENDS]
        if not (changes | foreground):
            up_left = back_left = NONE
            continue
        x = MARGIN + 64 * word
        edges, corners = all_edges, all_corners
        for k in range(0, edge_classes.size, 64):
            edges |= equal_bits(classes, here * stride + x, edge_classes, k)
        for k in range(0, corner_classes.size, 64):
            corners |= equal_bits(classes, here * stride + x, corner_classes, k)
        touch_up = foreground & equal_bits(classes, here * stride + x, classes, up * stride + x)
        touch_back = foreground & equal_bits(classes, here * stride + x, classes, back * stride + x)

        begins = touch_up & (~((touch_up << ONE) | (up_left >> TOP)) | changes)
        count = add_straight(pairs, count, masks, here, up, word, begins)
        known = touch_up & touch_back
        if known & ~edges:  # without edge contacts, up and back were joined through up_back only
            known &= edges | equal_bits(classes, here * stride + x, classes, up_back * stride + x)
        count = add_straight(pairs, count, masks, here, back, word, news(touch_back, known, changes))

        if edges | (edges_left >> TOP):
            touch = edges & foreground & equal_bits(classes, here * stride + x, classes, up_back * stride + x)
            joined = touch & (touch_up | touch_back)
            count = add_straight(pairs, count, masks, here, up_back, word, news(touch, joined, changes))
            touch = edges & foreground & equal_bits(classes, here * stride + x, classes, up_front * stride + x)
            count = add_straight(pairs, count, masks, here, up_front, word, news(touch, touch & touch_up, changes))
            # A step to x - 1 or x + 1 of one row is known where the voxel also touches a row beside that row. The "was"
            # masks speak of the voxel to the left of each bit.
            was_up = (touch_up << ONE) | (up_left >> TOP)
            was_back = (touch_back << ONE) | (back_left >> TOP)
            was_edges = (edges << ONE) | (edges_left >> TOP)
            was_corners = (corners << ONE) | (corners_left >> TOP)
            to_up, was_to_up = edges & ~(touch_back & corners), was_edges & ~(was_back & was_corners)
            to_back, was_to_back = edges & ~(touch_up & corners), was_edges & ~(was_up & was_corners)
            to_up_back, was_to_up_back = corners & ~(touch_up | touch_back), was_corners & ~(was_up | was_back)
            to_up_front, was_to_up_front = corners & ~touch_up, was_corners & ~was_up
            ends = (masks[up, word, ENDS] & to_up) | (masks[back, word, ENDS] & to_back)
            ends |= (masks[up_back, word, ENDS] & to_up_back) | (masks[up_front, word, ENDS] & to_up_front)
            starts = (masks[up, word, STARTS] & was_to_up) | (masks[back, word, STARTS] & was_to_back)
            starts |= masks[up_back, word, STARTS] & was_to_up_back
            starts |= masks[up_front, word, STARTS] & was_to_up_front
            if (masks[here, word, STARTS] & ends) | (masks[here, word, ENDS] & starts):  # rare in smooth volumes
                count = add_diagonal(pairs, count, classes, masks, here, up, word, to_up, was_to_up)
                count = add_diagonal(pairs, count, classes, masks, here, back, word, to_back, was_to_back)
                count = add_diagonal(pairs, count, classes, masks, here, up_back, word, to_up_back, was_to_up_back)
                count = add_diagonal(pairs, count, classes, masks, here, up_front, word, to_up_front, was_to_up_front)
        up_left, back_left, edges_left, corners_left = touch_up, touch_back, edges, corners
    return count


@kernel
def join(parent: Links, pairs: Links, count: int) -> None:
    """Union the listed pairs of runs (Rem's algorithm with splicing; parents are never larger than their runs)."""
    for k in range(count):
        a, b = np.int64(pairs[k, 0]), np.int64(pairs[k, 1])
        while parent[a] != parent[b]:
            if parent[a] < parent[b]:
                a, b = b, a
            above = np.int64(parent[a])
            parent[a] = parent[b]
            if above == a:
                break
            a = above


@kernel
def link_planes(
    volume: Classes,
    shape: tuple[int, int, int],
    first_plane: int,
    last_plane: int,
    run: int,
    parent: Links,
    row_first: npt.NDArray[np.int64],
    stitch: bool,
    all_edges: np.uint64,
    all_corners: np.uint64,
    edge_classes: Classes,
    corner_classes: Classes,
) -> None:
    """Number the runs of the planes ``first_plane`` to ``last_plane`` (exclusive) from ``run``; join those that touch.

    Fills ``row_first`` (number of the first run of each row) and ``parent``. With ``stitch`` both exist already.
    """
    _, height, width = shape
    words = (width + 63) // 64
    # two planes of rows, each between two rows that stay empty
    rows = height + 2
    classes = np.zeros(2 * rows * (words * 64 + MARGIN), volume.dtype)
    masks = np.zeros((2 * rows, words, FIELDS), np.uint64)
    pairs = np.empty((words * 64 * 12, 2), parent.dtype)  # at most 4 straight and 8 diagonal contacts a voxel
    for z in range(first_plane, last_plane):
        here, up = (z & 1) * rows + 1, (~z & 1) * rows + 1
        for y in range(height):
            load_row(volume, (z * height + y) * width, width, classes, here + y)
        for y in range(height):
            row = z * height + y
            if stitch:
                run = int(row_first[row])
            after = mark_row(classes, masks, here + y, run)
            if not stitch:
                row_first[row] = run
                for i in range(run, after):
                    parent[i] = i
            if after > run:
                count = list_contacts(
                    pairs, classes, masks, here + y, up + y, all_edges, all_corners, edge_classes, corner_classes
                )
                join(parent, pairs, count)
            run = after
