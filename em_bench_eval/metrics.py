"""Every metric by name, and the one function that computes them all.

A key of a result is ``<organelle>/<name>``, and every name states its aggregation: ``dice__instance`` and
``dice__pooled`` are different numbers. What a value is where instances or voxels are missing is part of each
declaration; in short:

* an organelle with nothing on either side is None everywhere (a count is 0);
* predicted, but absent from the reference: 0.0, and None for what is defined by the reference alone;
* in the reference, but not predicted: 0.0.

Nothing is ever 1.0 by convention, or NaN. In the lower-is-better families the same rule holds with the worst value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from .metric import Metric, Statistics, Value
from .metrics_boundary import METRICS as BOUNDARY
from .metrics_instance import METRICS as INSTANCE
from .metrics_network import METRICS as NETWORK
from .metrics_panoptic import METRICS as PANOPTIC
from .metrics_semantic import METRICS as SEMANTIC
from .metrics_skeleton import METRICS as SKELETON
from .settings import Settings

METRICS: dict[str, Metric] = {**INSTANCE, **PANOPTIC, **NETWORK, **SKELETON, **BOUNDARY, **SEMANTIC}
HEADLINE = next(name for name, metric in METRICS.items() if metric.headline)


def pool(parts: Iterable[Statistics]) -> dict[str, float]:
    """Add statistics up; the result does not depend on the order, to the last bit."""
    values: dict[str, list[float]] = {}
    for part in parts:
        for name, value in part.items():
            values.setdefault(name, []).append(value)
    return {name: math.fsum(terms) for name, terms in values.items()}


def measured(organelle: str, settings: Settings) -> dict[str, Metric]:
    """Return the metrics that these settings give for an organelle."""
    needs = {"overlap"}
    needs |= {"skeleton"} if organelle in settings.skeleton else set()
    needs |= {"boundary"} if organelle in settings.boundary else set()
    return {name: metric for name, metric in METRICS.items() if metric.needs in needs}


def compute_all(pooled: Mapping[str, Statistics], settings: Settings) -> dict[str, Value]:
    """Compute every key: ``<organelle>/<name>`` for each organelle given, then ``macro/<name>``.

    An organelle without statistics had nothing on either side. ``macro`` is the plain mean over the organelles where
    that key is defined, None if there are none; ``macro/n_organelles`` is the number of organelles with a defined
    headline. Raises ``ArithmeticError`` should an IoU ever exceed its Dice: such a pair of numbers cannot come from
    the same segmentation.
    """
    result: dict[str, Value] = {}
    names: dict[str, Metric] = {}
    for organelle, statistics in pooled.items():
        for name, metric in measured(organelle, settings).items():
            missing = 0 if metric.family == "count" else None
            result[f"{organelle}/{name}"] = metric.compute(statistics) if statistics else missing
            names[name] = metric
    for name in (name for name in METRICS if name in names and names[name].family != "count"):
        values = [value for organelle in pooled if (value := result.get(f"{organelle}/{name}")) is not None]
        result[f"macro/{name}"] = math.fsum(values) / len(values) if values else None
    result["macro/n_organelles"] = sum(result[f"{organelle}/{HEADLINE}"] is not None for organelle in pooled)
    _check_iou_below_dice(result)
    return result


def _check_iou_below_dice(result: Mapping[str, Value]) -> None:
    for key, value in result.items():
        twin = result.get(key.replace("iou", "dice")) if "iou" in key else None
        if value is not None and twin is not None and value > twin + 1e-9:  # more than rounding of sums
            raise ArithmeticError(f"{key} = {value} exceeds {key.replace('iou', 'dice')} = {twin}")
