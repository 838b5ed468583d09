"""From contacts to components: union-find over the runs of ``lpa/runs.py``, and the names of components.

Two arrays have an entry for each run: ``parents``, and ``names``: the linear index + 1 of the run's first voxel.
A union hangs the larger run number below the smaller one, so a parent comes before its run, the root of a component is
its first run in raster order, and the root's name is the paper's representative: it needs no search::

    run         0    1    2    3    4                       names, once resolved in this order
    parents     0    1    0    1    2       after linking
    names       3   41  104  142  203                       3   41    3   41    3

Slabs of planes are linked apart, their runs numbered from disjoint ranges. ``stitch`` then joins roots, and lists those
that got a parent. Nothing else of a later slab points out of it: once these few have the name of their root, each slab
can be resolved by itself.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lpa.bits import inlined, kernel, lowest_bit
from lpa.runs import (
    ALL,
    FIELDS,
    NEXT_WORD,
    NONE,
    ONE,
    PAIRS,
    STARTS,
    TWO,
    Classes,
    Contacts,
    Masks,
    Runs,
    list_contacts,
    mark_row,
    words_of,
)

WORD = 64  # voxels that may be read beyond a row
FULL = ALL

RowFirst = npt.NDArray[np.uint64]  # number of the first run of each row of a slab, and one past the slab's last run


@inlined
def open_runs(
    parents: Runs, names: Runs, masks: Masks, here: np.uint64, words: int, run: np.uint64, end: np.uint64, voxel: int
) -> None:
    """Enter the runs ``run`` to ``end`` (exclusive) of the row that begins at ``voxel``: each its own parent."""
    for new in range(run, end):
        parents[new] = new
    name = np.uint64(voxel + 1)
    for _ in range(words):
        starts = masks[here + STARTS]
        while starts:
            names[run] = name + np.uint64(lowest_bit(starts))
            run += ONE
            starts &= starts - ONE
        name += np.uint64(64)
        here += NEXT_WORD


@inlined
def join(parents: Runs, pairs: Runs, end: np.uint64) -> None:
    """Union the listed pairs of runs (Rem's algorithm with splicing; parents are never larger than their runs)."""
    k = NONE
    while k < end:
        a, b = np.uint64(pairs[k]), np.uint64(pairs[k + ONE])
        above_a, above_b = np.uint64(parents[a]), np.uint64(parents[b])
        while above_a != above_b:
            if above_a < above_b:
                a, b = b, a
                above_a, above_b = above_b, above_a
            parents[a] = above_b
            if above_a == a:
                break
            a = above_a
            above_a = np.uint64(parents[a])
        k += TWO


@inlined
def root_of(parents: Runs, run: np.uint64) -> np.uint64:
    """Return the root above ``run``, halving the path to it."""
    while parents[run] != run:
        parents[run] = parents[np.uint64(parents[run])]
        run = np.uint64(parents[run])
    return run


@kernel
def link_plane(
    source: Classes,
    at: int,
    voxel: int,
    shape: tuple[int, int, int],
    masks: Masks,
    here: np.uint64,
    up: np.uint64,
    pairs: Runs,
    run: np.uint64,
    end: np.uint64,
    parents: Runs,
    names: Runs,
    row_first: RowFirst,
    touching: Contacts,
) -> np.uint64:
    """Number the runs of the plane at ``source[at:]`` from ``run``, join those that touch; return the next number.

    ``voxel`` is the linear index of the plane's first voxel, ``row_first`` the plane's part. Returns ``FULL`` where the
    number ``end`` would be reached.
    """
    _, height, width = shape
    words, plane = words_of(width), height * width
    for y in range(np.uint64(height)):
        row_first[y] = run
        after = mark_row(source, at, width, masks, here, run)
        if after > end:
            return FULL
        if after > run:
            open_runs(parents, names, masks, here, words, run, after, voxel)
            found = list_contacts(pairs, source, at, plane, width, masks, here, up, touching)
            join(parents, pairs, found)
            run = after
        at += width
        voxel += width
        here += np.uint64(words) * NEXT_WORD
        up += np.uint64(words) * NEXT_WORD
    return run


@inlined
def copy_planes(volume: Classes, plane: int, z: int, padded: Classes, margin: int) -> None:
    """Copy the planes ``z - 1``, if there is one, and ``z`` to ``padded[margin:]``."""
    for k in range(plane):
        padded[margin + plane + k] = volume[z * plane + k]
    if z > 0:
        for k in range(plane):
            padded[margin + k] = volume[(z - 1) * plane + k]


@kernel
def link_planes(
    volume: Classes,
    shape: tuple[int, int, int],
    first_plane: int,
    last_plane: int,
    run: int,
    end: int,
    parents: Runs,
    names: Runs,
    row_first: RowFirst,
    touching: Contacts,
) -> np.int64:
    """Number the runs of the planes ``first_plane`` to ``last_plane`` (exclusive) from ``run``; join those that touch.

    Fills ``parents``, ``names`` and ``row_first``. Returns the next free number, or -1 where ``end`` would be passed.
    """
    _, height, width = shape
    plane, rows, words = height * width, height + 2, words_of(width)
    masks = np.zeros(2 * rows * words * FIELDS, np.uint64)
    pairs = np.empty(words * 64 * PAIRS * 2, parents.dtype)
    margin = width + WORD  # rows are read that lie before a plane; their masks say that they do not exist
    padded = np.zeros(2 * plane + 2 * margin, volume.dtype)
    last = np.uint64(run)
    for z in range(first_plane, last_plane):
        if (z - 1) * plane >= margin and (z + 1) * plane + margin <= volume.size:
            source, at = volume, z * plane
        else:  # at the ends of the volume, reading beyond a row might read beyond the array
            copy_planes(volume, plane, z, padded, margin)
            source, at = padded, margin + plane
        here, up = ((z & 1) * rows + 1) * words * FIELDS, ((~z & 1) * rows + 1) * words * FIELDS
        last = link_plane(
            source,
            at,
            z * plane,
            shape,
            masks,
            np.uint64(here),
            np.uint64(up),
            pairs,
            last,
            np.uint64(end),
            parents,
            names,
            row_first[(z - first_plane) * height :],
            touching,
        )
        if last == FULL:
            return np.int64(-1)
    row_first[(last_plane - first_plane) * height] = last
    for border in (0, last_plane - first_plane - 1):  # for `stitch`: paths of one step
        for below in range(row_first[border * height], row_first[(border + 1) * height]):
            parents[below] = root_of(parents, np.uint64(below))
    return np.int64(last)


@kernel
def stitch(
    volume: Classes,
    shape: tuple[int, int, int],
    z: int,
    parents: Runs,
    before: RowFirst,
    after: RowFirst,
    touching: Contacts,
) -> Runs:
    """Join plane ``z - 1``, the last one of a slab, to plane ``z``; return the roots that got a parent.

    ``before`` and ``after`` are ``row_first`` of the two slabs.
    """
    _, height, width = shape
    plane, rows, words = height * width, height + 2, words_of(width)
    row_words = words * FIELDS
    masks = np.zeros(2 * rows * row_words, np.uint64)
    pairs = np.empty(words * 64 * PAIRS * 2, parents.dtype)
    margin = width + WORD
    padded = np.zeros(2 * plane + 2 * margin, volume.dtype)
    copy_planes(volume, plane, z, padded, margin)
    attached = np.empty(2 * plane, parents.dtype)
    n_attached = NONE
    for y in range(height):
        mark_row(padded, margin + y * width, width, masks, np.uint64((y + 1) * row_words), before[y - height - 1])
    for y in range(height):
        at, up = margin + plane + y * width, np.uint64((y + 1) * row_words)
        here = up + np.uint64(rows * row_words)
        mark_row(padded, at, width, masks, here, after[y])
        found = list_contacts(pairs, padded, at, plane, width, masks, here, up, touching)
        for k in range(NONE, found, TWO):
            # from the root in the slab, so that no path within the slab is touched
            a = root_of(parents, np.uint64(parents[np.uint64(pairs[k])]))
            b = root_of(parents, np.uint64(parents[np.uint64(pairs[k + ONE])]))
            if a != b:
                parents[max(a, b)] = min(a, b)
                attached[n_attached] = max(a, b)
                n_attached += ONE
    return attached[:n_attached].copy()


@kernel
def settle(parents: Runs, attached: Runs) -> None:
    """Hang runs that were roots of slabs directly below the root that they have now."""
    for k in range(attached.size):
        parents[np.uint64(attached[k])] = root_of(parents, np.uint64(attached[k]))


@kernel
def number_roots(parents: Runs, names: Runs, run: int, end: int, number: int) -> np.int64:
    """Name the roots among the runs ``run`` to ``end`` (exclusive) ``number``, ``number + 1``, ...; return the next."""
    name = np.uint64(number)
    for root in range(np.uint64(run), np.uint64(end)):
        if parents[root] == root:
            names[root] = name
            name += ONE
    return np.int64(name)


@kernel
def resolve(parents: Runs, names: Runs, run: int, end: int) -> None:
    """Give each of the runs ``run`` to ``end`` (exclusive) the name of its root."""
    for k in range(np.uint64(run), np.uint64(end)):
        names[k] = names[np.uint64(parents[k])]  # parents come first: theirs is the root's already
