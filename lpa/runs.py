"""Runs of equal voxels and their contacts: what the fast labeller (``lpa/engine.py``) reads from a volume.

A run is a maximal row segment of one class. Runs are numbered in raster order: voxel ``x`` lies in the run whose number
is the count of run starts up to ``x``, one ``popcount`` in a 64-bit mask::

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

The masks of two planes are kept, flat: ``FIELDS`` words for every 64 voxels of a row, and an empty row before and after
each plane. ``here``, ``up``, ... are positions in this array.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lpa.bits import count_bits, equal_bits, inlined, nonzero_bits

Classes = npt.NDArray[Any]  # unsigned integers, C-contiguous, flat
Masks = npt.NDArray[np.uint64]
Runs = npt.NDArray[Any]  # run numbers, unsigned

FIELDS = 4
FOREGROUND, STARTS, ENDS, FIRST = map(np.uint64, range(FIELDS))  # FIRST: the first run that starts in this word
NONE, ONE, TWO, TOP = map(np.uint64, (0, 1, 2, 63))
ALL = ~NONE
NEXT_WORD = np.uint64(FIELDS)
PAIRS = 12  # at most 4 straight and 8 diagonal ones for each voxel


class Contacts(NamedTuple):
    """Which classes have contacts across edges (18, 26) and corners (26).

    The words are all ones if every class has; otherwise 0, and the arrays hold those that have, each 64 times.
    """

    all_edges: np.uint64
    all_corners: np.uint64
    edge_classes: Classes
    corner_classes: Classes


@inlined
def words_of(width: int) -> int:
    """Return the number of 64-bit words that a row takes."""
    return (width + 63) // 64


@inlined
def mark_row(source: Classes, at: int, width: int, masks: Masks, here: np.uint64, run: np.uint64) -> np.uint64:
    """Derive the masks of the row ``source[at : at + width]`` and number its runs from ``run``; return the next number.

    Reads the voxel before the row and up to 63 after it, whatever they are.
    """
    words = words_of(width)
    inside = ALL >> np.uint64(words * 64 - width)
    edge = ONE  # a row begins with a change
    foreground_left = NONE
    for word in range(words):
        x = at + 64 * word
        foreground = nonzero_bits(source, x)
        changes = ~equal_bits(source, x, source, x - 1) | edge
        edge = NONE
        if word == words - 1:
            foreground &= inside
            changes |= ~inside
        starts = changes & foreground
        masks[here + FOREGROUND] = foreground
        masks[here + STARTS] = starts
        masks[here + ENDS] = changes & ((foreground << ONE) | (foreground_left >> TOP))
        masks[here + FIRST] = run
        foreground_left = foreground
        run += np.uint64(count_bits(starts))
        here += NEXT_WORD
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
def run_of(masks: Masks, word: np.uint64, voxels: np.uint64) -> np.uint64:
    """Return the number of the run that holds the last of ``voxels`` (a mask of the lowest bits of ``word``)."""
    before = np.uint64(count_bits(masks[word + STARTS] & voxels)) - ONE
    return np.uint64(masks[word + FIRST] + before)


@inlined
def add_straight(
    pairs: Runs, end: np.uint64, masks: Masks, here: np.uint64, other: np.uint64, bits: np.uint64
) -> np.uint64:
    """List the two runs at each of ``bits``; return the new end of the list."""
    while bits:
        through = bits ^ (bits - ONE)  # up to and including the lowest bit
        pairs[end] = run_of(masks, here, through)
        pairs[end + ONE] = run_of(masks, other, through)
        end += TWO
        bits &= bits - ONE
    return end


@inlined
def add_diagonal(
    pairs: Runs,
    end: np.uint64,
    source: Classes,
    x: int,
    x_other: int,
    masks: Masks,
    here: np.uint64,
    other: np.uint64,
    allowed: np.uint64,
    allowed_before: np.uint64,
) -> np.uint64:
    """List the runs that touch across a corner: ``x`` with ``x - 1``, where both rows change at ``x``.

    ``allowed`` says which voxels of ``here`` may step to ``x - 1``; ``allowed_before`` which voxels one to the left of
    the bit may step to ``x``.
    """
    before = masks[here + STARTS] & masks[other + ENDS] & allowed & equal_bits(source, x, source, x_other - 1)
    after = masks[here + ENDS] & masks[other + STARTS] & allowed_before & equal_bits(source, x - 1, source, x_other)
    crossed = before & after  # two classes change places
    bits = before | after
    while bits:  # one loop for both: in noise, its end is what the processor fails to predict
        upto = bits ^ (bits - ONE)
        is_before = np.uint64(before & upto != NONE)
        pairs[end] = run_of(masks, here, upto >> (ONE - is_before))
        pairs[end + ONE] = run_of(masks, other, upto >> is_before)
        end += TWO
        before &= ~upto
        bits &= bits - ONE
    while crossed:
        upto = crossed ^ (crossed - ONE)
        pairs[end] = run_of(masks, here, upto >> ONE)
        pairs[end + ONE] = run_of(masks, other, upto)
        end += TWO
        crossed &= crossed - ONE
    return end


@inlined
def list_contacts(
    pairs: Runs,
    source: Classes,
    at: int,
    plane: int,
    width: int,
    masks: Masks,
    here: np.uint64,
    up: np.uint64,
    touching: Contacts,
) -> np.uint64:
    """List the runs to join between the row ``here`` at ``source[at:]`` and the rows before it; return the list's end.

    ``pairs`` holds two run numbers for each. The other rows lie a ``plane`` and a ``width`` away; rows outside the
    volume have empty masks.
    """
    all_edges, all_corners, edge_classes, corner_classes = touching
    row = np.uint64(words_of(width)) * NEXT_WORD
    back, up_back, up_front = here - row, up - row, up + row
    end = NONE
    up_left = back_left = edges_left = corners_left = NONE  # the same masks in the word to the left
    for x in range(at, at + width, 64):
        foreground, changes = masks[here + FOREGROUND], masks[here + STARTS] | masks[here + ENDS]
        edges = corners = touch_up = touch_back = NONE
        if changes | foreground:
            edges, corners = all_edges, all_corners
            for k in range(0, edge_classes.size, 64):
                edges |= equal_bits(source, x, edge_classes, k)
            for k in range(0, corner_classes.size, 64):
                corners |= equal_bits(source, x, corner_classes, k)
            x_up, x_back, x_up_back, x_up_front = x - plane, x - width, x - plane - width, x - plane + width
            touch_up = foreground & masks[up + FOREGROUND] & equal_bits(source, x, source, x_up)
            touch_back = foreground & masks[back + FOREGROUND] & equal_bits(source, x, source, x_back)

            begins = touch_up & (~((touch_up << ONE) | (up_left >> TOP)) | changes)
            end = add_straight(pairs, end, masks, here, up, begins)
            known = touch_up & touch_back
            if known & ~edges:  # without edge contacts, up and back were joined through up_back only
                known &= edges | (masks[up_back + FOREGROUND] & equal_bits(source, x, source, x_up_back))
            end = add_straight(pairs, end, masks, here, back, news(touch_back, known, changes))

            if edges | (edges_left >> TOP):
                may = edges & foreground
                touch = may & masks[up_back + FOREGROUND] & equal_bits(source, x, source, x_up_back)
                joined = touch & (touch_up | touch_back)
                end = add_straight(pairs, end, masks, here, up_back, news(touch, joined, changes))
                touch = may & masks[up_front + FOREGROUND] & equal_bits(source, x, source, x_up_front)
                end = add_straight(pairs, end, masks, here, up_front, news(touch, touch & touch_up, changes))
                # A step to x - 1 or x + 1 of one row is known where the voxel also touches a row beside that row. The
                # "was" masks speak of the voxel to the left of each bit.
                was_up = (touch_up << ONE) | (up_left >> TOP)
                was_back = (touch_back << ONE) | (back_left >> TOP)
                was_edges = (edges << ONE) | (edges_left >> TOP)
                was_corners = (corners << ONE) | (corners_left >> TOP)
                to_up, was_to_up = edges & ~(touch_back & corners), was_edges & ~(was_back & was_corners)
                to_back, was_to_back = edges & ~(touch_up & corners), was_edges & ~(was_up & was_corners)
                to_up_back, was_to_up_back = corners & ~(touch_up | touch_back), was_corners & ~(was_up | was_back)
                to_up_front, was_to_up_front = corners & ~touch_up, was_corners & ~was_up
                ends = (masks[up + ENDS] & to_up) | (masks[back + ENDS] & to_back)
                ends |= (masks[up_back + ENDS] & to_up_back) | (masks[up_front + ENDS] & to_up_front)
                starts = (masks[up + STARTS] & was_to_up) | (masks[back + STARTS] & was_to_back)
                starts |= masks[up_back + STARTS] & was_to_up_back
                starts |= masks[up_front + STARTS] & was_to_up_front
                if (masks[here + STARTS] & ends) | (masks[here + ENDS] & starts):  # rare in smooth volumes
                    end = add_diagonal(pairs, end, source, x, x_up, masks, here, up, to_up, was_to_up)
                    end = add_diagonal(pairs, end, source, x, x_back, masks, here, back, to_back, was_to_back)
                    end = add_diagonal(
                        pairs, end, source, x, x_up_back, masks, here, up_back, to_up_back, was_to_up_back
                    )
                    end = add_diagonal(
                        pairs, end, source, x, x_up_front, masks, here, up_front, to_up_front, was_to_up_front
                    )
        up_left, back_left, edges_left, corners_left = touch_up, touch_back, edges, corners
        here += NEXT_WORD
        up += NEXT_WORD
        back += NEXT_WORD
        up_back += NEXT_WORD
        up_front += NEXT_WORD
    return end
