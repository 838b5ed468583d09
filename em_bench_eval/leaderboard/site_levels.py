"""The local/global levels of a submission: the same pixels, made to instances in patches, slices, blocks and volumes.

``levels`` of a result is a document of ``em-bench mismatch`` (format "em-organelle-wild mismatch v1"), or one for each
volume by its id. Anything else is not shown, and the page says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from em_bench_eval.leaderboard.site_text import DASH, number, text
from em_bench_eval.leaderboard.site_values import TITLES
from em_bench_eval.schema import ORGANELLES

FORMAT = "em-organelle-wild mismatch v1"
METRIC, METRIC_SAID = "dice__size", "mean Dice over reference instances, weighted by their size"
LEVELS = {
    "L0": "patches, against their own pieces",
    "L1": "patches, against ids of the volume",
    "L2": "whole slices",
    "L3": "slices linked through z",
    "L4": "3D blocks, not stitched",
    "L5": "whole volume, stitched",
}
GAPS = {
    "gap_id": "definition of an instance (L0 - L1)",
    "gap_stitch": "what stitching gives (L5 - L1)",
    "gap_pixel": "pixels (oracle L5 - L5)",
}


def levels_section(levels: Any) -> str:
    """Return the section of a submission's page; "" without levels."""
    if not levels:
        return ""
    documents = list(_documents(levels))
    inner = "".join(_volume(name, document) for name, document in documents)
    if not inner:
        inner = "<p>This result has levels in a form that this version of the page does not know.</p>"
    return (
        '<h2 id="levels">Local and global</h2>'
        "<p>One volume of predicted pixels, made to instances in six ways. In patches (L1) an organelle that runs "
        "through the volume falls to pieces, whatever the model does; the whole volume (L5) puts them together. "
        f"Values are instance Dice, {METRIC_SAID} (<code>{METRIC}</code>); the tick is the ceiling: the same level "
        f"with perfect pixels.</p>{inner}"
    )


def _documents(levels: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not isinstance(levels, Mapping):
        return
    if levels.get("format") == FORMAT:
        yield str(levels.get("reference", "volume")).rsplit("/", 1)[-1], levels
        return
    for name, document in levels.items():
        if isinstance(document, Mapping) and document.get("format") == FORMAT:
            yield str(name), document


def _volume(name: str, document: Mapping[str, Any]) -> str:
    organelles = document.get("organelles", {})
    shown = [organelle for organelle in ORGANELLES if organelle in organelles]
    if not shown:
        return ""
    heads = "".join(f'<th scope="col" class="num">{TITLES[organelle]}</th>' for organelle in shown)
    body = ""
    for level, title in LEVELS.items():
        cells = "".join(_cell(organelles[organelle].get("levels", {}), level) for organelle in shown)
        body += f'<tr><th scope="row"><b>{level}</b> <span class="soft">{title}</span></th>{cells}</tr>'
    for gap, title in GAPS.items():
        cells = "".join(_gap(organelles[organelle].get("gaps", {}), gap) for organelle in shown)
        body += f'<tr class="gap"><th scope="row">{title}</th>{cells}</tr>'
    shape, size = document.get("shape"), document.get("voxel_size_nm")
    about = ""
    if shape and size:
        voxels, nm = ("×".join(f"{float(edge):g}" for edge in edges) for edges in (shape, size))
        about = f", {voxels} voxels of {nm} nm (z, y, x)"
    said = document.get("statement", {})
    statement = said.get(METRIC, "") if isinstance(said, Mapping) else ""
    words = "".join(f"<p>{text(part, 3000)}</p>" for part in str(statement).split("\n\n") if part)
    words = f"<details><summary>In words</summary>{words}</details>" if words else ""
    caption = f"Levels of {name}"
    return (
        f'<div class="card"><div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}">'
        f'<table class="levels"><caption>{text(name)}{text(about)}</caption>'
        f'<thead><tr><th scope="col">Level</th>{heads}</tr></thead><tbody>{body}</tbody></table></div>{words}</div>'
    )


def _cell(levels: Mapping[str, Any], level: str) -> str:
    value, ceiling = (levels.get(side, {}).get(level, {}).get(METRIC) for side in ("predicted", "oracle"))
    if value is None and ceiling is None:
        return f'<td class="num none">{DASH}<span class="sr"> undefined at this level</span></td>'
    tick = "" if ceiling is None else f"--c:{_percent(ceiling)}%;"
    bar = "0" if value is None else _percent(value)
    shown = DASH if value is None else number(float(value))
    best = "" if ceiling is None else f'<span class="ci">of {number(float(ceiling))}</span>'
    kind = "level" if ceiling is not None else "level open"
    drawn = f'<span class="{kind}" style="{tick}--v:{bar}%"></span>'
    return f'<td class="num"><span class="v">{shown}</span>{best}{drawn}</td>'


def _gap(gaps: Mapping[str, Any], gap: str) -> str:
    side = gaps.get("predicted") or gaps.get("oracle") or {}
    value = side.get(METRIC, {}).get(gap)
    if value is None:
        return f'<td class="num none">{DASH}<span class="sr"> undefined</span></td>'
    sign = "−" if value < 0 else "+"
    return f'<td class="num"><span class="v">{sign}{number(abs(float(value)))}</span></td>'


def _percent(value: float) -> str:
    return number(100 * min(1.0, max(0.0, float(value))), 1)
