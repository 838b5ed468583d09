"""The section "How scores are computed", generated from the declarations that compute them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from em_bench_eval.explain import FAMILIES, NEEDS, SYMBOLS
from em_bench_eval.leaderboard.site_text import metric_title, text
from em_bench_eval.leaderboard.site_values import View
from em_bench_eval.metric import Metric
from em_bench_eval.metrics import HEADLINE, METRICS
from em_bench_eval.metrics_stratified import STRATIFIED

_RULES = {
    "What is ranked": "Automatic submissions on the test split, by {headline} Predictions are submitted, never scores: "
    "every row was computed by the maintainers from the submitted instances and reference labels. Rows that were "
    "scored by another version of the metric, other settings, other images or other labels stand apart.",
    "Pooling": "Matches, voxels and instances are summed over all images of a group first, and each metric is computed "
    "once from the sums; nothing is averaged image by image. The average is the plain mean over the organelles that "
    "have a value; an organelle that a model does not predict counts 0 where the reference has it.",
    "Intervals": "95 % percentile bootstrap over volumes (over images in a group of one volume), {resamples:,} draws. "
    "They say how much a score depends on which volumes are in the split, not on the seed of a training. Slices of one "
    "volume look alike: intervals over the images of one volume are too narrow. Where only one volume has an "
    "organelle, or every draw gives the same value, no interval is shown; most metrics have none.",
    "Ranks and ties": "Equal scores share a rank. The range below a rank is from one plus the number of submissions "
    "whose interval lies wholly above, to the last that does not lie wholly below: within a range, the order is not "
    "certain. This is cautious, as submissions are scored on the same images.",
    "In and out of domain": "Out-of-domain images come from specimens that no training image shows. Their sources "
    "annotate other organelles than in-domain sources do, so the two averages may cover different organelles: compare "
    "organelle by organelle.",
    "Undefined": "A dash is undefined, never 0: nobody annotated the organelle there, or it does not occur. A letter "
    "at each dash says why.",
}


def explained(views: Sequence[View], result: Any = None) -> str:
    """Return the section: rules, then every metric that the page can show, by family."""
    resamples = 1000
    if result is not None:
        resamples = int((result["intervals"].get("all") or {}).get("resamples", resamples))
    headline = f"{metric_title(HEADLINE)}, the mean over organelles of: {METRICS[HEADLINE].definition}."
    rules = "".join(
        f"<dt>{title}</dt><dd>{text(rule.format(headline=headline, resamples=resamples), 5000)}</dd>"
        for title, rule in _RULES.items()
    )
    shown = {metric: METRICS[metric] for view in views for metric in view.metrics} | STRATIFIED
    families = ""
    for family, title in FAMILIES.items():
        metrics = {name: metric for name, metric in shown.items() if metric.family == family}
        if metrics:
            inner = "".join(_metric(name, metric) for name, metric in metrics.items())
            families += (
                f'<details class="card family"><summary>{text(title)} <span class="soft">({len(metrics)})</span>'
            )
            families += f"</summary>{inner}</details>"
    return f'<dl class="rules">{rules}</dl><p class="small soft">{text(SYMBOLS)}</p>{families}'


def _metric(name: str, metric: Metric) -> str:
    better = f"; {metric.better} is better" if metric.better else ""
    rows = {
        "formula": f"<code>{text(metric.formula)}</code>",
        "range": text(metric.range + better),
        "aggregation": text(metric.aggregation),
        "edge cases": text(metric.edge_cases),
        **({"measured": text(NEEDS[metric.needs])} if metric.needs != "overlap" else {}),
        "reference": text(metric.reference),
    }
    lines = "".join(f"<div><dt>{label}</dt><dd>{value}</dd></div>" for label, value in rows.items())
    definition = metric.definition[:1].upper() + metric.definition[1:]
    return (
        f'<div class="metric" id="metric-{name}"><h4>{text(metric_title(name))} <code>{name}</code></h4>'
        f'<p>{text(definition)}.</p><dl class="about">{lines}</dl></div>'
    )
