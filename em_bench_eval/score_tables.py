"""The tables that ``em-bench score`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from em_bench_eval.metric import Value
from em_bench_eval.metrics import METRICS
from em_bench_eval.schema import ORGANELLES

# header -> metric name; the footnote of the table is made from the declarations of the same metrics
COLUMNS = {
    "Dice inst": "dice__instance",
    "IoU inst": "iou__instance",
    "PQ": "pq",
    "RQ": "rq",
    "SQ": "sq",
    "AP50": "ap50",
    "VOI": "voi__union",
    "Dice sem": "semantic_dice",
    "n ref": "n_reference",
    "n pred": "n_prediction",
}
MEASURED_COLUMNS = {  # only where they were measured
    "clDice": "cldice__pooled",
    "ERL norm": "erl_normalised__pooled",
    "NSD": "nsd__instance",
    "HD95 nm": "hd95__matched_nm",
}


def format_tables(result: Mapping[str, Any], *, by_source: bool = False) -> str:
    """Lay out the table of the whole split, of each domain where both occur and, if asked for, of each source."""
    groups = result["groups"]
    domains = [group for group in groups if group.startswith("domain=")]
    dataset = result["dataset"]
    whole = "all images" if len(domains) > 1 else f"all images, {domains[0]}" if domains else "no images"
    titles = {"all": whole}
    titles.update((group, group) for group in domains if len(domains) > 1)
    titles.update((group, group) for group in groups if by_source and group.startswith("source="))
    lines = [
        f"{dataset['path']} {dataset['config']}/{dataset['split']}, {result['images']} images, "
        f"metric version {result['metric_version']}, settings {result['settings_hash']}"
    ]
    for group, title in titles.items():
        intervals = result.get("intervals", {}).get(group, {})
        lines += ["", title, *_table(groups[group], intervals)]
    return "\n".join([*lines, "", *_legend(groups["all"])])


def format_volume(result: Mapping[str, Any]) -> str:
    """Lay out the table of one volume."""
    lines = [
        f"{result['prediction']['path']} against {result['reference']['path']}",
        f"{result['shape']} voxels (z, y, x) of {result['voxel_size_nm']} nm, metric version "
        f"{result['metric_version']}, settings {result['settings_hash']}",
        "",
        *_table(result["scores"], {}),
        "",
        *_legend(result["scores"]),
    ]
    return "\n".join(lines)


def _columns(values: Mapping[str, Value]) -> dict[str, str]:
    measured = {
        header: name for header, name in MEASURED_COLUMNS.items() if any(key.endswith(f"/{name}") for key in values)
    }
    return {**COLUMNS, **measured}


def _table(values: Mapping[str, Value], intervals: Mapping[str, Any]) -> list[str]:
    columns = _columns(values)
    lines = ["  organelle  " + "  ".join(f"{header:>9}" for header in columns)]
    for organelle in (*ORGANELLES, "macro"):
        cells = [cell(values.get(f"{organelle}/{name}")) for name in columns.values()]
        lines.append(f"  {organelle:<9}  " + "  ".join(f"{text:>9}" for text in cells))
    found = intervals.get("values", {})
    shown = [
        f"{organelle} {found[key][0]:.3f}..{found[key][1]:.3f}"
        for organelle in (*ORGANELLES, "macro")
        if (key := f"{organelle}/dice__instance") in found
    ]
    if shown:
        over = f"{intervals['level']:.0%} interval over {intervals['n']} {intervals['over']}"
        lines.append(f"  Dice inst, {over}: {', '.join(shown)}")
    return lines


def _legend(values: Mapping[str, Value]) -> list[str]:
    lines = ["what the columns are (em-bench explain NAME says it in full):"]
    for header, name in _columns(values).items():
        lines.append(f"  {header:<9}  {name}: {METRICS[name].aggregation}")
    lines.append("  macro      plain mean over the organelles with a value; - where nothing defines one")
    return lines


def cell(value: Value) -> str:
    """Format a value for a table; ``-`` is undefined."""
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
