"""What a metric is: one pure function of additive statistics, and one declaration that says what it means.

Each image or volume is reduced to *statistics*: named numbers that add up over items (instances, voxels, sums of Dice,
nanometres of skeleton). A metric is computed once, from the sums over everything that was added, and never averaged
over images. The declarations are also what ``em-bench explain`` prints and ``docs/metrics.md`` is generated from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

Value = float | int | None
Statistics = Mapping[str, float]  # whole numbers are exact up to 2**53
Family = Literal["instance", "panoptic", "network", "boundary", "semantic", "count"]
Needs = Literal["overlap", "skeleton", "boundary", "agnostic"]


@dataclass(frozen=True)
class Metric:
    """A declared metric; all texts are for the user who asks ``em-bench explain KEY``.

    ``aggregation`` says what is averaged or pooled; ``range`` holds wherever the value is defined; ``edge_cases`` says
    what the value is where instances or voxels are missing. ``needs`` names the measurement that it is computed from:
    sparse overlaps are always measured, skeletons and boundaries for the organelles that the settings name. A "count"
    has no macro mean. ``better`` is empty for what describes and does not judge: a number of instances, a share.
    """

    compute: Callable[[Statistics], Value]
    definition: str
    formula: str
    range: str
    aggregation: str
    edge_cases: str
    reference: str
    family: Family
    better: Literal["higher", "lower", ""] = "higher"
    needs: Needs = "overlap"
    headline: bool = False


def ratio(numerator: float, denominator: float, defined: float) -> float | None:
    """``numerator / denominator``; 0.0 for 0 / 0; None unless something that defines the value exists.

    The one place that decides what a metric is where something is missing: nothing is ever 1.0 by convention, or NaN.
    """
    if not defined:
        return None
    return float(numerator / denominator) if denominator else 0.0
