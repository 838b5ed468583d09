"""Confidence intervals: the bootstrap over images or volumes.

Items are drawn with replacement as often as there are items, their statistics are summed and the metrics computed
again; the interval holds the middle of the values found (percentile bootstrap, Efron and Tibshirani 1993,
doi:10.1201/9780429246593). It says how much the score depends on which images happen to be in the split, not on the
model's seed. Slices of one volume look alike: with few volumes the true uncertainty is larger, so items are clusters
where a cluster is given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from .metric import Statistics
from .metrics import METRICS
from .schema import ORGANELLES

RESAMPLES, LEVEL, SEED = 1000, 0.95, 0
Interval = tuple[float, float] | None


def intervals(
    items: Sequence[Mapping[str, Statistics]],
    keys: Iterable[str],
    *,
    clusters: Sequence[str] | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict[str, Interval]:
    """Return ``{key: (low, high)}``; None where the value is undefined, or fewer than two clusters speak to it.

    A cluster speaks to an organelle if an instance of it lies there or was predicted there: drawn from one such cluster
    alone, every sample would be the same, and an interval without width would claim a certainty that nobody has.

    ``items`` are the statistics of ``Evaluation.items``, ``clusters`` names the group of each (for instance its
    volume; default: each item for itself). The same arguments give the same bits.
    """
    names = [str(index) for index in range(len(items))] if clusters is None else list(clusters)
    groups = sorted(set(names))
    wanted = list(keys)
    if len(groups) < 2:
        return dict.fromkeys(wanted)
    tables = {organelle: _sums(items, names, groups, organelle) for organelle in ORGANELLES}
    metrics = {key.partition("/")[2] for key in wanted}
    draws = np.random.default_rng(seed).multinomial(len(groups), [1 / len(groups)] * len(groups), resamples)
    values: dict[str, list[float]] = {key: [] for key in wanted}
    for draw in draws:
        pooled = {organelle: _draw(table, draw) for organelle, table in tables.items()}
        for metric in metrics:
            of_organelle = {
                organelle: METRICS[metric].compute(statistics) for organelle, statistics in pooled.items() if statistics
            }
            defined = {organelle: float(value) for organelle, value in of_organelle.items() if value is not None}
            if defined:
                defined["macro"] = math.fsum(defined.values()) / len(defined)
            for organelle, value in defined.items():
                if (key := f"{organelle}/{metric}") in values:
                    values[key].append(value)
    tail = (1 - level) / 2
    several = {organelle for organelle in ORGANELLES if _speaking(items, names, organelle) > 1}
    several |= {"macro"} if several else set()
    return {key: _interval(found, tail) if key.partition("/")[0] in several else None for key, found in values.items()}


def _speaking(items: Sequence[Mapping[str, Statistics]], names: Sequence[str], organelle: str) -> int:
    """Count the clusters with an instance of an organelle on either side."""
    return len(
        {
            name
            for name, item in zip(names, items, strict=True)
            if any(item.get(organelle, {}).get(count, 0) for count in ("n_reference", "n_prediction"))
        }
    )


def _interval(values: list[float], tail: float) -> Interval:
    if not values:
        return None
    low, high = np.quantile(values, [tail, 1 - tail])
    return (float(low), float(high)) if math.isfinite(low) and math.isfinite(high) else None


def _sums(
    items: Sequence[Mapping[str, Statistics]], names: Sequence[str], groups: Sequence[str], organelle: str
) -> tuple[list[str], np.ndarray[tuple[int, int], np.dtype[np.float64]]]:
    """Sum the statistics of one organelle by cluster: (names of statistics, clusters x statistics)."""
    columns = sorted({name for item in items for name in item.get(organelle, ())})
    row_of = {group: row for row, group in enumerate(groups)}
    sums = np.zeros((len(groups), len(columns)))
    for name, item in zip(names, items, strict=True):
        if organelle in item:
            sums[row_of[name]] += [item[organelle].get(column, 0.0) for column in columns]
    return columns, sums


def _draw(
    table: tuple[list[str], np.ndarray[tuple[int, int], np.dtype[np.float64]]],
    draw: np.ndarray[tuple[int], np.dtype[np.int64]],
) -> Statistics:
    columns, sums = table
    return dict(zip(columns, (draw @ sums).tolist(), strict=True)) if columns else {}
