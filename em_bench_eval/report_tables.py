"""The tables of the report page, and the escaping of every text that comes from a file."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from em_bench_eval.metrics import HEADLINE, METRICS
from em_bench_eval.schema import ORGANELLES

Values = Mapping[str, Any]  # "<organelle or macro>/<metric>" -> number or None
Facts = Mapping[str, tuple[str, str]]  # record id -> (source, domain)

UNDEFINED = "–"
TITLES = {
    "macro": "Macro average",
    "mito": "Mitochondria",
    "nucleus": "Nuclei",
    "er": "ER",
    "endo": "Endosomes",
    "golgi": "Golgi",
}
GROUP_TITLES = {"all": "All", "domain=in": "In-domain", "domain=out": "Out-of-domain"}
DOMAIN_TITLES = {"in": "in-domain", "out": "out-of-domain"}
DETAIL_TITLES = {
    "n_reference": "Reference",
    "n_prediction": "Predicted",
    "n_matched": "Matched",
    "dice__instance": "Instance Dice",
    "iou__instance": "Instance IoU",
    "pq": "PQ",
    "sq": "SQ",
    "f1": "F1 = RQ",
    "precision": "Precision",
    "recall": "Recall",
    "dice__reference": "Dice, reference",
    "dice__matched": "Dice, matched",
    "dice__pooled": "Dice, pooled",
    "semantic_dice": "Semantic Dice",
    "semantic_iou": "Semantic IoU",
}
DOTS_PER_SOURCE = 400


def summary_table(groups: Mapping[str, Values]) -> str:
    """Instance Dice by organelle and domain.

    The difference of the macro averages is taken over the organelles that both domains have: averages over different
    organelles would compare the organelles, not the domains.
    """
    both = "domain=in" in groups and "domain=out" in groups
    differences = {
        name: groups["domain=out"][f"{name}/{HEADLINE}"] - groups["domain=in"][f"{name}/{HEADLINE}"]
        for name in ORGANELLES
        if both and all(groups[side].get(f"{name}/{HEADLINE}") is not None for side in ("domain=in", "domain=out"))
    }
    if differences:
        differences["macro"] = sum(differences.values()) / len(differences)
    body = ""
    for name in TITLES:
        cells = "".join(_bar_cell(values.get(f"{name}/{HEADLINE}")) for values in groups.values())
        body += _row(name, TITLES[name], cells + (_difference_cell(differences.get(name)) if both else ""))
    caption = "Instance Dice per organelle" + (
        "; the macro difference is the mean over organelles that both domains have" if both else ""
    )
    heads = ["Organelle", *(GROUP_TITLES[name] for name in groups), *(["Out minus in"] if both else [])]
    return _table(caption, heads, body, "even")


def detail_tabs(groups: Mapping[str, Values]) -> str:
    """Every metric of every organelle: one tab per group, switched by radio buttons, without a script."""
    labels, panes = "", ""
    for number, (group, values) in enumerate(groups.items()):
        checked = " checked" if number == 0 else ""
        labels += f'<input type="radio" name="group" id="tab-{number}"{checked}>'
        labels += f'<label for="tab-{number}">{GROUP_TITLES[group]}</label>'
        body = ""
        for name in TITLES:
            shown = {metric: values.get(f"{name}/{metric}") for metric in DETAIL_TITLES}
            if not shown["n_reference"] and not shown["n_prediction"]:  # no instances: counts of 0 say nothing
                shown.update(n_reference=None, n_prediction=None, n_matched=None)
            cells = "".join(_bar_cell(value) if metric == HEADLINE else _cell(value) for metric, value in shown.items())
            body += _row(name, TITLES[name], cells)
        caption = f"All metrics, {GROUP_TITLES[group].lower()} images"
        heads = [f'<th scope="col" title="{text(METRICS[key].definition)}">' for key in DETAIL_TITLES]
        table = _table(caption, ["Organelle", *DETAIL_TITLES.values()], body, "detail", ['<th scope="col">', *heads])
        panes += f'<div class="pane"><div class="scroll" tabindex="0" role="region" aria-label="{caption}">'
        panes += f"{table}</div></div>"
    return labels + panes


def tab_rules(count: int) -> str:
    """Style rules that show the pane of the chosen tab."""
    return "".join(f"#tab-{n}:checked ~ .pane:nth-of-type({n + 1}) {{ display: block; }}\n" for n in range(count))


def source_table(score: Mapping[str, Any], facts: Facts) -> str:
    """Instance Dice by source and organelle, with the number of images and the domains they belong to."""
    body = ""
    for group in sorted(name for name in score["groups"] if name.startswith("source=")):
        source = group.partition("=")[2]
        domains = [facts[record][1] for record in score["per_image"] if facts[record][0] == source]
        named = ", ".join(title for domain, title in DOMAIN_TITLES.items() if domain in domains)
        cells = f"<td>{named or UNDEFINED}</td>" + _cell(len(domains))
        cells += "".join(_bar_cell(score["groups"][group].get(f"{name}/{HEADLINE}")) for name in TITLES)
        body += _row("", source, cells)
    return _table("Instance Dice per source", ["Source", "Domain", "Images", *TITLES.values()], body)


def strip(per_image: Mapping[str, Values], facts: Facts, number_of: Mapping[str, int]) -> str:
    """A line of dots per source: macro instance Dice of its images; ``number_of`` links records to their pictures."""
    lines = ""
    for source in sorted({facts[record][0] for record in per_image}):
        scored = sorted(
            (values[f"macro/{HEADLINE}"], record)
            for record, values in per_image.items()
            if facts[record][0] == source and values.get(f"macro/{HEADLINE}") is not None
        )
        ranks = np.unique(np.linspace(0, len(scored) - 1, min(len(scored), DOTS_PER_SOURCE)).round().astype(int))
        dots = ""
        for value, record in (scored[rank] for rank in ranks):
            dots += f'<i style="left:{value:.2%}" title="{text(record)}: {value:.3f}"></i>'
        for value, record in scored:
            if record in number_of:
                label = f"{text(record)}, Dice {value:.3f}"
                dots += f'<a style="left:{value:.2%}" href="#picture-{number_of[record]}" title="{label}"'
                dots += f' aria-label="{label}"></a>'
        lines += f'<div class="line"><span>{text(source)}</span><span class="track">{dots}</span></div>'
    axis = "".join(f"<span>{tick}</span>" for tick in ("0", "0.25", "0.5", "0.75", "1"))
    return lines + f'<div class="line"><span></span><span class="axis">{axis}</span></div>'


def key_value_table(values: Mapping[str, Any]) -> str:
    """Settings or versions, one a line; a nested mapping becomes one line."""
    rows = ""
    for key, value in values.items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if isinstance(value, Mapping):
            shown = ", ".join(f"{name} {part}" for name, part in value.items())
        rows += f'<tr><th scope="row">{text(key)}</th><td class="mono">{text(shown)}</td></tr>'
    return f"<table><tbody>{rows}</tbody></table>" if rows else f"<p>{UNDEFINED}</p>"


def number(value: float | None) -> str:
    """A score to three decimals, a count in full, an undefined value as a dash."""
    if value is None:
        return UNDEFINED
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def text(value: object) -> str:
    """Escape for HTML text and quoted attributes; control characters become spaces."""
    return html.escape(re.sub(r"[\x00-\x1f\x7f]", " ", str(value)))


def _table(
    caption: str, heads: Iterable[str], body: str, kind: str = "", head_tags: Iterable[str] | None = None
) -> str:
    heads = list(heads)
    tags = list(head_tags or ['<th scope="col">'] * len(heads))
    cells = "".join(f"{tag}{head}</th>" for tag, head in zip(tags, heads, strict=True))
    opening = f'<table class="sortable {kind}"><caption>{caption}</caption>'
    return f"{opening}<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def _row(name: str, title: str, cells: str) -> str:
    opening = '<tr class="macro">' if name == "macro" else "<tr>"
    return f'{opening}<th scope="row">{text(title)}</th>{cells}</tr>'


def _cell(value: float | None) -> str:
    if value is None:
        return f'<td class="none" data-value="">{UNDEFINED}</td>'
    return f'<td data-value="{value}">{number(value)}</td>'


def _bar_cell(value: float | None) -> str:
    if value is None:
        return _cell(value)
    return f'<td data-value="{value}">{number(value)}<span class="bar" style="--w:{min(value, 1):.1%}"></span></td>'


def _difference_cell(difference: float | None) -> str:
    if difference is None:
        return _cell(None)
    sign, direction = ("−", "down") if difference < 0 else ("+", "up")
    return f'<td class="{direction}" data-value="{difference}">{sign}{abs(difference):.3f}</td>'
