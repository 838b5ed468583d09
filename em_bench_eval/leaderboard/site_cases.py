"""The best and the worst images of a submission, as figures; ``site_pictures`` draws them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from em_bench_eval.leaderboard.site_text import DASH, number, text
from em_bench_eval.leaderboard.site_values import TITLES
from em_bench_eval.metrics import HEADLINE
from em_bench_eval.report import picture_legend
from em_bench_eval.report_tables import DOMAIN_TITLES
from em_bench_eval.schema import ORGANELLES

Case = Mapping[str, Any]  # see ``site_pictures.draw_cases``
_PICTURE = re.compile(r"data:image/(png|webp);base64,[A-Za-z0-9+/]+={0,2}")
SIDES = {"image": "EM image", "reference": "Reference", "prediction": "Prediction"}


def cases_section(cases: Sequence[Case], settings: Mapping[str, Any], *, by: str) -> str:
    """Return the section of the page, or a line that says that there are no pictures."""
    drawn = [(case, figure) for place, case in enumerate(cases) if (figure := _sound_figure(str(place), case))]
    head = '<h2 id="cases">Best and worst images</h2>'
    if not drawn:
        return f"{head}<p>No pictures were drawn for this result.</p>"
    hidden = any(case.get("reference") is None for case, _ in drawn)
    said = f"Chosen by rule, not by hand: the images with the highest and the lowest {text(by)}, from different "
    said += "volumes where there are several. Contrast is stretched and gray values are compressed, for display only."
    if hidden:
        said += " The reference labels of this split are not public: they are not drawn, and only what was predicted "
        said += "is marked as matched or not."
    legend = picture_legend(float(settings["iou_threshold"]), any(case.get("ignore") for case, _ in drawn))
    figures = ""
    for role, title in (("best", "Best"), ("worst", "Worst")):
        inner = "".join(figure for case, figure in drawn if case["role"] == role)
        figures += f'<h3 class="role">{title}</h3><div class="cases">{inner}</div>' if inner else ""
    tools = (
        '<div class="bar-tools js-only" role="group" aria-label="Picture controls"><label>Overlay '
        '<input id="overlay" type="range" min="0" max="100" value="100"></label>'
        + ("" if hidden else '<button class="tool" id="blink" type="button" aria-pressed="false">Blink all</button>')
        + "</div>"
    )
    return f'{head}<p>{said}</p><div class="card"><ul class="legend">{legend}</ul></div>{tools}{figures}'


def _sound_figure(name: str, case: Case) -> str:
    """Return the figure of a case; "" if it is damaged: one picture must not cost the whole site."""
    try:
        return _figure(name, case)
    except (AttributeError, KeyError, TypeError, ValueError):
        return ""


def _figure(name: str, case: Case) -> str:
    rules = f".em-{name}{{background-image:url({_checked(case['image'])})}}"
    sides = [side for side in SIDES if side == "image" or case.get(side) is not None]
    panels = "".join(_panel(name, case, side) for side in sides)
    domain = DOMAIN_TITLES.get(case["domain"], case["domain"])
    kind = case["domain"] if case["domain"] in DOMAIN_TITLES else ""
    values = case["values"]
    top = values.get(f"macro/{HEADLINE}", values.get(f"any/{HEADLINE}"))
    chips = f'<span class="chip {kind}">{text(domain)}</span><span class="chip">{text(case["source"])}</span>'
    buttons = '<button class="tool enlarge js-only" type="button" aria-pressed="false">Enlarge</button>'
    if "reference" in sides:
        buttons += '<button class="tool blink js-only" type="button" aria-pressed="false">Blink</button>'
    return (
        f'<figure class="case card"><style>{rules}</style><div class="head"><b class="score">{_shown(top)}</b>'
        f'<h4>{text(case["record_id"])}</h4>{chips}<span class="tools">{buttons}</span></div>'
        f'<div class="panels of-{len(sides)}">{panels}</div><figcaption>{_caption(case)}</figcaption></figure>'
    )


def _panel(name: str, case: Case, side: str) -> str:
    height, width = (int(size) for size in case["shape"])
    layers = ""
    if side != "image":
        layers = "".join(
            f'<img data-side="{side}" alt="" src="{_checked(case[side][organelle])}">'
            for organelle in ORGANELLES
            if organelle in case[side]
        )
        if case.get("ignore"):
            layers += f'<img alt="" src="{_checked(case["ignore"])}">'
    scale = case["scale"]
    label = f"{SIDES[side]} of {case['record_id']}, Dice {_shown(case['values'].get(f'macro/{HEADLINE}'))}"
    return (
        f'<div class="panel" data-panel="{side}"><span class="stack" role="img" aria-label="{text(label)}" '
        f'style="aspect-ratio:{width}/{height}"><span class="em em-{name}"></span>{layers}'
        f'<span class="scale" style="width:{float(scale["fraction"]):.3%}"><i></i>'
        f'<span>{text(scale["label"])}</span></span></span><span class="name">{SIDES[side]}</span></div>'
    )


def _caption(case: Case) -> str:
    size = " × ".join(f"{float(nm):g}" for nm in dict.fromkeys(case["pixel_size_nm"]))
    part = "; only the annotated part is shown" if case.get("cropped") else ""
    lines = ""
    for organelle in ORGANELLES:
        if organelle not in case["counts"]:
            continue
        reference, predicted, matched = (int(count) for count in case["counts"][organelle])
        value = case["values"].get(f"{organelle}/{HEADLINE}", case["values"].get(f"{organelle}/dice__stratified"))
        shown = (_shown(value), reference, predicted, reference - matched, predicted - matched)
        cells = "".join(f'<td class="num">{one}</td>' for one in shown)
        lines += f'<tr><th scope="row">{TITLES[organelle]}</th>{cells}</tr>'
    heads = "".join(
        f'<th scope="col" class="num">{head}</th>' for head in ("Dice", "ref.", "pred.", "missed", "unmatched")
    )
    return (
        f'<table class="plain"><thead><tr><th scope="col"><span class="sr">Organelle</span></th>{heads}</tr></thead>'
        f'<tbody>{lines}</tbody></table><p class="soft small">{size} nm per pixel{part}</p>'
    )


def _shown(value: float | None) -> str:
    return DASH if value is None else number(value)


def _checked(address: str) -> str:
    if not _PICTURE.fullmatch(address):
        raise ValueError("a picture that is not written by site_pictures")
    return address
