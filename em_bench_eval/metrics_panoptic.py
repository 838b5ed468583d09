"""Panoptic family: detection at an IoU threshold (PQ, SQ, RQ, F1, precision, recall) and average precision."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .metric import Metric, Statistics, Value, ratio
from .metrics_instance import EITHER, REFERENCE, either
from .overlap_statistics import AP_THRESHOLDS, hits_name

KIRILLOV = "Kirillov et al. 2019, doi:10.1109/CVPR.2019.00963"
STARDIST = "StarDist's average precision: Schmidt et al. 2018, doi:10.1007/978-3-030-00934-2_30"
POOLED = "instances of everything added, pooled"


def _rq(s: Statistics) -> Value:
    return ratio(2 * s["n_hits"], either(s), either(s))


def _rq_like(definition: str) -> Metric:
    return Metric(_rq, definition, "TP / (TP + FP / 2 + FN / 2)", "0..1", POOLED, EITHER, KIRILLOV, "panoptic")


def _average_precision(thresholds: Sequence[float], what: str) -> Metric:
    def compute(s: Statistics) -> Value:
        hits = [s[hits_name(threshold)] for threshold in thresholds]
        values = [ratio(n, either(s) - n, either(s)) or 0.0 for n in hits]
        return math.fsum(values) / len(values) if either(s) else None

    return Metric(
        compute,
        f"average precision {what}: true positives over true and false positives and false negatives, without ranking "
        "by confidence",
        "TP / (TP + FP + FN)" + (", mean over the thresholds" if len(thresholds) > 1 else ""),
        "0..1",
        POOLED,
        EITHER,
        STARDIST,
        "panoptic",
    )


METRICS: dict[str, Metric] = {
    "pq": Metric(
        lambda s: ratio(2 * s["hits_iou"], either(s), either(s)),
        "panoptic quality, SQ * RQ; a true positive is a pair with IoU above the threshold (0.5)",
        "sum of IoU over true positives / (TP + FP / 2 + FN / 2)",
        "0..1",
        POOLED,
        EITHER,
        KIRILLOV,
        "panoptic",
    ),
    "sq": Metric(
        lambda s: ratio(s["hits_iou"], s["n_hits"], s["n_reference"]),
        "segmentation quality: mean IoU of true positives (IoU above the threshold); what was missed costs nothing",
        "sum of IoU over true positives / TP",
        "0, or threshold..1",
        "mean over true positives",
        REFERENCE,
        KIRILLOV,
        "panoptic",
    ),
    "rq": _rq_like("recognition quality: true positives by IoU above the threshold"),
    "f1": _rq_like("F1 score of detection at the IoU threshold; the same number as rq, under its usual name"),
    "precision": Metric(
        lambda s: ratio(s["n_hits"], s["n_prediction"], either(s)),
        "share of predicted instances that are true positives (IoU above the threshold)",
        "TP / (TP + FP)",
        "0..1",
        POOLED,
        EITHER,
        KIRILLOV,
        "panoptic",
    ),
    "recall": Metric(
        lambda s: ratio(s["n_hits"], s["n_reference"], s["n_reference"]),
        "share of reference instances that are found (IoU above the threshold)",
        "TP / (TP + FN)",
        "0..1",
        POOLED,
        REFERENCE,
        KIRILLOV,
        "panoptic",
    ),
    "ap50": _average_precision([0.5], "at IoU above 0.5"),
    "ap75": _average_precision([0.75], "at IoU above 0.75"),
    "ap": _average_precision(AP_THRESHOLDS, "over the IoU thresholds 0.5, 0.55, ... 0.95"),
}
