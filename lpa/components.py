"""From joined runs to labels: the second half of the fast labeller's kernels (``lpa/runs.py`` explains runs).

Each slab numbers its own components in the order of their first runs, so the array of parents becomes one of component
numbers in place, and a table names the components. A guest is a component that began in an earlier slab::

    slab 0   runs        0  1  2  3  4        parents  0  1  0  1  4      numbers  0  1  0  1  2     names  1  9  40
    slab 1   runs        5  6  7  8           parents  1  6  5  6         numbers  3  4  3  4        names  9  77
                                                       guest of root 1: number 3 gets the name of number 1
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lpa.bits import inlined, kernel, lowest_bit
from lpa.runs import ENDS, FIELDS, MARGIN, NONE, ONE, STARTS, Classes, Links, Masks, load_row, mark_row

BLOCK = 16  # voxels per store


@kernel
def settle(parent: Links, first_run: int, last_run: int) -> tuple[int, int]:
    """Count a slab's components, and those of them that began in an earlier slab; hang the latter below their root."""
    components = guests = 0
    for run in range(first_run, last_run):
        above = np.int64(parent[run])
        if above < first_run:
            while above != parent[above]:
                above = np.int64(parent[above])
            parent[run] = above
            guests += 1
        components += int(above == run or above < first_run)
    return components, guests


@kernel
def number_components(
    volume: Classes,
    width: int,
    first_row: int,
    last_row: int,
    row_first: npt.NDArray[np.int64],
    parent: Links,
    number: int,
    name: int,
    names: Links,
    guests: npt.NDArray[np.int64],
) -> None:
    """Turn ``parent`` of each run of a slab into the number of its component, from ``number``; name the components.

    Names are ``name``, ``name + 1``, ... or, if ``name`` is 0, the linear index + 1 of the first voxel. A component
    from an earlier slab gets a number here too; ``guests`` lists it with its root, and its name is left for later.
    """
    words = (width + 63) // 64
    classes = np.zeros(words * 64 + MARGIN, volume.dtype)
    masks = np.zeros((1, words, FIELDS), np.uint64)
    first_run = row_first[first_row]
    guest = 0
    for row in range(first_row, last_row):
        next_new = number
        for run in range(row_first[row], row_first[row + 1]):
            above = np.int64(parent[run])
            if above < first_run:
                guests[guest, 0], guests[guest, 1] = number, above
                guest += 1
                above = np.int64(run)
            elif name and above == run:
                names[number] = name
                name += 1
            parent[run] = number if above == run else parent[above]  # parents come first: theirs is a number already
            number += int(above == run)
        if next_new == number or name:
            continue
        load_row(volume, row * width, width, classes, 0)
        mark_row(classes, masks, 0, 0)
        run = row_first[row]
        for word in range(words):
            starts = masks[0, word, STARTS]
            while starts and next_new < number:
                names[next_new] = (
                    row * width + 64 * word + lowest_bit(starts) + 1
                )  # stays if the run is the next new one
                next_new += int(parent[run] == next_new)
                run += 1
                starts &= starts - ONE


@inlined
def write_row(out: Links, begin: int, width: int, masks: Masks, run: int, component: Links, names: Links) -> None:
    """Write the labels of a row to ``out[begin:]``, left to right, in blocks; what one overruns is written next."""
    x = 0
    name = names.dtype.type(0)
    for word in range(masks.shape[1] + 1):
        if word < masks.shape[1]:
            starts = masks[0, word, STARTS]
            changes = starts | masks[0, word, ENDS]
        else:
            changes, starts = ONE, NONE
        while changes:
            end = min(width, 64 * word + lowest_bit(changes))
            while x < end:
                at = np.uint64(begin + x)
                for k in range(np.uint64(BLOCK)):
                    out[at + k] = name
                x += BLOCK
            x = end
            lowest = changes & (~changes + ONE)
            changes ^= lowest
            name = names.dtype.type(0)
            if starts & lowest:
                name = names[component[run]]
                run += 1


@kernel
def write_labels(
    volume: Classes,
    width: int,
    first_row: int,
    last_row: int,
    row_first: npt.NDArray[np.int64],
    component: Links,
    names: Links,
    out: Links,
) -> None:
    """Write the labels of the rows ``first_row`` to ``last_row`` (exclusive): the name of each run's component."""
    words = (width + 63) // 64
    classes = np.zeros(words * 64 + MARGIN, volume.dtype)
    masks = np.zeros((1, words, FIELDS), np.uint64)
    scratch = np.zeros(width + BLOCK, out.dtype)
    for row in range(first_row, last_row):
        if row_first[row] == row_first[row + 1]:
            begin = np.uint64(row * width)
            for x in range(np.uint64(width)):
                out[begin + x] = 0
            continue
        load_row(volume, row * width, width, classes, 0)
        mark_row(classes, masks, 0, 0)
        if (row + 1) * width + BLOCK <= last_row * width:
            write_row(out, row * width, width, masks, row_first[row], component, names)
        else:  # the last rows must not overrun what another thread writes
            write_row(scratch, 0, width, masks, row_first[row], component, names)
            for x in range(width):
                out[row * width + x] = scratch[x]
