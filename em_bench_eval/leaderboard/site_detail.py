"""The page of one submission: scores by organelle, domain and source, every metric, pictures, and how it was scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from em_bench_eval.explain import FAMILIES
from em_bench_eval.leaderboard.site_board import cell, chips, reasons_list
from em_bench_eval.leaderboard.site_cases import cases_section
from em_bench_eval.leaderboard.site_levels import levels_section
from em_bench_eval.leaderboard.site_rows import Result, Row, Section
from em_bench_eval.leaderboard.site_text import DASH, interval, link, metric_title, number, text
from em_bench_eval.leaderboard.site_values import GROUP_TITLES, NAMES, TITLES, View, groups_of, value_of
from em_bench_eval.metrics import HEADLINE
from em_bench_eval.report_tables import tab_rules

PAIR = (HEADLINE, HEADLINE.replace("dice", "iou"))
COUNTS = {"n_reference": "Reference instances", "n_prediction": "Predicted instances", "n_matched": "Matched pairs"}


def detail_values(
    row: Row, section: Section, views: Sequence[View], cases: Sequence[Mapping[str, Any]]
) -> dict[str, str]:
    """Return the parts of ``site_submission.html``, by name."""
    result = row.result
    submission = result["submission"]
    groups = [group for group in GROUP_TITLES if group in result["groups"]]
    return {
        "model": text(submission["model"]),
        "team": text(submission["team"]),
        "chips": chips(result) + "".join(_state(section)),
        "links": link(submission["paper"], "Paper", "button") + link(submission["code"], "Code", "button"),
        "tiles": _tiles(row, section, groups),
        "apart": f'<p class="warning">{text(section.apart[:1].upper() + section.apart[1:])}.</p>'
        if section.apart
        else "",
        "facts": _facts(result),
        "config": text(result["config"]),
        "config_id": section.config,
        "kind": section.kind.title,
        "kind_about": section.kind.about,
        "organelles": _organelles(result, groups),
        "metrics": _metric_tabs(result, groups, views),
        "tab_rules": tab_rules(len(groups)),
        "reasons": reasons_list(),
        "sources": _sources(result),
        "levels": levels_section(result["levels"]),
        "cases": cases_section(cases, result["settings"], by=_by(result)),
        "hashes": _pairs(_hashes(result)),
        "settings": _pairs(result["settings"]),
        "software": _pairs({**result["software"], "timings": result["timings"]}),
        "document": f"{row.slug}.json",
    }


def _by(result: Result) -> str:
    return metric_title(HEADLINE) + (" of all instances" if result["class_agnostic"] else ", mean over organelles")


def _state(section: Section) -> list[str]:
    if section.apart:
        return ['<span class="chip warn">not comparable</span>']
    if section.ranked:
        return ['<span class="chip ok">automatic, ranked</span>']
    return [f'<span class="chip">{"class-agnostic, " if section.kind.agnostic else ""}not ranked</span>']


def _tiles(row: Row, section: Section, groups: Sequence[str]) -> str:
    tiles = ""
    if section.ranked and row.rank is not None:
        span = ""
        if row.span is not None and row.of > 1:
            low, high = row.span
            span = "clear of all others" if low == high else f"{low}{DASH}{high} by intervals"
        below = f"of {row.of}" + (f": {span}" if span else "")
        tiles += f'<div class="tile rank"><span>Rank</span><b>{row.rank}</b><span>{below}</span></div>'
    for group in groups:
        found = value_of(row.result, group, "macro", HEADLINE)
        value = DASH if found.value is None else number(found.value)
        bounds = "" if found.interval is None else interval(found.interval, HEADLINE)
        title = GROUP_TITLES[group]
        kind = group.rpartition("=")[2]
        tiles += (
            f'<div class="tile {kind}"><span>{title}</span><b>{value}</b><span>{bounds or "no interval"}</span></div>'
        )
    return tiles


def _facts(result: Result) -> str:
    submission, dataset = result["submission"], result["dataset"]
    prompts = str(submission["prompts"])
    training = "".join(f"<li>{text(data)}</li>" for data in submission["training_data"])
    pairs = {
        "Training data": f"<ul>{training}</ul>",
        "Shown of the reference": "nothing (automatic)" if prompts == "none" else text(prompts),
        "Compute": text(submission["compute"]),
        "Instances": f"{int(submission.get('instances') or 0):,} in {int(dataset['images']):,} images",
        "Re-scored": text(str(result["date"])[:10]),
        **({"Notes": text(submission["notes"])} if submission.get("notes") else {}),
        **({"Contact": text(submission["contact"])} if submission.get("contact") else {}),
    }
    return "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in pairs.items())


def _organelles(result: Result, groups: Sequence[str]) -> str:
    heads = "".join(
        f'<th scope="col" class="num{" opens" if place == 0 else ""}"><span class="top">{GROUP_TITLES[group]}</span> '
        f'<span class="sub">{term}</span></th>'
        for group in groups
        for place, term in enumerate(("Dice", "IoU"))
    )
    body = ""
    for name in NAMES:
        cells = "".join(
            cell(value_of(result, group, name, metric), metric, opens=place == 0, whisker=place == 0)
            for group in groups
            for place, metric in enumerate(PAIR)
        )
        body += f'<tr{_macro(name)}><th scope="row">{_title(result, name)}</th>{cells}</tr>'
    return _table("Instance Dice and IoU by organelle", ["Organelle"], heads, body)


def _metric_tabs(result: Result, groups: Sequence[str], views: Sequence[View]) -> str:
    labels = panes = ""
    for place, group in enumerate(groups):
        checked = " checked" if place == 0 else ""
        labels += f'<input type="radio" name="group" id="tab-{place}"{checked}>'
        labels += f'<label for="tab-{place}">{GROUP_TITLES[group]}</label>'
        panes += f'<div class="pane">{_metrics(result, group, views)}</div>'
    return labels + panes


def _metrics(result: Result, group: str, views: Sequence[View]) -> str:
    heads = "".join(f'<th scope="col" class="num opens">{_title(result, name)}</th>' for name in NAMES)
    body = ""
    for family in FAMILIES.values():
        metrics = [metric for view in views if view.family == family for metric in view.metrics]
        lines = ""
        for metric in metrics:
            found = [value_of(result, group, name, metric) for name in NAMES]
            if any(value.value is not None for value in found):
                cells = "".join(cell(value, metric, opens=True) for value in found)
                lines += (
                    f'<tr><th scope="row"><a href="../index.html#metric-{metric}">{text(metric_title(metric))}</a></th>'
                    f"{cells}</tr>"
                )
        if lines:
            body += (
                f'<tr class="family"><th scope="rowgroup" colspan="{1 + len(NAMES)}">{text(family)}</th></tr>{lines}'
            )
    scores = result["scores"][group]
    body += f'<tr class="family"><th scope="rowgroup" colspan="{1 + len(NAMES)}">Counts</th></tr>'
    for count, title in COUNTS.items():
        cells = ""
        for name in NAMES:
            value = scores.get(f"any/{count}" if name == "macro" and result["class_agnostic"] else f"{name}/{count}")
            shown = DASH if value is None else number(int(value))
            cells += f'<td class="num opens"><span class="v">{shown}</span></td>'
        body += f'<tr><th scope="row">{title}</th>{cells}</tr>'
    return _table(f"Every metric, {GROUP_TITLES[group].lower()}", ["Metric"], heads, body)


def _sources(result: Result) -> str:
    heads = '<th scope="col">Domain</th><th scope="col" class="num">Images</th><th scope="col" class="num">Volumes</th>'
    heads += "".join(f'<th scope="col" class="num opens">{_title(result, name)}</th>' for name in NAMES)
    body = ""
    for group, source in groups_of([result]).items():
        if not group.startswith("source="):
            continue
        about, size = result["per_source"].get(source, {}), result["groups"][group]
        domains = " and ".join(GROUP_TITLES.get(f"domain={name}", name).lower() for name in about.get("domains", ()))
        cells = f"<td>{text(domains) or DASH}</td>"
        cells += "".join(
            f'<td class="num" data-value="{int(size[what])}">{int(size[what]):,}</td>' for what in ("images", "volumes")
        )
        cells += "".join(
            cell(value_of(result, group, name, HEADLINE), HEADLINE, opens=True, whisker=name == "macro")
            for name in NAMES
        )
        body += f'<tr><th scope="row">{text(source)}</th>{cells}</tr>'
    return _table("Instance Dice by source", ["Source"], heads, body, "sortable")


def _hashes(result: Result) -> dict[str, Any]:
    submission, dataset = result["submission"], result["dataset"]
    return {
        "submission (SHA-256)": submission["hash"],
        "form": submission["form"],
        "dataset": f"{dataset['name']}, {result['config']}/{result['split']}",
        "dataset content": dataset.get("fingerprint") or "not stated",
        "dataset revision": dataset.get("revision") or "a folder",
        "hash of the split": dataset.get("split_hash") or "not stated",
        "metric version": result["metric_version"],
        "settings hash": result["settings_hash"],
        "re-scored": result["date"],
    }


def _pairs(values: Mapping[str, Any]) -> str:
    rows = ""
    for key, value in values.items():
        shown = ", ".join(f"{name} {part}" for name, part in value.items()) if isinstance(value, Mapping) else value
        shown = ", ".join(map(str, shown)) or DASH if isinstance(shown, (list, tuple)) else shown
        rows += f'<tr><th scope="row">{text(key)}</th><td class="mono">{text(shown)}</td></tr>'
    return f'<table class="pairs"><tbody>{rows}</tbody></table>'


def _title(result: Result, name: str) -> str:
    return TITLES["any"] if name == "macro" and result["class_agnostic"] else TITLES[name]


def _macro(name: str) -> str:
    return ' class="macro"' if name == "macro" else ""


def _table(caption: str, first: Sequence[str], heads: str, body: str, kind: str = "") -> str:
    starts = "".join(f'<th scope="col" class="who">{title}</th>' for title in first)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}"><table class="detail {kind}">'
        f"<caption>{text(caption)}</caption><thead><tr>{starts}{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )
