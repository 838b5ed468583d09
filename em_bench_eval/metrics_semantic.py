"""Semantic family: voxels of the organelle's mask; and the counts."""

from __future__ import annotations

from collections.abc import Callable

from .metric import Metric, Statistics, Value, ratio
from .metrics_instance import EITHER

POOLED = "voxels of everything added, pooled; before any instance is dropped"
NO_INSTANCES = "instances ignored: says nothing about merges and splits"
DICE = "Dice 1945, doi:10.2307/1932409"


def _both(s: Statistics) -> float:
    return s["mask_reference"] + s["mask_prediction"]


def _dice(s: Statistics) -> Value:
    return ratio(2 * s["mask_intersection"], _both(s), _both(s))


def _mask(compute: Callable[[Statistics], Value], what: str, formula: str, edge_cases: str = EITHER) -> Metric:
    return Metric(
        compute,
        f"{what} of the organelle's mask, {NO_INSTANCES}",
        formula,
        "0..1",
        POOLED,
        edge_cases.replace("instance", "voxel"),
        DICE,
        "semantic",
    )


def _count(statistic: str, definition: str) -> Metric:
    return Metric(
        lambda s: int(s[statistic]), definition, definition, "0..", "sum", "0", "this project", "count", better=""
    )


METRICS: dict[str, Metric] = {
    "semantic_dice": _mask(_dice, "Dice coefficient", "2 TP / (2 TP + FP + FN), in voxels"),
    "semantic_iou": _mask(
        lambda s: ratio(s["mask_intersection"], _both(s) - s["mask_intersection"], _both(s)),
        "IoU",
        "TP / (TP + FP + FN), in voxels",
    ),
    "semantic_precision": _mask(
        lambda s: ratio(s["mask_intersection"], s["mask_prediction"], _both(s)),
        "precision",
        "TP / (TP + FP), in voxels",
    ),
    "semantic_recall": _mask(
        lambda s: ratio(s["mask_intersection"], s["mask_reference"], s["mask_reference"]),
        "recall",
        "TP / (TP + FN), in voxels",
        "None without reference voxels, whatever is predicted; 0.0 if nothing is predicted",
    ),
    "semantic_fscore": _mask(
        _dice, "F-score (the same number as semantic_dice, under RETINA's name)", "2 TP / (2 TP + FP + FN), in voxels"
    ),
    "n_reference": _count("n_reference", "number of reference instances that were judged"),
    "n_prediction": _count("n_prediction", "number of predicted instances that were judged"),
    "n_matched": _count("n_matched", "pairs in the maximum-IoU matching, with any overlap"),
    "n_hits": _count("n_hits", "true positives: pairs with IoU above the threshold"),
}
