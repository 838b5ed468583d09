"""The HTML page: one file that needs nothing else, with the tables and the pictures of a scored prediction.

``report.html`` is the template: layout, colours and behaviour. This module fills it; every text that comes from a file
(model, record and source names, settings) goes through ``report_tables.text``.
"""

from __future__ import annotations

import base64
import hashlib
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from em_bench_eval.colours import instance_colours
from em_bench_eval.comparison import Mark
from em_bench_eval.metrics import HEADLINE
from em_bench_eval.pictures import Picture, encode_picture_png, ignore_layer, instance_layer
from em_bench_eval.report_tables import (
    DOMAIN_TITLES,
    DOTS_PER_SOURCE,
    GROUP_TITLES,
    TITLES,
    UNDEFINED,
    Facts,
    Values,
    detail_tabs,
    key_value_table,
    number,
    source_table,
    strip,
    summary_table,
    tab_rules,
    text,
)
from em_bench_eval.schema import ORGANELLES, Organelle

REFERENCE_IDS_MEANING = {
    "volume": "as published: one id per instance of the whole volume, also where an image cuts it into several pieces",
    "slice": "one id per connected piece in the image",
}


@dataclass(frozen=True)
class Example:
    """An image that the page shows."""

    record_id: str
    source: str
    domain: str
    roles: tuple[str, ...]  # "best", "median", "worst"; empty for an image that stands for its source
    counts: Mapping[Organelle, tuple[int, int, int]]  # annotated organelle -> reference, predicted, matched instances
    pixel_size_nm: tuple[float, float]  # (y, x)
    picture: Picture


def render_page(score: Mapping[str, Any], row: Mapping[str, Any], facts: Facts, examples: Sequence[Example]) -> str:
    """Return the page as HTML.

    ``score`` is ``score.json``, ``row`` the leaderboard row made of it, ``facts`` maps every scored record id to its
    source and domain.
    """
    template = (Path(__file__).parent / "report.html").read_text(encoding="utf-8")
    script = template.split("<script>")[1].split("</script>")[0]
    groups: dict[str, Values] = {name: score["groups"][name] for name in GROUP_TITLES if name in score["groups"]}
    per_image = score["per_image"]
    values = {
        # the page may run this one script and load nothing: what a name could smuggle in stays dead text
        "script_hash": "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "title": text(f"{row['model']} on {row['dataset']['path']}"),
        "model": text(row["model"] or "unnamed model"),
        "checkpoint": text(row["checkpoint"] or "not stated"),
        "tiles": "".join(_tile(name, values) for name, values in groups.items()),
        "facts": _facts(row),
        "reference_ids": text(row["reference_ids"]),
        "reference_ids_meaning": text(REFERENCE_IDS_MEANING.get(row["reference_ids"], "see the settings")),
        "summary_table": summary_table(groups),
        "detail_tabs": detail_tabs(groups),
        "tab_rules": tab_rules(len(groups)),
        "undefined": UNDEFINED,
        "source_table": source_table(score, facts),
        "dots_per_source": DOTS_PER_SOURCE,
        "strip": strip(per_image, facts, {example.record_id: place for place, example in enumerate(examples)}),
        "legend": picture_legend(score["settings"]["iou_threshold"], any(e.picture.ignore_png for e in examples)),
        "organelle_boxes": _organelle_boxes(examples),
        "hide_rules": "".join(f".hide-{name} img[data-organelle={name}] {{ display: none; }}\n" for name in ORGANELLES),
        "image_rules": "".join(
            f".em-{place}{{background-image:url({_data_uri(example.picture.image_png)})}}\n"
            for place, example in enumerate(examples)
        ),
        "figures": "\n".join(
            _figure(place, example, per_image[example.record_id]) for place, example in enumerate(examples)
        ),
        "settings_table": key_value_table(row["settings"]),
        "prediction_table": key_value_table(score["prediction"].get("settings", {})),
        "software_table": key_value_table({**row["software"], "platform": row["platform"]}),
        "date": text(row["date"]),
    }
    return string.Template(template).substitute(values)


def _tile(group: str, values: Values) -> str:
    defined = sum(values.get(f"{name}/{HEADLINE}") is not None for name in ORGANELLES)
    organelles = f"{defined} organelle{'' if defined == 1 else 's'}"
    return (
        f'<div class="tile {group.rpartition("=")[2]}"><span>{GROUP_TITLES[group]}</span>'
        f"<b>{number(values.get(f'macro/{HEADLINE}'))}</b><span>mean of {organelles}</span></div>"
    )


def _facts(row: Mapping[str, Any]) -> str:
    dataset = row["dataset"]
    pairs = {
        "Dataset": dataset["path"],
        "Configuration, split": f"{dataset['config']}, {dataset['split']}",
        "Images": row["images"],
        "Reference ids": row["reference_ids"],
        "Metric version": row["metric_version"],
        "Settings hash": row["settings_hash"],
        **({"Matching": "class-agnostic"} if row.get("class_agnostic") else {}),
        **({"Prompts": f"{row['prompts']}: shown the reference, never ranked"} if row.get("prompts") else {}),
    }
    return "".join(f"<div><dt>{key}</dt><dd>{text(value)}</dd></div>" for key, value in pairs.items())


