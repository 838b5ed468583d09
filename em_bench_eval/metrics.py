"""Every metric: one pure function of pooled counts, one declaration that says what it is.

A key of a result is ``<organelle>/<name>``, and every name states its aggregation: ``dice__instance`` and
``dice__pooled`` are different numbers. Counts are pooled over everything that was added and never averaged per image.

What a key is where instances or voxels are missing, for all metrics (the only place that decides it is `_ratio` and
the conditions that the functions pass to it):

================================  ==================  ===================  =====================
                                  nothing predicted   predicted, but the   both, nothing matches
                                  nor in reference    reference has none
================================  ==================  ===================  =====================
instance, pooled, pq, rq, f1,     None                0.0                  0.0
precision, semantic
reference, matched, sq, recall    None                None                 0.0
counts                            0                   the count            the count
================================  ==================  ===================  =====================

A reference without any prediction scores 0.0 in every row but the counts. Nothing is ever 1.0 by convention, or NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .matching import dice, iou

METRIC_VERSION = "1"  # raised whenever a definition changes: scores of different versions are not comparable

Ints = npt.NDArray[np.int64]
Value = float | int | None
Family = Literal["instance", "panoptic", "semantic", "count"]


def _no_pairs() -> Ints:
    return np.zeros((0, 3), np.int64)


@dataclass(frozen=True)
class Counts:
    """All that is kept of one organelle in one or more images or volumes. Sums of counts are counts.

    Pairs are rows of ``(intersection, reference, prediction)`` voxel counts outside the ignored region. ``matched``
    are the pairs of the maximum-IoU matching, ``hits`` those above the IoU threshold. The ``semantic_*`` voxels come
    from before any instance was dropped for its size or for lying in the ignored region.
    """

    n_reference: int = 0
    n_prediction: int = 0
    reference_voxels: int = 0
    prediction_voxels: int = 0
    semantic_intersection: int = 0
    semantic_reference: int = 0
    semantic_prediction: int = 0
    matched: Ints = field(default_factory=_no_pairs)
    hits: Ints = field(default_factory=_no_pairs)

    @property
    def n_union(self) -> int:
        """Number of reference instances and unmatched predictions together."""
        return self.n_reference + self.n_prediction - len(self.matched)


_NUMBERS = tuple(name for name in Counts.__dataclass_fields__ if name not in ("matched", "hits"))


def pool(parts: Iterable[Counts]) -> Counts:
    """Add counts up. Every metric of the result is independent of the order of ``parts``, to the last bit."""
    parts = list(parts)
    numbers = {name: sum(getattr(part, name) for part in parts) for name in _NUMBERS}
    return Counts(
        **numbers,
        matched=np.concatenate([_no_pairs(), *(part.matched for part in parts)]),
        hits=np.concatenate([_no_pairs(), *(part.hits for part in parts)]),
    )


@dataclass(frozen=True)
class Metric:
    """A declared metric. ``aggregation`` says what is averaged or pooled; ``range`` holds where it is defined."""

    compute: Callable[[Counts], Value]
    definition: str
    range: str
    aggregation: str
    family: Family
    headline: bool = False


def _ratio(numerator: float, denominator: float, defined: int) -> float | None:
    """``numerator / denominator``; 0.0 for 0 / 0; None unless something that defines the value exists."""
    if not defined:
        return None
    return float(numerator / denominator) if denominator else 0.0


def _total(values: npt.NDArray[np.float64]) -> float:
    """Exactly rounded sum: the same bits for every order of the values."""
    return math.fsum(values.tolist())


def _overlap(measure: Callable[[Ints, Ints, Ints], npt.NDArray[np.float64]], pairs: Ints) -> float:
    return _total(measure(pairs[:, 0], pairs[:, 1], pairs[:, 2]))


def _any(counts: Counts) -> int:
    return counts.n_reference + counts.n_prediction


def _instance(measure: Callable[..., npt.NDArray[np.float64]]) -> Callable[[Counts], Value]:
    return lambda c: _ratio(_overlap(measure, c.matched), c.n_union, _any(c))


def _reference(measure: Callable[..., npt.NDArray[np.float64]]) -> Callable[[Counts], Value]:
    return lambda c: _ratio(_overlap(measure, c.matched), c.n_reference, c.n_reference)


def _matched(measure: Callable[..., npt.NDArray[np.float64]]) -> Callable[[Counts], Value]:
    return lambda c: _ratio(_overlap(measure, c.matched), len(c.matched), c.n_reference)


def _dice_voxels(intersection: int, reference: int, prediction: int) -> float | None:
    return _ratio(2 * intersection, reference + prediction, reference + prediction)


def _iou_voxels(intersection: int, reference: int, prediction: int) -> float | None:
    return _ratio(intersection, reference + prediction - intersection, reference + prediction)


def _pooled(measure: Callable[[int, int, int], float | None]) -> Callable[[Counts], Value]:
    return lambda c: measure(int(c.matched[:, 0].sum()), c.reference_voxels, c.prediction_voxels)


def _semantic(measure: Callable[[int, int, int], float | None]) -> Callable[[Counts], Value]:
    return lambda c: measure(c.semantic_intersection, c.semantic_reference, c.semantic_prediction)


def _rq(counts: Counts) -> float | None:
    return _ratio(2 * len(counts.hits), counts.n_reference + counts.n_prediction, _any(counts))


def _four_ways(name: str, measure: Callable[..., Any], voxels: Callable[..., Any], term: str) -> dict[str, Metric]:
    """Declare the four aggregations of instance Dice or IoU."""
    return {
        f"{name}__instance": Metric(
            _instance(measure),
            f"{term} of each matched pair, 0 for each unmatched reference or predicted instance, averaged",
            "0..1",
            "mean over the union of reference instances and unmatched predictions",
            "instance",
            headline=name == "dice",
        ),
        f"{name}__reference": Metric(
            _reference(measure),
            f"{term} of each reference instance with its match, 0 if it has none; false positives cost nothing",
            "0..1",
            "mean over reference instances",
            "instance",
        ),
        f"{name}__matched": Metric(
            _matched(measure),
            f"{term} of the matched pairs alone: optimistic, since missed and invented instances cost nothing",
            "0..1",
            "mean over matched pairs",
            "instance",
        ),
        f"{name}__pooled": Metric(
            _pooled(voxels),
            f"{term} of voxels: intersections of matched pairs, against all voxels of all instances",
            "0..1",
            "voxels of matched pairs and of all unmatched instances, summed first",
            "instance",
        ),
    }


METRICS: Mapping[str, Metric] = {
    **_four_ways("dice", dice, _dice_voxels, "Dice coefficient 2 I / (R + P)"),
    **_four_ways("iou", iou, _iou_voxels, "IoU I / (R + P - I)"),
    "pq": Metric(
        lambda c: _ratio(2 * _overlap(iou, c.hits), c.n_reference + c.n_prediction, _any(c)),
        "panoptic quality SQ * RQ: summed IoU of true positives / (TP + FP / 2 + FN / 2); a true positive is a pair "
        "with IoU above the threshold (Kirillov et al. 2019, doi:10.1109/CVPR.2019.00963)",
        "0..1",
        "instances of everything added, pooled",
        "panoptic",
    ),
    "sq": Metric(
        lambda c: _ratio(_overlap(iou, c.hits), len(c.hits), c.n_reference),
        "segmentation quality: mean IoU of true positives (IoU above the threshold)",
        "0, or threshold..1",
        "mean over true positives",
        "panoptic",
    ),
    "rq": Metric(
        _rq,
        "recognition quality: TP / (TP + FP / 2 + FN / 2), true positives by IoU above the threshold",
        "0..1",
        "instances of everything added, pooled",
        "panoptic",
    ),
    "f1": Metric(
        _rq,
        "F1 score of detection at the IoU threshold; the same number as rq, under its usual name",
        "0..1",
        "instances of everything added, pooled",
        "panoptic",
    ),
    "precision": Metric(
        lambda c: _ratio(len(c.hits), c.n_prediction, _any(c)),
        "share of predicted instances that are true positives (IoU above the threshold)",
        "0..1",
        "instances of everything added, pooled",
        "panoptic",
    ),
    "recall": Metric(
        lambda c: _ratio(len(c.hits), c.n_reference, c.n_reference),
        "share of reference instances that are found (IoU above the threshold)",
        "0..1",
        "instances of everything added, pooled",
        "panoptic",
    ),
    "semantic_dice": Metric(
        _semantic(_dice_voxels),
        "Dice coefficient of the organelle's mask, instances ignored: says nothing about merges and splits",
        "0..1",
        "voxels of everything added, pooled",
        "semantic",
    ),
    "semantic_iou": Metric(
        _semantic(_iou_voxels),
        "IoU of the organelle's mask, instances ignored: says nothing about merges and splits",
        "0..1",
        "voxels of everything added, pooled",
        "semantic",
    ),
    "n_reference": Metric(
        lambda c: c.n_reference, "number of reference instances that were judged", "0..", "sum", "count"
    ),
    "n_prediction": Metric(
        lambda c: c.n_prediction, "number of predicted instances that were judged", "0..", "sum", "count"
    ),
    "n_matched": Metric(
        lambda c: len(c.matched), "pairs in the maximum-IoU matching, with any overlap", "0..", "sum", "count"
    ),
}

HEADLINE = next(name for name, metric in METRICS.items() if metric.headline)


def compute_all(pooled: Mapping[str, Counts]) -> dict[str, Value]:
    """Compute every key: ``<organelle>/<name>`` for each organelle given, then ``macro/<name>``.

    ``macro`` is the plain mean over the organelles where that key is defined, None if there are none;
    ``macro/n_organelles`` is the number of organelles with a defined headline. Raises ``ArithmeticError`` should an
    IoU ever exceed its Dice: such a pair of numbers cannot come from the same segmentation.
    """
    result: dict[str, Value] = {}
    for organelle, counts in pooled.items():
        for name, metric in METRICS.items():
            result[f"{organelle}/{name}"] = metric.compute(counts)
    for name, metric in METRICS.items():
        if metric.family != "count":
            values = [value for organelle in pooled if (value := result[f"{organelle}/{name}"]) is not None]
            result[f"macro/{name}"] = math.fsum(values) / len(values) if values else None
    result["macro/n_organelles"] = sum(result[f"{organelle}/{HEADLINE}"] is not None for organelle in pooled)
    _check_iou_below_dice(result)
    return result


def _check_iou_below_dice(result: Mapping[str, Value]) -> None:
    for key, value in result.items():
        twin = result.get(key.replace("iou", "dice")) if "iou" in key else None
        if value is not None and twin is not None and value > twin:
            raise ArithmeticError(f"{key} = {value} exceeds {key.replace('iou', 'dice')} = {twin}")
