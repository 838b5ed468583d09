"""Reference-stratified family: what a class-agnostic matching gave the reference instances of each organelle.

For predictions without organelles (``em_bench_eval.class_agnostic``). Each is an ordinary metric on other statistics:
those of the matching of all instances together, summed over the reference instances of one organelle.
"""

from __future__ import annotations

from dataclasses import replace

from em_bench_eval.metric import Metric
from em_bench_eval.metrics import METRICS

# name -> the metric whose function it is
ORDINARY = {"dice__stratified": "dice__reference", "iou__stratified": "iou__reference", "recall__stratified": "recall"}


def _stratified(name: str) -> Metric:
    ordinary = METRICS[ORDINARY[name]]
    return replace(
        ordinary,
        definition=f"{ordinary.definition}; instances of all organelles are matched together, whatever a prediction "
        "calls them, so that false positives belong to no organelle and cost nothing",
        aggregation="reference instances of the organelle, pooled; class-agnostic matching",
        needs="agnostic",
    )


STRATIFIED: dict[str, Metric] = {name: _stratified(name) for name in ORDINARY}
