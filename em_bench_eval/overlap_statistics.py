"""Additive statistics of one organelle in one item, from its overlap table alone."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .judging import Judged
from .matching import dice
from .overlap import OverlapTable

AP_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
# Bounds between small, medium and large: a disc or ball of about 250 nm (a vesicle) and 1 um (a whole mitochondrion)
# in diameter. Fixed, so that classes mean the same in every data set. nm^2 in images, nm^3 in volumes.
SIZE_CLASSES = ("small", "medium", "large")
SIZE_BOUNDS_NM = {2: (5e4, 8e5), 3: (1e7, 5e8)}

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def overlap_statistics(table: OverlapTable, judged: Judged, voxel_nm: float, axes: int) -> dict[str, float]:
    """Reduce an overlap table to numbers that add up over items.

    ``table`` holds all instances (mask and partition metrics count voxels before any instance is dropped), ``judged``
    those that are judged, with their matching; ``voxel_nm`` is the area (``axes`` 2) or volume (3) of a voxel.
    """
    return {**_instances(judged), **_size_classes(judged, voxel_nm, axes), **_mask(table), **_partition(table)}


def _instances(judged: Judged) -> dict[str, float]:
    table, chosen = judged.table, judged.matched
    reference = table.reference_voxels[table.pair_reference]
    prediction = table.prediction_voxels[table.pair_prediction]
    pair_dice = dice(table.pair_voxels, reference, prediction)
    best = _best_partners(judged)
    used = np.zeros(len(table.prediction_ids), bool)
    used[table.pair_prediction[best]] = True
    return {
        "n_reference": len(table.reference_ids),
        "n_prediction": len(table.prediction_ids),
        "n_matched": len(chosen),
        "reference_voxels": int(table.reference_voxels.sum()),
        "prediction_voxels": int(table.prediction_voxels.sum()),
        "matched_voxels": int(table.pair_voxels[chosen].sum()),
        "matched_dice": _total(pair_dice[chosen]),
        "matched_iou": _total(judged.pair_iou[chosen]),
        "matched_dice_voxels": _total(pair_dice[chosen] * reference[chosen]),
        "matched_iou_voxels": _total(judged.pair_iou[chosen] * reference[chosen]),
        "n_hits": int(judged.hits.sum()),
        "hits_iou": _total(judged.pair_iou[judged.hits]),
        **{hits_name(threshold): int((judged.pair_iou > threshold).sum()) for threshold in AP_THRESHOLDS},
        "best_dice_reference": _total(_best(table.pair_reference, pair_dice, len(table.reference_ids))),
        "best_dice_prediction": _total(_best(table.pair_prediction, pair_dice, len(table.prediction_ids))),
        "aji_intersection": int(table.pair_voxels[best].sum()),
        "aji_union": int(
            table.reference_voxels.sum()
            + (prediction - table.pair_voxels)[best].sum()
            + table.prediction_voxels[~used].sum()
        ),
    }


def hits_name(threshold: float) -> str:
    """Name the statistic that counts pairs above an IoU threshold: ``hits_75``."""
    return f"hits_{round(100 * threshold)}"


def _best_partners(judged: Judged) -> Ints:
    """For each reference instance with any overlap, its pair of highest IoU; of equal ones the matched one."""
    table = judged.table
    is_matched = np.zeros(len(judged.pair_iou), bool)
    is_matched[judged.matched] = True
    order = np.lexsort((is_matched, table.pair_voxels, judged.pair_iou, table.pair_reference))
    last = np.flatnonzero(np.diff(table.pair_reference[order], append=-1))
    return np.asarray(order[last], np.int64)


def _best(group: Ints, values: Floats, size: int) -> Floats:
    best = np.zeros(size)
    np.maximum.at(best, group, values)
    return best


def _size_classes(judged: Judged, voxel_nm: float, axes: int) -> dict[str, float]:
    table = judged.table
    size_class = np.searchsorted(SIZE_BOUNDS_NM[axes], table.reference_voxels * voxel_nm, side="right")
    found = size_class[table.pair_reference[judged.hits]]
    counts: dict[str, float] = {}
    for index, name in enumerate(SIZE_CLASSES):
        counts[f"n_reference_{name}"] = int((size_class == index).sum())
        counts[f"n_hits_{name}"] = int((found == index).sum())
    return counts


def _mask(table: OverlapTable) -> dict[str, float]:
    return {
        "mask_intersection": int(table.pair_voxels.sum()),
        "mask_reference": int(table.reference_voxels.sum()),
        "mask_prediction": int(table.prediction_voxels.sum()),
    }


def _partition(table: OverlapTable) -> dict[str, float]:
    """Entropies (voxels x bits) and pairs of voxels, for VOI and Rand.

    Two domains: the reference's foreground, and the union of both foregrounds. A background voxel inside the domain is
    a segment of its own (as SNEMI3D treats them), so that leaving out or painting over the foreground costs.
    """
    joint, reference, prediction = table.pair_voxels, table.reference_voxels, table.prediction_voxels
    r, p = reference[table.pair_reference], prediction[table.pair_prediction]
    # predicted segments as far as they lie in the reference's foreground
    inside = np.bincount(table.pair_prediction, joint, len(prediction)).astype(np.int64)
    p_inside = inside[table.pair_prediction]
    missed = reference - np.bincount(table.pair_reference, joint, len(reference)).astype(np.int64)
    invented = prediction - inside
    split = _total(joint * np.log2(r / joint)) + _total(missed * np.log2(np.maximum(reference, 1)))
    n_joint, n_reference = int(joint.sum()), int(reference.sum())
    return {
        "foreground_voxels": n_reference,
        "foreground_split": split,
        "foreground_merge": _total(joint * np.log2(p_inside / joint)),
        "foreground_pairs_prediction": _pairs(inside),
        "union_voxels": n_reference + int(prediction.sum()) - n_joint,
        "union_split": split,
        "union_merge": _total(joint * np.log2(p / joint)) + _total(invented * np.log2(np.maximum(prediction, 1))),
        "union_pairs_prediction": _pairs(prediction),
        "pairs_reference": _pairs(reference),
        "pairs_joint": _pairs(joint),
    }


def _pairs(sizes: Ints) -> float:
    """Number of pairs of voxels in the same segment, in either order; a float, as it may exceed 64 bits."""
    return math.fsum((sizes.astype(np.float64) * (sizes - 1)).tolist())


def _total(values: npt.NDArray[np.float64]) -> float:
    """Exactly rounded sum: the same bits for every order of the values."""
    return math.fsum(values.tolist())
