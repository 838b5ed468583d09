"""The front page: tables of both configurations, what can be chosen and filtered, and how scores are computed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from em_bench_eval.leaderboard.manifest import CONFIGS
from em_bench_eval.leaderboard.quoted import quoted_table
from em_bench_eval.leaderboard.quoted_retina import retina_table
from em_bench_eval.leaderboard.site_board import DOMAINS, Choices, board, reasons_list
from em_bench_eval.leaderboard.site_explain import explained
from em_bench_eval.leaderboard.site_rows import Result, Section
from em_bench_eval.leaderboard.site_text import link, text
from em_bench_eval.leaderboard.site_values import TITLES, View, page_data
from em_bench_eval.schema import ORGANELLES

ABOUT = {
    "wild": "All sources: many tissues, specimens and microscopes, and specimens that no training image shows.",
    "homogeneous": "Isotropic FIB-SEM volumes of one kind, in-domain: the controlled setting of the paper's Table 1.",
}
ORDER = sorted(CONFIGS, key=list(ABOUT).index)


def index_values(
    sections: Mapping[str, Sequence[Section]],
    views: Sequence[View],
    groups: Mapping[str, str],
    dataset: str,
    submissions: str,
) -> dict[str, str]:
    """Return the parts of ``site_index.html``, by name; ``sections`` are the tables of each configuration."""
    rows = [row for config in ORDER for section in sections[config] for row in section.rows]
    results = [row.result for row in rows]
    choices = Choices.of(rows)
    latest = max(results, key=lambda result: str(result["date"])) if results else None
    return {
        "facts": _facts(sections, latest, dataset),
        "toolbar": _toolbar(views, groups, choices) if rows else "",
        "boards": "".join(_config(config, sections[config], views, choices) for config in ORDER) + retina_table(),
        "reasons": reasons_list(),
        "how": explained(views, latest),
        "dataset": text(dataset or "DATASET"),
        "submissions": text(submissions or "SUBMISSIONS"),
        "data": _json(page_data(rows, views, groups)),
    }


def _json(data: Any) -> str:
    """Return JSON that may stand in a script element: no text of it can close the element or open a comment."""
    encoded = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return encoded.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _facts(sections: Mapping[str, Sequence[Section]], latest: Result | None, dataset: str) -> str:
    listed = [section for found in sections.values() for section in found]
    ranked = sum(row.rank is not None for section in listed for row in section.rows)
    known = link(f"https://huggingface.co/datasets/{dataset}", dataset) if dataset.count("/") == 1 else text(dataset)
    pairs = {
        "Submissions": f"{sum(len(section.rows) for section in listed)}, of which {ranked} ranked",
        **({"Dataset": known} if known else {}),
    }
    if latest is not None:
        pairs["Metric version"] = text(latest["metric_version"])
        pairs["Settings"] = f'<span class="mono">{text(latest["settings_hash"])}</span>'
        pairs["Newest result"] = text(str(latest["date"])[:10])
    return "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in pairs.items())


def _config(config: str, sections: Sequence[Section], views: Sequence[View], choices: Choices) -> str:
    domains = DOMAINS if all(_has(sections, group) for group in DOMAINS) else ()  # one alone is all images
    parts = [f'<section class="config" aria-labelledby="{config}"><h2 id="{config}">{config.capitalize()}</h2>']
    parts.append(f"<p>{ABOUT[config]}{_size(sections)}</p>")
    comparable = [section for section in sections if not section.apart]
    if not any(section.ranked for section in comparable):
        parts.append('<p class="empty card">No automatic submission has been scored yet. Yours could be the first.</p>')
    parts += [_section(section, views[0], domains, choices) for section in comparable]
    parts.append(quoted_table(config))
    apart = [section for section in sections if section.apart]
    if apart:
        count = sum(len(section.rows) for section in apart)
        inner = "".join(_section(section, views[0], domains, choices) for section in apart)
        parts.append(
            f'<details class="apart"><summary>Not comparable ({count})</summary><p>These were scored by another '
            "version of the metric, other settings, other images or other labels, or predict another split. They are "
            f"unranked, and no number here may be held against one above.</p>{inner}</details>"
        )
    return "".join([*parts, "</section>"])


def _has(sections: Sequence[Section], group: str) -> bool:
    return any(group in row.result["groups"] for section in sections for row in section.rows)


def _size(sections: Sequence[Section]) -> str:
    for section in sections:
        if not section.apart and section.rows:
            result = section.rows[0].result
            size, sources = result["groups"]["all"], result["per_source"]
            images, volumes = (f"{int(size[what]):,}" for what in ("images", "volumes"))
            return f" Test split: {images} images of {volumes} volumes from {len(sources)} sources."
    return ""


def _section(section: Section, view: View, domains: Sequence[str], choices: Choices) -> str:
    about = section.kind.about if not section.apart else f"{section.apart[:1].upper()}{section.apart[1:]}."
    key = ""
    if section.apart:
        key = f'<p class="small soft">Metric version {text(section.key.metric_version)}, settings <span class="mono">'
        key += f'{text(section.key.settings_hash)}</span>, split <span class="mono">{text(section.key.split_hash[:12])}'
        key += f"</span>, {text(section.key.fingerprint or 'content not stated')}.</p>"
    return (
        f'<section class="kind" id="{text(section.id)}"><h3>{section.kind.title} <span class="count soft" data-count='
        f'"{len(section.rows)}">{len(section.rows)}</span></h3><p class="about">{text(about)}</p>{key}'
        f"{board(section, view, domains, choices)}</section>"
    )


def _toolbar(views: Sequence[View], groups: Mapping[str, str], choices: Choices) -> str:
    families: dict[str, str] = {}
    for place, view in enumerate(views):
        chosen = " selected" if place == 0 else ""
        family = "Headline" if place == 0 else view.family
        families[family] = families.get(family, "") + f'<option value="{view.id}"{chosen}>{text(view.title)}</option>'
    metrics = "".join(f'<optgroup label="{text(family)}">{options}</optgroup>' for family, options in families.items())
    pooled = "".join(
        f'<option value="{group}">{text(title)}</option>' for group, title in groups.items() if "source" not in group
    )
    sources = "".join(
        f'<option value="{text(group)}">{text(title)}</option>'
        for group, title in groups.items()
        if group.startswith("source=")
    )
    images = pooled + (f'<optgroup label="Sources">{sources}</optgroup>' if sources else "")
    boxes = "".join(
        f'<label class="box"><input type="checkbox" name="covers" value="{name}">{TITLES[name]}</label>'
        for name in ORGANELLES
    )
    filters = "".join(
        _select(name, label, choice)
        for name, label, choice in (
            ("team", "Team", choices.team),
            ("training", "Training data", choices.training),
            ("prompts", "Prompts", choices.prompts),
        )
    )
    return (
        '<form class="toolbar js-only" role="search" aria-label="Choose and filter" autocomplete="off">'
        f'<label>Metric<select name="metric">{metrics}</select></label>'
        f'<label>Images<select name="images">{images}</select></label>'
        '<label class="wide">Search<input type="search" name="search" placeholder="model, team, data ..."></label>'
        f'<details class="more"><summary>Filters<span></span></summary><div>{filters}'
        f"<fieldset><legend>Predicts instances of</legend>{boxes}</fieldset></div></details>"
        '<button class="tool" type="reset">Reset</button>'
        '<output class="soft" aria-live="polite"></output></form>'
    )


def _select(name: str, label: str, choice: Mapping[str, int]) -> str:
    if len(choice) < 2:
        return ""
    options = "".join(f'<option value="{place}">{text(title, 60)}</option>' for title, place in choice.items())
    return f'<label>{label}<select name="{name}"><option value="">any</option>{options}</select></label>'
