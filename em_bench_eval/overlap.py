"""The sparse contingency table of two label maps: everything that a metric needs to know about their voxels.

Organelles are long runs, so runs are counted instead of voxels, and nothing of the size ``n_reference x n_prediction``
ever exists. Large volumes are counted by compiled code where numba is installed, everything else by numpy; the tables
are the same to the last bit. Tables of disjoint blocks of one item add up to the table of the whole item, exactly.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .label_maps import as_labels, refuse_negative
from .overlap_compiled import Kernels, count_runs, kernels

Ints = npt.NDArray[np.int64]
Ids = npt.NDArray[np.uint64]
Mask = npt.NDArray[np.bool_]
Index = tuple[int | slice, ...]
Runs = tuple[npt.NDArray[Any], npt.NDArray[Any], Mask, Ints]  # reference id, prediction id, ignored, voxels

PIECE_VOXELS = 1 << 20  # what is looked at, and copied if it must be, at a time: bounds the working memory
# numpy counts until it has taken about as long in this process as numba takes to be imported and ready (a second). One
# volume of 512^3 is enough to change over at once; a few images, or a volume of 256^3, never pay for it.
COMPILED_FROM_VOXELS = 1 << 26
MAX_THREADS, VOXELS_PER_THREAD = 8, 1 << 22  # every thread has a table of its own

_counted: Counter[np.dtype[Any]] = Counter()  # voxels seen in this process, by the width of the ids


@dataclass(frozen=True)
class OverlapTable:
    """Instance sizes and pairwise overlaps of a reference and a prediction; every count is exact.

    ``*_voxels`` counts outside the ignored region, ``*_ignored`` inside it; ids ascend and belong to instances with at
    least one voxel of either kind. ``pair_reference[k]`` and ``pair_prediction[k]`` are positions in the id arrays,
    in lexicographic order, and ``pair_voxels[k]`` > 0 is the size of that intersection outside the ignored region.
    """

    reference_ids: Ids
    reference_voxels: Ints
    reference_ignored: Ints
    prediction_ids: Ids
    prediction_voxels: Ints
    prediction_ignored: Ints
    pair_reference: Ints
    pair_prediction: Ints
    pair_voxels: Ints

    def merge(self, other: OverlapTable) -> OverlapTable:
        """Add the counts of a disjoint block of the same item; for more than a few blocks use ``merge_all``."""
        return OverlapTable.merge_all([self, other])

    @staticmethod
    def merge_all(tables: Sequence[OverlapTable]) -> OverlapTable:
        """Add the counts of disjoint blocks of one item (same ids mean the same instances): one sort for all."""
        reference_ids, r = _positions([table.reference_ids for table in tables])
        prediction_ids, p = _positions([table.prediction_ids for table in tables])
        pair_reference, pair_prediction, pair_voxels = _sum_by_pair(
            _joined([at[table.pair_reference] for at, table in zip(r, tables, strict=True)]),
            _joined([at[table.pair_prediction] for at, table in zip(p, tables, strict=True)]),
            _joined([table.pair_voxels for table in tables]),
        )

        def total(positions: list[Ints], counts: list[Ints], size: int) -> Ints:
            return _sum_at(size, _joined(positions), _joined(counts))

        return OverlapTable(
            reference_ids=reference_ids,
            reference_voxels=total(r, [table.reference_voxels for table in tables], len(reference_ids)),
            reference_ignored=total(r, [table.reference_ignored for table in tables], len(reference_ids)),
            prediction_ids=prediction_ids,
            prediction_voxels=total(p, [table.prediction_voxels for table in tables], len(prediction_ids)),
            prediction_ignored=total(p, [table.prediction_ignored for table in tables], len(prediction_ids)),
            pair_reference=pair_reference,
            pair_prediction=pair_prediction,
            pair_voxels=pair_voxels,
        )

    def select(self, reference: Mask, prediction: Mask) -> OverlapTable:
        """Keep the instances where the masks (parallel to the ids) are True; sizes stay whole, other pairs vanish."""
        pairs = reference[self.pair_reference] & prediction[self.pair_prediction]
        return OverlapTable(
            reference_ids=self.reference_ids[reference],
            reference_voxels=self.reference_voxels[reference],
            reference_ignored=self.reference_ignored[reference],
            prediction_ids=self.prediction_ids[prediction],
            prediction_voxels=self.prediction_voxels[prediction],
            prediction_ignored=self.prediction_ignored[prediction],
            pair_reference=(np.cumsum(reference) - 1)[self.pair_reference[pairs]],
            pair_prediction=(np.cumsum(prediction) - 1)[self.pair_prediction[pairs]],
            pair_voxels=self.pair_voxels[pairs],
        )


def contingency(
    reference: npt.ArrayLike, prediction: npt.ArrayLike, ignore: Mask | None = None, threads: int | None = None
) -> OverlapTable:
    """Count instance sizes and overlaps of two label maps of the same shape.

    ``reference`` and ``prediction`` are integer arrays, (y, x) or (z, y, x), 0 = background, ids up to 2**64 - 1, of
    any memory layout; ``ignore`` is a boolean array of the same shape, True where nothing counts. ``threads``:
    default: the CPUs of this process, at most 8; used on large volumes. Raises ``InputError``.
    """
    labels = [as_labels("reference", reference), as_labels("prediction", prediction)]
    for name, other in (("prediction", labels[1]), ("ignore", ignore)):
        if other is not None and other.shape != labels[0].shape:
            raise InputError(
                f"{name} and reference differ in shape",
                found=f"{name} {other.shape}, reference {labels[0].shape}",
                expected="the same voxel grid",
                remedy="resample labels to the grid of the reference (nearest voxel), and never crop silently",
            )
    if threads is not None and threads < 1:
        raise InputError("cannot count without a thread", found=f"threads={threads}", expected="1 or more, or None")
    volume = _Volume(labels[0], labels[1], ignore)
    _counted[volume.dtype] += volume.size
    compiled = kernels(volume.dtype) if _counted[volume.dtype] >= COMPILED_FROM_VOXELS else None
    if compiled is None:
        table = _table(_count(volume))
    else:
        table = _table(_count_compiled(volume, compiled, threads or _usable_threads(volume.size)))
    refuse_negative("reference", labels[0], int(table.reference_ids.max(initial=0)))
    refuse_negative("prediction", labels[1], int(table.prediction_ids.max(initial=0)))
    return table


class _Volume:
    """Two label maps and a mask of one shape, handed out in flat native pieces of one unsigned dtype.

    Where all of them lie contiguously in memory, in whatever order of the axes, pieces are views; otherwise each piece
    is copied, never the whole.
    """

    def __init__(self, reference: npt.NDArray[Any], prediction: npt.NDArray[Any], ignore: Mask | None) -> None:
        self.dtype = np.dtype(f"u{max(reference.itemsize, prediction.itemsize)}")
        # Signed arrays are read as unsigned ones, where negative ids become the largest and are refused afterwards.
        arrays = [labels.view(labels.dtype.str.replace("i", "u")) for labels in (reference, prediction)]
        if ignore is not None:
            arrays.append(ignore)
        axes = sorted(range(reference.ndim), key=lambda axis: -sum(abs(array.strides[axis]) for array in arrays))
        arrays = [array.transpose(axes) for array in arrays]
        if all(array.flags.c_contiguous for array in arrays):
            arrays = [array.reshape(-1) for array in arrays]
        self._arrays = arrays
        self.size = reference.size
        self.indices = list(_cut(arrays[0].shape, PIECE_VOXELS)) if self.size else []

    def pieces(self, indices: Sequence[Index]) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any], Mask]]:
        """Yield reference, prediction and mask (of length 0 if there is none) at each of the indices."""
        for index in indices:
            flat = [array[index].astype(self.dtype, copy=False) for array in self._arrays[:2]]
            flat += [array[index].astype(bool, copy=False) for array in self._arrays[2:]]
            flat = [np.require(piece, requirements=("C", "A")).reshape(-1) for piece in flat]
            yield flat[0], flat[1], flat[2] if len(flat) == 3 else np.zeros(0, bool)


def _cut(shape: tuple[int, ...], voxels: int) -> Iterator[Index]:
    """Indices of pieces of at most ``voxels`` voxels (but at least a row), in memory order."""
    inner = math.prod(shape[1:])
    if inner > voxels:
        for first in range(shape[0]):
            yield from ((first, *rest) for rest in _cut(shape[1:], voxels))
    else:
        step = voxels // inner
        yield from ((slice(start, start + step),) for start in range(0, shape[0], step))


def _count(volume: _Volume) -> Runs:
    """Run-length encode piece by piece, and add up the runs of each piece by their ids."""
    parts: list[Runs] = []
    for reference, prediction, ignored in volume.pieces(volume.indices):
        change = (reference[1:] != reference[:-1]) | (prediction[1:] != prediction[:-1])
        if len(ignored):
            change |= ignored[1:] != ignored[:-1]
        starts = np.concatenate([np.zeros(1, np.intp), np.flatnonzero(change) + 1])
        lengths = np.diff(starts, append=reference.size)
        foreground = (reference[starts] > 0) | (prediction[starts] > 0)
        starts = starts[foreground]
        hidden = ignored[starts] if len(ignored) else np.zeros(len(starts), bool)
        runs = reference[starts].astype(np.uint64), prediction[starts].astype(np.uint64), hidden, lengths[foreground]
        parts.append(_sum_runs(runs))
    return _join_runs(parts)


def _sum_runs(runs: Runs) -> Runs:
    """Each (reference id, prediction id, ignored) once."""
    reference_ids, (r,) = _positions([runs[0]])
    prediction_ids, (p,) = _positions([runs[1]])
    r, p, voxels = _sum_by_pair(r, 2 * p + runs[2], runs[3])
    return reference_ids[r], prediction_ids[p >> 1], (p & 1).astype(bool), voxels


def _count_compiled(volume: _Volume, compiled: Kernels, threads: int) -> Runs:
    """Every thread counts one stretch of the pieces into its own table."""
    shares = [list(share) for share in np.array_split(np.arange(len(volume.indices)), threads)]

    def count(share: list[int]) -> npt.NDArray[Any]:
        pieces = volume.pieces([volume.indices[k] for k in share])
        return count_runs(((r, p, ignored.view(np.uint8)) for r, p, ignored in pieces), compiled)

    if threads == 1:
        slots = count(shares[0])
    else:
        with ThreadPoolExecutor(threads) as pool:
            slots = np.concatenate(list(pool.map(count, shares)))
    content = slots["content"]
    ignored = (content & np.uint64(1)).astype(bool)
    return slots["reference"], slots["prediction"], ignored, (content >> np.uint64(1)).astype(np.int64)


def _usable_threads(voxels: int) -> int:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cpus, MAX_THREADS, voxels // VOXELS_PER_THREAD))


def _join_runs(parts: list[Runs]) -> Runs:
    empty: Runs = (np.zeros(0, np.uint64), np.zeros(0, np.uint64), np.zeros(0, bool), np.zeros(0, np.int64))
    return tuple(map(np.concatenate, zip(empty, *parts, strict=True)))  # type: ignore[return-value]


def _table(runs: Runs) -> OverlapTable:
    """Add up runs in any order, the same ids as often as they like."""
    reference, prediction, ignored, voxels = runs
    reference_ids, (r,) = _positions([reference])
    prediction_ids, (p,) = _positions([prediction])
    overlap = (reference > 0) & (prediction > 0) & ~ignored
    pair_reference, pair_prediction, pair_voxels = _sum_by_pair(r[overlap], p[overlap], voxels[overlap])
    reference_ignored = _sum_at(len(reference_ids), r[ignored], voxels[ignored])
    prediction_ignored = _sum_at(len(prediction_ids), p[ignored], voxels[ignored])
    table = OverlapTable(
        reference_ids=reference_ids,
        reference_voxels=_sum_at(len(reference_ids), r, voxels) - reference_ignored,
        reference_ignored=reference_ignored,
        prediction_ids=prediction_ids,
        prediction_voxels=_sum_at(len(prediction_ids), p, voxels) - prediction_ignored,
        prediction_ignored=prediction_ignored,
        pair_reference=pair_reference,
        pair_prediction=pair_prediction,
        pair_voxels=pair_voxels,
    )
    return table.select(reference_ids > 0, prediction_ids > 0)  # background was counted like an instance: drop it


def _positions(parts: Sequence[Ids]) -> tuple[Ids, list[Ints]]:
    """Return the distinct ids of all parts, ascending, and for each part the positions of its ids among them."""
    values = _joined(parts, np.uint64)
    largest = int(values.max(initial=0))
    if largest < 4 * len(values) + 1000:  # ids are consecutive, or nearly so: a list of all possible ones is shorter
        at = values.astype(np.int64)
        present = np.zeros(largest + 1, bool)
        present[at] = True
        ids = np.flatnonzero(present).astype(np.uint64)
        positions: Ints = (np.cumsum(present) - 1)[at]
    else:
        ids, positions = np.unique(values, return_inverse=True)
    ends = np.cumsum([0, *(len(part) for part in parts)])
    return ids, [positions[start:end] for start, end in pairwise(ends)]


def _sum_by_pair(first: Ints, second: Ints, counts: Ints) -> tuple[Ints, Ints, Ints]:
    """Return the distinct pairs of positions in lexicographic order, and the sum of the counts of each."""
    if not len(first):
        return first, second, counts
    width = int(second.max()) + 1
    keys = first * width + second  # positions, not ids: their product is far below 2**63
    order = np.argsort(keys)
    keys = keys[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[starts] // width, keys[starts] % width, np.add.reduceat(counts[order], starts)


def _sum_at(size: int, positions: Ints, counts: Ints) -> Ints:
    total = np.zeros(size, np.int64)
    np.add.at(total, positions, counts)
    return total


def _joined(parts: Sequence[npt.NDArray[Any]], dtype: Any = np.int64) -> npt.NDArray[Any]:
    return np.concatenate([np.zeros(0, dtype), *parts])
