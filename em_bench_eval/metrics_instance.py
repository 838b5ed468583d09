"""Instance family: Dice and IoU of matched instances in every aggregation, AJI, symmetric best Dice, size classes."""

from __future__ import annotations

from .metric import Metric, Statistics, Value, ratio
from .overlap_statistics import SIZE_BOUNDS_NM, SIZE_CLASSES

EITHER = "None if there is no instance on either side; 0.0 if only one side has any"
REFERENCE = "None without reference instances, whatever is predicted; 0.0 if nothing is predicted"
PAPER = "this project; matching after Kuhn 1955, doi:10.1002/nav.3800020109"


def either(s: Statistics) -> float:
    """Return what defines metrics that judge both sides: the number of instances."""
    return s["n_reference"] + s["n_prediction"]


def _union(s: Statistics) -> float:
    return s["n_reference"] + s["n_prediction"] - s["n_matched"]


def _dice_pooled(s: Statistics) -> Value:
    voxels = s["reference_voxels"] + s["prediction_voxels"]
    return ratio(2 * s["matched_voxels"], voxels, either(s))


def _iou_pooled(s: Statistics) -> Value:
    voxels = s["reference_voxels"] + s["prediction_voxels"] - s["matched_voxels"]
    return ratio(s["matched_voxels"], voxels, either(s))


def _aggregations(name: str, term: str, formula: str) -> dict[str, Metric]:
    """Declare every aggregation of instance Dice or IoU but the pooled one."""
    return {
        f"{name}__instance": Metric(
            lambda s: ratio(s[f"matched_{name}"], _union(s), either(s)),
            f"{term} of each matched pair, 0 for each unmatched reference or predicted instance, averaged",
            f"sum over matched pairs of {formula} / (number of reference instances + unmatched predictions)",
            "0..1",
            "mean over the union of reference instances and unmatched predictions",
            EITHER,
            PAPER,
            "instance",
            headline=name == "dice",
        ),
        f"{name}__reference": Metric(
            lambda s: ratio(s[f"matched_{name}"], s["n_reference"], s["n_reference"]),
            f"{term} of each reference instance with its match, 0 if it has none; false positives cost nothing",
            f"sum over matched pairs of {formula} / number of reference instances",
            "0..1",
            "mean over reference instances",
            REFERENCE,
            PAPER,
            "instance",
        ),
        f"{name}__matched": Metric(
            lambda s: ratio(s[f"matched_{name}"], s["n_matched"], s["n_reference"]),
            f"{term} of the matched pairs alone: optimistic, since missed and invented instances cost nothing",
            f"sum over matched pairs of {formula} / number of matched pairs",
            "0..1",
            "mean over matched pairs",
            REFERENCE,
            PAPER,
            "instance",
        ),
        f"{name}__size": Metric(
            lambda s: ratio(s[f"matched_{name}_voxels"], s["reference_voxels"], s["n_reference"]),
            f"{term} of each reference instance with its match, 0 if it has none, weighted by the size of the "
            "reference instance: large instances decide, false positives cost nothing",
            f"sum over matched pairs of R * {formula} / sum of R over reference instances",
            "0..1",
            "mean over reference instances, weighted by their voxels",
            REFERENCE,
            PAPER,
            "instance",
        ),
    }


METRICS: dict[str, Metric] = {
    **_aggregations("dice", "Dice", "2 I / (R + P)"),
    "dice__pooled": Metric(
        _dice_pooled,
        "Dice of voxels: intersections of matched pairs against all voxels of all instances",
        "2 * sum of I over matched pairs / (sum of R over reference instances + sum of P over predicted instances)",
        "0..1",
        "voxels of matched pairs and of all unmatched instances, summed first",
        EITHER,
        PAPER,
        "instance",
    ),
    **_aggregations("iou", "IoU", "I / (R + P - I)"),
    "iou__pooled": Metric(
        _iou_pooled,
        "IoU of voxels: intersections of matched pairs against all voxels of all instances; the same number as AJI+, "
        "the aggregated Jaccard index with one-to-one matching",
        "sum of I over matched pairs / (sum of R + sum of P - sum of I over matched pairs)",
        "0..1",
        "voxels of matched pairs and of all unmatched instances, summed first",
        EITHER,
        "Graham et al. 2019 (AJI+), doi:10.1016/j.media.2019.101563",
        "instance",
    ),
    "aji__pooled": Metric(
        lambda s: ratio(s["aji_intersection"], s["aji_union"], either(s)),
        "aggregated Jaccard index: each reference instance with the predicted instance of highest IoU, which may serve "
        "several; predictions that serve none count as false voxels",
        "sum of I / (sum of (R + P - I) over these pairs + voxels of reference instances without overlap + voxels of "
        "predictions that serve none)",
        "0..1",
        "voxels, summed first",
        EITHER,
        "Kumar et al. 2017, doi:10.1109/TMI.2017.2677499",
        "instance",
    ),
    "sbd__instance": Metric(
        lambda s: _symmetric_best_dice(s),
        "symmetric best Dice: for each instance the highest Dice with any instance of the other side, averaged; the "
        "worse of the two directions",
        "min(mean over reference instances of max Dice, mean over predicted instances of max Dice)",
        "0..1",
        "mean over the instances of one side, minimum of both directions",
        EITHER,
        "Scharr et al. 2016, doi:10.1007/s00138-015-0737-3",
        "instance",
    ),
}


def _symmetric_best_dice(s: Statistics) -> Value:
    if not either(s):
        return None
    if not (s["n_reference"] and s["n_prediction"]):
        return 0.0
    return min(s["best_dice_reference"] / s["n_reference"], s["best_dice_prediction"] / s["n_prediction"])


def _bounds(name: str) -> str:
    """Say which sizes a class holds: ``5e+04 to 8e+05 nm^2 in images, ...``."""
    index = SIZE_CLASSES.index(name)
    texts = []
    for axes, where in ((2, "nm^2 in images"), (3, "nm^3 in volumes")):
        low, high = (None, *SIZE_BOUNDS_NM[axes])[index], (*SIZE_BOUNDS_NM[axes], None)[index]
        size = f"below {high:g}" if low is None else f"from {low:g}" if high is None else f"{low:g} to {high:g}"
        texts.append(f"{size} {where}")
    return ", ".join(texts)


def _recall_of(name: str) -> Metric:
    return Metric(
        lambda s: ratio(s[f"n_hits_{name}"], s[f"n_reference_{name}"], s[f"n_reference_{name}"]),
        f"share of the {name} reference instances that are found (IoU above the threshold); {name}: {_bounds(name)}",
        f"true positives among {name} reference instances / {name} reference instances",
        "0..1",
        "reference instances of the size class, pooled",
        f"None without {name} reference instances",
        "size classes as in the MitoEM challenge, doi:10.1109/TMI.2023.3320497, with fixed bounds",
        "instance",
    )


METRICS.update({f"recall__{name}": _recall_of(name) for name in SIZE_CLASSES})