def _organelle_boxes(examples: Sequence[Example]) -> str:
    drawn = {organelle for e in examples for organelle in (*e.picture.reference_png, *e.picture.prediction_png)}
    return "".join(
        f'<label><input type="checkbox" checked data-organelle="{organelle}">{TITLES[organelle.value]}</label>'
        for organelle in Organelle
        if organelle in drawn
    )


def picture_legend(iou_threshold: float, has_ignore: bool) -> str:
    """Explain every mark; the swatches come from the painter itself, so they cannot disagree with the pictures."""
    texts = {
        Mark.HIT: "<b>Matched.</b> The reference instance and its prediction share one colour.",
        Mark.WEAK: f"<b>Matched poorly</b>: white dashes. IoU of {iou_threshold:g} or less; PQ counts it as an error.",
        Mark.MISSED: "<b>Missed</b> reference instance: faint, red and white dashes. Nothing was matched to it.",
        Mark.UNMATCHED: "<b>Unmatched</b> prediction: striped, coloured like the reference it overlaps most, if any.",
        Mark.UNJUDGED: "<b>Not judged</b>: faint. Mostly ignored, too small, or an organelle not annotated here.",
    }
    rows, columns = np.indices((38, 54))
    disc = (((rows - 18.5) / 14) ** 2 + ((columns - 26.5) / 21) ** 2 < 1).astype(np.uint8)
    swatches = [
        (instance_layer(disc, {1: instance_colours([index])[index]}, {1: mark}), caption)
        for index, (mark, caption) in enumerate(texts.items(), start=3)
    ]
    if has_ignore:
        caption = "<b>Not annotated</b>: dark and hatched. Excluded from every score."
        swatches.append((ignore_layer(np.ones(disc.shape, bool)), caption))
    return "".join(
        f'<li><img class="swatch" alt="" src="{_data_uri(encode_picture_png(layer))}"><span>{caption}</span></li>'
        for layer, caption in swatches
    )


def _figure(place: int, example: Example, values: Values) -> str:
    picture = example.picture
    panels = "".join(
        (
            _panel(place, example, "image", "EM image", {}),
            _panel(place, example, "reference", "Reference", picture.reference_png),
            _panel(place, example, "prediction", "Prediction", picture.prediction_png),
        )
    )
    chips = "".join(f'<span class="chip role">{role}</span>' for role in example.roles)
    domain = DOMAIN_TITLES.get(example.domain, example.domain)
    chips += f'<span class="chip {text(example.domain)}">{text(domain)}</span>'
    chips += f'<span class="chip">{text(example.source)}</span>'
    return (
        f'<figure class="example card" id="picture-{place}">'
        f'<div class="head"><h3>{text(example.record_id)}</h3>{chips}'
        '<button class="tool blink js-only" type="button" aria-pressed="false">Blink</button></div>'
        f'<div class="panels">{panels}</div><figcaption>{_caption(example, values)}</figcaption></figure>'
    )


def _panel(place: int, example: Example, side: str, title: str, layers: Mapping[Organelle, bytes]) -> str:
    """One of the three pictures of a row: the EM image as background, organelle layers, ignored region, scale bar."""
    picture = example.picture
    height, width = picture.shape
    images = "".join(
        f'<img data-side="{side}" data-organelle="{organelle}" alt="" src="{_data_uri(png)}">'
        for organelle, png in layers.items()
    )
    if picture.ignore_png is not None and side != "image":
        images += f'<img data-ignore alt="" src="{_data_uri(picture.ignore_png)}">'
    bar = picture.scale_bar
    return (
        f'<button class="panel" type="button" data-panel="{side}"'
        f' aria-label="Enlarge {title.replace("Ref", "ref").replace("Pred", "pred")} of {text(example.record_id)}">'
        f'<span class="stack" style="aspect-ratio:{width}/{height};--ratio:{width / height:.4f}">'
        f'<span class="em em-{place}"></span>{images}'
        f'<span class="scale" style="width:{bar.fraction:.3%}"><i></i><span>{bar.label}</span></span></span>'
        f'<span class="name{" now" if side == "prediction" else ""}">{title}</span></button>'
    )


def _caption(example: Example, values: Values) -> str:
    size = " × ".join(f"{nm:g}" for nm in dict.fromkeys(example.pixel_size_nm))
    part = "; only the annotated part is shown" if example.picture.cropped else ""
    lines = (
        f"<tr><th>Macro</th><td>{number(values.get(f'macro/{HEADLINE}'))}</td>"
        f'<td class="soft">{size} nm per pixel{part}</td></tr>'
    )
    for organelle, (reference, predicted, matched) in example.counts.items():
        lines += (
            f"<tr><th>{TITLES[organelle.value]}</th><td>{number(values.get(f'{organelle}/{HEADLINE}'))}</td>"
            f'<td class="soft">{reference} reference, {predicted} predicted, {reference - matched} missed, '
            f"{predicted - matched} unmatched</td></tr>"
        )
    return f'<table class="plain"><tr class="soft"><td></td><td>Dice</td><td>instances</td></tr>{lines}</table>'


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
