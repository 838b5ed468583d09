"""Instances of single slices linked through z: one id per instance in the whole volume.

Two pieces of neighbouring slices are one instance if they are of the same organelle and share enough pixels, measured
by the smaller one. Links are transitive (union-find), so an instance may branch and its branches may join again::

    slice z      (  a  )   ( b )            a and c overlap, b and c overlap: a, b, c are one instance
    slice z + 1    (    c    )     ( d )    d overlaps nothing: a new one

What this cannot see is a gap of one slice, and two instances that touch through z only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from em_bench_eval.errors import InputError
from em_bench_eval.overlap import contingency

Labels2D = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SliceRule:
    """When pieces of two neighbouring slices are one instance.

    ``min_inclusion``: common pixels / pixels of the smaller piece, at least this, and at least one pixel in common.
    With 0 any common pixel links: components whose slices are 4-connected become the volume's 6-connected components
    exactly. More keeps instances apart that only graze each other; too much tears thin oblique sheets, which move on by
    more than their own thickness where slices are thick.
    """

    min_inclusion: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.min_inclusion <= 1:
            raise InputError("min_inclusion is a share", found=self.min_inclusion, expected="0 to 1")


class SliceLinker:
    """Takes the slices of a volume in the order of z, then says which piece is which instance.

    Memory: two slices, and 8 bytes for each piece and each link.
    """

    def __init__(self, rule: SliceRule = SliceRule()) -> None:
        self.rule = rule
        self._before: tuple[Labels2D, npt.NDArray[Any], int] | None = None
        self._first = [1]  # number of each slice's first piece among all; 0 is background
        self._links: list[Ints] = []

    def add(self, labels: Labels2D, classes: npt.NDArray[Any]) -> None:
        """Add the next slice.

        Args:
            labels: ``(y, x)``, pieces 1 to n without gaps, 0 = background.
            classes: ``(n + 1,)``, the class of each piece; entry 0 is not looked at.
        """
        here = self._first[-1]
        if self._before is not None:
            before, classes_before, there = self._before
            table = contingency(before, labels)
            a, b = table.pair_reference, table.pair_prediction
            smaller = np.minimum(table.reference_voxels[a], table.prediction_voxels[b])
            old, new = (ids[at].astype(np.int64) for ids, at in ((table.reference_ids, a), (table.prediction_ids, b)))
            same = classes_before[old] == classes[new]
            joined = same & (table.pair_voxels >= self.rule.min_inclusion * smaller)
            self._links.append(np.stack([old[joined] + there - 1, new[joined] + here - 1], axis=1))
        self._before = (labels, classes, here)
        self._first.append(here + len(classes) - 1)

    def finish(self) -> list[npt.NDArray[np.uint32]]:
        """Return for each slice the id of each piece, ``(n + 1,)`` with entry 0 = 0.

        Ids run from 1 to N in the order of the instances' first pieces.
        """
        count = self._first[-1]
        links = np.concatenate([np.zeros((0, 2), np.int64), *self._links])
        root = union(count, links)
        root[0] = 0
        is_root = root == np.arange(count)
        number = np.cumsum(is_root) - 1  # background stays 0
        ids = number[root].astype(np.uint32)
        slices = []
        for first, end in zip(self._first[:-1], self._first[1:], strict=True):
            slices.append(np.concatenate([ids[:1], ids[first:end]]))
        return slices


def union(count: int, links: Ints) -> Ints:
    """Join the numbers 0 to ``count`` - 1 by links ``(n, 2)``; return the smallest number of each one's set."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(len(links), np.bool_), (links[:, 0], links[:, 1])), shape=(count, count))
    _, part = connected_components(edges, directed=False)
    smallest = np.full(count, count, np.int64)
    np.minimum.at(smallest, part, np.arange(count))
    return np.asarray(smallest[part], np.int64)


def link_slices(
    slices: Iterable[tuple[Labels2D, npt.NDArray[Any]]],
    rule: SliceRule = SliceRule(),
) -> Iterator[npt.NDArray[np.uint32]]:
    """Link slices that are all in memory; yields each slice ``(y, x)`` with the ids of the volume.

    ``slices`` are the arguments of ``SliceLinker.add``, in the order of z.
    """
    kept = list(slices)
    linker = SliceLinker(rule)
    for labels, classes in kept:
        linker.add(labels, classes)
    for (labels, _), ids in zip(kept, linker.finish(), strict=True):
        yield ids[labels]
