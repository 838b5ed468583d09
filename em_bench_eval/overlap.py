"""The sparse contingency table of two label maps: everything that a metric needs to know about their voxels.

Label maps are run-length encoded first (organelles are long runs), so the sort that counts the overlaps handles runs
instead of voxels; nothing of the size ``n_reference x n_prediction`` ever exists. Tables of disjoint blocks of one
item add up to the table of the whole item, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .label_maps import as_labels

Ints = npt.NDArray[np.int64]
Ids = npt.NDArray[np.uint64]

_CHUNK_VOXELS = 1 << 22  # bounds the working memory of `contingency` to a few hundred MB
_PACKED_IDS = 1 << 31  # two ids below this and the ignore flag share one 64-bit key


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
        """Add the counts of a disjoint block of the same item (same ids mean the same instances)."""
        reference_ids, mine_r, theirs_r = _join(self.reference_ids, other.reference_ids)
        prediction_ids, mine_p, theirs_p = _join(self.prediction_ids, other.prediction_ids)
        width = max(1, len(prediction_ids))
        keys, voxels = _sum_by_key(
            np.concatenate(
                [
                    mine_r[self.pair_reference] * width + mine_p[self.pair_prediction],
                    theirs_r[other.pair_reference] * width + theirs_p[other.pair_prediction],
                ]
            ),
            np.concatenate([self.pair_voxels, other.pair_voxels]),
        )
        return OverlapTable(
            reference_ids=reference_ids,
            reference_voxels=_add(len(reference_ids), mine_r, self.reference_voxels, theirs_r, other.reference_voxels),
            reference_ignored=_add(
                len(reference_ids), mine_r, self.reference_ignored, theirs_r, other.reference_ignored
            ),
            prediction_ids=prediction_ids,
            prediction_voxels=_add(
                len(prediction_ids), mine_p, self.prediction_voxels, theirs_p, other.prediction_voxels
            ),
            prediction_ignored=_add(
                len(prediction_ids), mine_p, self.prediction_ignored, theirs_p, other.prediction_ignored
            ),
            pair_reference=keys // width,
            pair_prediction=keys % width,
            pair_voxels=voxels,
        )

    def select(self, reference: npt.NDArray[np.bool_], prediction: npt.NDArray[np.bool_]) -> OverlapTable:
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
    reference: npt.ArrayLike, prediction: npt.ArrayLike, ignore: npt.NDArray[np.bool_] | None = None
) -> OverlapTable:
    """Count instance sizes and overlaps of two label maps of the same shape.

    ``reference`` and ``prediction`` are integer arrays, (y, x) or (z, y, x), 0 = background, ids up to 2**64 - 1;
    ``ignore`` is a boolean array of the same shape, True where nothing counts. Raises ``InputError``.
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
    (reference_flat, reference_names), (prediction_flat, prediction_names) = map(_small_ids, labels)
    ignore_flat = None if ignore is None else ignore.reshape(-1)
    keys: Ints = np.zeros(0, np.int64)
    counts: Ints = np.zeros(0, np.int64)
    for start in range(0, reference_flat.size, _CHUNK_VOXELS):
        chunk = slice(start, start + _CHUNK_VOXELS)
        runs = _runs(reference_flat[chunk], prediction_flat[chunk], None if ignore_flat is None else ignore_flat[chunk])
        keys, counts = _sum_by_key(np.concatenate([keys, runs[0]]), np.concatenate([counts, runs[1]]))
    return _table(keys, counts, reference_names, prediction_names)


def _small_ids(labels: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], Ids | None]:
    """Flatten; ids that do not fit into a packed key are replaced by their position among the ids that occur."""
    flat = labels.reshape(-1)
    if flat.size == 0 or int(flat.max()) < _PACKED_IDS:
        return flat, None
    names, positions = np.unique(flat, return_inverse=True)
    has_background = int(names[0]) == 0
    return positions.reshape(-1) + (0 if has_background else 1), names[names > 0].astype(np.uint64)


def _runs(
    reference: npt.NDArray[Any], prediction: npt.NDArray[Any], ignore: npt.NDArray[np.bool_] | None
) -> tuple[Ints, Ints]:
    """Run-length encode the foreground: packed (reference, prediction, ignored) keys, summed run lengths."""
    change = (reference[1:] != reference[:-1]) | (prediction[1:] != prediction[:-1])
    if ignore is not None:
        change |= ignore[1:] != ignore[:-1]
    starts = np.concatenate([np.zeros(1, np.intp), np.flatnonzero(change) + 1])
    lengths = np.diff(starts, append=reference.size)
    keys = (reference[starts].astype(np.int64) << 32) | (prediction[starts].astype(np.int64) << 1)
    foreground = keys > 0
    if ignore is not None:
        keys |= ignore[starts]
    return _sum_by_key(keys[foreground], lengths[foreground])


def _table(keys: Ints, counts: Ints, reference_names: Ids | None, prediction_names: Ids | None) -> OverlapTable:
    reference, prediction, ignored = keys >> 32, (keys >> 1) & (_PACKED_IDS - 1), (keys & 1).astype(bool)
    reference_ids, reference_position = np.unique(reference, return_inverse=True)
    prediction_ids, prediction_position = np.unique(prediction, return_inverse=True)
    sums = []
    for ids, position in ((reference_ids, reference_position), (prediction_ids, prediction_position)):
        for where in (~ignored, ignored):
            total = np.zeros(len(ids), np.int64)
            np.add.at(total, position[where], counts[where])
            sums.append(total)
    table = OverlapTable(
        _names(reference_ids, reference_names),
        sums[0],
        sums[1],
        _names(prediction_ids, prediction_names),
        sums[2],
        sums[3],
        pair_reference=reference_position[~ignored].astype(np.int64),
        pair_prediction=prediction_position[~ignored].astype(np.int64),
        pair_voxels=counts[~ignored],
    )
    return table.select(reference_ids > 0, prediction_ids > 0)  # background was counted like an instance: drop it


def _names(positions: Ints, names: Ids | None) -> Ids:
    """Undo `_small_ids`."""
    ids = positions.astype(np.uint64) if names is None else np.concatenate([np.zeros(1, np.uint64), names])[positions]
    return np.asarray(ids, np.uint64)


def _sum_by_key(keys: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Return the distinct keys, ascending, and the sum of the counts of each."""
    if not len(keys):
        return keys, counts
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[first], np.add.reduceat(counts, first)


def _join(mine: Ids, theirs: Ids) -> tuple[Ids, Ints, Ints]:
    """Union of two ascending id arrays, and the position of each array's ids in it."""
    ids = np.union1d(mine, theirs)
    return ids, np.searchsorted(ids, mine).astype(np.int64), np.searchsorted(ids, theirs).astype(np.int64)


def _add(size: int, first: Ints, first_counts: Ints, second: Ints, second_counts: Ints) -> Ints:
    total = np.zeros(size, np.int64)
    for position, counts in ((first, first_counts), (second, second_counts)):
        total[position] += counts  # positions are distinct within one table
    return total
