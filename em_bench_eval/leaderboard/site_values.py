"""What the tables show: the metrics that can be chosen, and every value with its interval, or why there is none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from em_bench_eval.explain import FAMILIES
from em_bench_eval.leaderboard.site_rows import Result, Row, interval_of
from em_bench_eval.leaderboard.site_text import digits_of, is_share, metric_title, short_title, stored
from em_bench_eval.metric import Metric
from em_bench_eval.metrics import HEADLINE, METRICS
from em_bench_eval.metrics_stratified import ORDINARY, STRATIFIED
from em_bench_eval.schema import ORGANELLES

NAMES = ("macro", *ORGANELLES)  # the columns of a table; "any" stands for "macro" where instances have no organelle
TITLES = {
    "macro": "Average",
    "any": "All as one",
    "mito": "Mitochondria",
    "nucleus": "Nuclei",
    "er": "ER",
    "endo": "Endosomes",
    "golgi": "Golgi",
}
SHORT_TITLES = {  # of columns
    "macro": "Average",
    "any": "All as one",
    "mito": "Mito",
    "nucleus": "Nucleus",
    "er": "ER",
    "endo": "Endo",
    "golgi": "Golgi",
}
SAME = ("rq", "semantic_fscore")  # other names of f1 and semantic_dice
GROUP_TITLES = {"all": "All images", "domain=in": "In-domain", "domain=out": "Out-of-domain"}
STRATIFIED_TWIN = {ordinary: ours for ours, ordinary in ORDINARY.items()}
# the headline pair of class-agnostic tables: organelles have the recall-type twin of it, and say so
STRATIFIED_TWIN |= {f"{name}__instance": f"{name}__stratified" for name in ("dice", "iou")}
REASONS = {
    "a": "not annotated in these images",
    "b": "no instance of it, neither in the reference nor in the prediction",
    "c": "not measured with these settings",
    "d": "undefined here: what it is computed from is missing (see how scores are computed)",
    "e": "no such images in this split",
    "f": "without organelles, a false positive belongs to none of them",
    "g": "undefined for every organelle",
}


@dataclass(frozen=True)
class View:
    """A choice of the metric selector: one metric, or a pair."""

    title: str
    metrics: tuple[str, ...]
    family: str

    @property
    def id(self) -> str:
        """What a page calls it."""
        return self.metrics[0]


@dataclass(frozen=True)
class Value:
    """A cell: a value and perhaps its interval, or a letter of ``REASONS``."""

    value: float | int | None
    interval: tuple[float, float] | None = None
    reason: str = ""


def views_of(results: Sequence[Result]) -> list[View]:
    """Return the metrics that any result has, the headline first; Dice and IoU of one aggregation are one choice."""
    present = {key.partition("/")[2] for result in results for key, value in _defined(result)} | {HEADLINE}
    views = []
    for name, metric in sorted(METRICS.items(), key=lambda item: not item[1].headline):
        twin = name.replace("dice", "iou", 1)
        if name in SAME or name not in present or metric.family == "count" or not metric.better:
            continue
        if "iou" in name and name.replace("iou", "dice", 1) in METRICS:
            continue
        if name.startswith(("dice__", "semantic_dice")) and twin in METRICS:
            title = metric_title(name).replace("Dice", "Dice and IoU")
            views.append(View(title, (name, twin), FAMILIES[metric.family]))
        else:
            views.append(View(metric_title(name), (name,), FAMILIES[metric.family]))
    return views


def _defined(result: Result) -> Iterable[tuple[str, Any]]:
    return ((key, value) for key, value in result["scores"]["all"].items() if value is not None)


def groups_of(results: Sequence[Result]) -> dict[str, str]:
    """Return the groups of images that any result has, with their titles: all, domains, then sources."""
    found = {group for result in results for group in result["groups"]} | {"all"}
    sources = sorted(group for group in found if group.startswith("source="))
    return {
        **{group: title for group, title in GROUP_TITLES.items() if group in found},
        **{group: group.partition("=")[2] for group in sources},
    }


def key_of(result: Result, name: str, metric: str) -> str | None:
    """Return the key of a result that a column shows; None where a class-agnostic result has no such thing."""
    if not result["class_agnostic"]:
        return f"{name}/{metric}"
    if name == "macro":
        return f"any/{metric}"
    return f"{name}/{STRATIFIED_TWIN[metric]}" if metric in STRATIFIED_TWIN else None


def value_of(result: Result, group: str, name: str, metric: str) -> Value:
    """Return the cell of a table."""
    scores = result["scores"].get(group)
    if scores is None:
        return Value(None, reason="e")
    key = key_of(result, name, metric)
    if key is None:
        return Value(None, reason="f")
    value = scores.get(key)
    if value is not None:
        return Value(value, interval_of(result, group, key))
    return Value(None, reason=_why_undefined(result, group, name, key))


def _why_undefined(result: Result, group: str, name: str, key: str) -> str:
    scores = result["scores"][group]
    if name != "macro" and name not in annotated_in(result, group):
        return "a"
    if key not in scores:
        return "c"
    if name == "macro":
        return "g"
    reference, predicted = (scores.get(f"{name}/{count}") for count in ("n_reference", "n_prediction"))
    return "d" if reference or predicted else "b"


def annotated_in(result: Result, group: str) -> set[str]:
    """Return the organelles that somebody annotated in the sources of a group."""
    kind, _, wanted = group.partition("=")
    return {
        str(organelle)
        for source, about in result["per_source"].items()
        if kind == "all" or (source == wanted if kind == "source" else wanted in about["domains"])
        for organelle in about["annotated"]
    }


def predicted_organelles(result: Result) -> list[str]:
    """Return the organelles of which a submission predicts instances at all."""
    scores = result["scores"]["all"]
    return [name for name in ORGANELLES if not result["class_agnostic"] and scores.get(f"{name}/n_prediction")]


def declaration(metric: str) -> Metric:
    """Return the declaration of a metric."""
    return METRICS[metric] if metric in METRICS else STRATIFIED[metric]


def best_of(rows: Sequence[Row], group: str, name: str, metric: str) -> float | None:
    """Return the best value of a column with several values."""
    values = [
        stored(cell.value) for row in rows if (cell := value_of(row.result, group, name, metric)).value is not None
    ]
    if len(values) < 2:
        return None
    return max(values) if declaration(metric).better == "higher" else min(values)


def page_data(rows: Iterable[Row], views: Sequence[View], groups: Mapping[str, str]) -> dict[str, Any]:
    """Return what the script needs to show other metrics and images.

    ``rows``: page -> group -> metric -> ``[values, bounds, reasons]``: six values in the order of ``NAMES`` (null:
    undefined), their bounds as ``[low, high]`` or null, and a letter for each undefined value.
    """
    return {
        "names": {name: SHORT_TITLES[name] for name in (*NAMES, "any")},
        "groups": dict(groups),
        "reasons": REASONS,
        "views": {
            view.id: [
                {
                    "id": metric,
                    "head": short_title(metric),
                    "better": METRICS[metric].better,
                    "digits": digits_of(metric),
                    "share": is_share(metric),
                    "twin": metric in STRATIFIED_TWIN,
                }
                for metric in view.metrics
            ]
            for view in views
        },
        "rows": {
            row.slug: {
                group: {metric: _packed(row.result, group, metric) for view in views for metric in view.metrics}
                for group in groups
                if group in row.result["scores"]
            }
            for row in rows
        },
    }


def _packed(result: Result, group: str, metric: str) -> list[Any]:
    cells = [value_of(result, group, name, metric) for name in NAMES]
    bounds = [None if cell.interval is None else [stored(bound) for bound in cell.interval] for cell in cells]
    return [
        [None if cell.value is None else stored(cell.value) for cell in cells],
        bounds if any(bounds) else 0,
        "".join(cell.reason or "-" for cell in cells).rstrip("-"),
    ]
