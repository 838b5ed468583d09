"""The page of a quality report: one HTML file that needs nothing else, with pictures of what was flagged."""

from __future__ import annotations

import html
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dataset_builder.figures_canvas import ORGANELLE_COLOUR, ORGANELLE_TITLE
from dataset_builder.quality_checks import CHECKS, LEAST_SCORE, Finding
from dataset_builder.volumes import open_array
from em_bench_eval.schema import Organelle
from lpa.pictures import data_uri, gray_levels, gray_picture, inner_edge, over, resized, shown_shape

if TYPE_CHECKING:
    from dataset_builder.quality import VolumeReport

MOST_SHOWN, MOST_LISTED = 60, 400  # volumes with pictures, and in the table
MOST_PICTURES = 4  # of a finding
THUMB = 240  # pixels
STORED, MOVED, MARKED = (230, 159, 0, 255), (86, 180, 233, 255), (204, 121, 167, 255)  # Okabe and Ito
LABEL_CHECKS = ("unknown_id", "class_conflict", "wrong_size", "label_gap", "missing_chunk")
CHART = (620, 120)


class Page:
    """Collects volumes in any order; keeps pictures of the first flagged ones only."""

    def __init__(self, dataset: str):
        self._dataset = dataset
        self._rows: dict[str, tuple[int, int, str]] = {}
        self._sections: dict[str, str] = {}
        self._found: Counter[str] = Counter()
        self._without_image = 0  # label-only volumes, whose one finding needs no picture
        self._volumes: Counter[str] = Counter()

    def add(self, report: VolumeReport) -> None:
        """Take one volume."""
        name = report.listed.volume_id
        self._volumes[report.listed.source] += 1
        self._found.update({found.check.name for found in report.findings})
        self._without_image += report.measured.label_only
        errors, warnings = report.count("error"), report.count("warning")
        self._rows[name] = (errors, warnings, _row(report))
        if not report.findings or report.measured.label_only:
            return
        if len(self._sections) < MOST_SHOWN:
            self._sections[name] = _section(report)
            return
        # workers finish in any order: what is shown must not depend on it
        last = max(self._sections)
        if name < last:
            del self._sections[last]
            self._sections[name] = _section(report)

    def html(self) -> str:
        """Return the page."""
        template = string.Template((Path(__file__).parent / "quality.html").read_text(encoding="utf-8"))
        ordered = sorted(self._rows, key=lambda name: (-self._rows[name][0], -self._rows[name][1], name))
        flagged = sum(bool(errors or warnings) for errors, warnings, _ in self._rows.values())
        shown = flagged - self._without_image
        errors = sum(errors for errors, _, _ in self._rows.values())
        warnings = sum(warnings for _, warnings, _ in self._rows.values())
        sources = ", ".join(f"{_text(source)} ({count})" for source, count in sorted(self._volumes.items()))
        verdict = "error" if errors else "warning" if warnings else "fine"
        said = f"{errors} errors and {warnings} warnings in {flagged} of {len(self._rows)} volumes"
        left_out = len(ordered) - MOST_LISTED
        unseen = shown - len(self._sections)
        return template.substitute(
            dataset=_text(self._dataset),
            verdict=verdict,
            summary=said if flagged else f"Nothing was flagged in {len(self._rows)} volumes",
            sources=sources,
            volumes="".join(self._rows[name][2] for name in ordered[:MOST_LISTED]),
            volumes_note=f"and {left_out} more, see quality.json" if left_out > 0 else "",
            sections="".join(self._sections[name] for name in ordered if name in self._sections),
            sections_note=f"{unseen} more flagged volumes are in quality.json." if unseen > 0 else "",
            checks="".join(_check_row(check.name, self._found[check.name]) for check in CHECKS),
        )


def _text(value: object) -> str:
    return html.escape("".join(letter if letter.isprintable() else " " for letter in str(value)))


def _chips(findings: Sequence[Finding]) -> str:
    return "".join(
        f'<span class="chip {found.check.severity}">{found.check.name.replace("_", " ")}</span>' for found in findings
    )


def _row(report: VolumeReport) -> str:
    listed, measured = report.listed, report.measured
    labels = measured.labels
    seen = labels is not None and labels.score > LEAST_SCORE
    shift = "–" if labels is None else f"{labels.length:.1f} px" if seen else "none seen"
    steady = [shift for shift in measured.shifts if shift is not None]
    jump = max((np.hypot(*shift.shift) for shift in steady), default=None)
    ignored = measured.ignored.sum() / max(np.prod(measured.shape), 1)
    cells = [
        f'<th scope="row"><a href="#{_text(listed.volume_id)}">{_text(listed.volume_id)}</a></th>'
        if report.findings and not measured.label_only
        else f'<th scope="row">{_text(listed.volume_id)}</th>',
        f"<td>{' × '.join(map(str, measured.shape))}</td>",
        f"<td>{len(listed.ids):,}</td>",
        f"<td>{ignored:.1%}</td>",
        f"<td>{'–' if jump is None else f'{jump * measured.small_factor:.1f} px'}</td>",
        f"<td>{shift}</td>",
        f'<td class="left">{_chips(report.findings) or "fine"}</td>',
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _check_row(name: str, volumes: int) -> str:
    check = next(check for check in CHECKS if check.name == name)
    limit = "any" if check.limit == 0 else f"{check.limit:g} {check.unit}"
    return (
        f'<tr><th scope="row">{name.replace("_", " ")}</th><td class="left"><span class="chip {check.severity}">'
        f'{check.severity}</span></td><td class="left">{_text(check.what)}</td><td class="left">{_text(limit)}</td>'
        f'<td class="left">{_text(check.reason)}</td><td>{volumes}</td></tr>'
    )


def _section(report: VolumeReport) -> str:
    listed = report.listed
    entries = "".join(
        f'<li><span class="chip {found.check.severity}">{found.check.name.replace("_", " ")}</span> '
        f'{_text(found.text)}<div class="thumbs">{_pictures(report, found)}</div></li>'
        for found in report.findings
    )
    voxel = " × ".join(f"{edge:g}" for edge in listed.voxel_size_nm)
    return (
        f'<section class="card" id="{_text(listed.volume_id)}"><h3>{_text(listed.volume_id)}</h3>'
        f'<p class="soft small">{_text(listed.source)}; {" × ".join(map(str, report.measured.shape))} voxels of '
        f'{voxel} nm (z, y, x)</p><ul class="findings">{entries}</ul>{_charts(report)}</section>'
    )


def _pictures(report: VolumeReport, found: Finding) -> str:
    if report.measured.label_only or found.check.name == "unreadable":
        return ""
    try:
        if found.check.name in ("misregistered", "mirrored"):
            return _outlines(report)
        return "".join(_slice_picture(report, found.check.name, z) for z in found.slices[:MOST_PICTURES])
    except ValueError:  # the volume also has a file that cannot be read
        return ""


def _plane(report: VolumeReport, group: str, z: int, step: int) -> npt.NDArray[Any]:
    return np.asarray(open_array(report.listed.path / group / "s0")[z, ::step, ::step].read().result())


def _slice_picture(report: VolumeReport, check: str, z: int) -> str:
    _, height, width = report.measured.shape
    step = max(1, max(height, width) // (2 * THUMB))
    image = _plane(report, ".", z, step)
    shape = shown_shape((height, width), report.listed.voxel_size_nm[1:], THUMB)
    if check == "jump":
        before = gray_picture(_plane(report, ".", z - 1, step), shape, gray_levels(image[np.newaxis]))
        after = gray_picture(image, shape, gray_levels(image[np.newaxis]))
        return _figure(np.stack([before, after, before], axis=2), f"z {z} in green over z {z - 1} in magenta")
    gray = gray_picture(image, shape, (0.0, 255.0))
    if check not in LABEL_CHECKS:
        return _figure(gray, f"z {z}")
    ids = resized(_plane(report, "labels/instances", z, step), shape)
    layer = np.zeros((*shape, 4), np.uint8)
    layer[inner_edge(ids)] = STORED
    if check == "unknown_id":
        layer[(ids > 0) & ~np.isin(ids, report.listed.ids)] = MARKED
    if check == "wrong_size":
        wrong = report.listed.ids[report.measured.counted != report.listed.voxels]
        layer[np.isin(ids, wrong)] = MARKED
    if check == "class_conflict":
        classes = resized(_plane(report, "labels/semantic", z, step), shape)
        order = np.argsort(report.listed.ids)
        known, own = report.listed.ids[order], report.listed.classes[order]
        place = np.minimum(np.searchsorted(known, ids), max(len(known) - 1, 0))
        expected = np.where(known[place] == ids, own[place], 0) if len(known) else np.zeros_like(classes)
        layer[expected != classes] = MARKED
    return _figure(over(gray, layer), f"z {z}; labels outlined")


def _outlines(report: VolumeReport) -> str:
    """Label boundaries as they are stored and as they agree best, around an instance in the middle of the list."""
    listed, labels = report.listed, report.measured.labels
    box = listed.boxes[len(listed.boxes) // 2]
    z = int(box[0] + box[3]) // 2
    sides = []
    for axis in (1, 2):
        middle, size = int(box[axis] + box[axis + 3]) // 2, report.measured.shape[axis]
        low = max(0, min(middle - THUMB // 4, size - THUMB // 2))
        sides.append(slice(low, min(low + THUMB // 2, size)))
    image, ids = (
        np.asarray(open_array(listed.path / group / "s0")[z, sides[0], sides[1]].read().result())
        for group in (".", "labels/instances")
    )
    shape = (2 * image.shape[0], 2 * image.shape[1])
    gray = gray_picture(image, shape, gray_levels(image[np.newaxis]))
    layer = np.zeros((*shape, 4), np.uint8)
    edge = inner_edge(resized(ids, shape))
    layer[edge] = STORED
    said = f"z {z}: boundaries as stored (orange)"
    if labels is not None:
        dy, dx = (round(2 * part) for part in labels.shift)
        layer[np.roll(edge, (dy, dx), (0, 1))] = MOVED
        said += ", and where they agree best (blue)"
    return _figure(gray, f"z {z}") + _figure(over(gray, layer), said)


def _figure(picture: npt.NDArray[np.uint8], caption: str) -> str:
    return (
        f'<figure><img alt="" src="{data_uri(picture, lossy=True)}"><figcaption>{_text(caption)}</figcaption></figure>'
    )


def _charts(report: VolumeReport) -> str:
    """Contrast and class voxels of every slice."""
    from dataset_builder.quality import contrast, means

    measured = report.measured
    if measured.shape[0] < 2 or measured.label_only:
        return ""
    low, high = contrast(measured.gray)
    flagged = sorted({z for found in report.findings for z in found.slices})
    band = [(high, "#9db8cc"), (low, "#9db8cc"), (means(measured.gray), "#0072b2")]
    pixels = measured.shape[1] * measured.shape[2]
    shares = [
        (100 * measured.class_voxels[:, organelle.label_id] / pixels, f"rgb{ORGANELLE_COLOUR[organelle]}")
        for organelle in Organelle
        if measured.class_voxels[:, organelle.label_id].any()
    ]
    names = ", ".join(
        f'<span style="color:rgb{ORGANELLE_COLOUR[organelle]}">■</span> {ORGANELLE_TITLE[organelle]}'
        for organelle in Organelle
        if measured.class_voxels[:, organelle.label_id].any()
    )
    top = max((float(values.max()) for values, _ in shares), default=1.0)
    return (
        '<div class="charts"><figure><figcaption>gray value per slice: mean, 1 and 99 percentile</figcaption>'
        + _lines(band, 255.0, flagged)
        + f"</figure><figure><figcaption>share of the pixels per slice, %: {names or 'no labels'}</figcaption>"
        + _lines(shares, top, flagged)
        + "</figure></div>"
    )


def _lines(series: Sequence[tuple[npt.NDArray[Any], str]], top: float, flagged: Sequence[int]) -> str:
    width, height = CHART
    left, base = 42, height - 18
    count = len(series[0][0]) if series else 1
    step = (width - left - 8) / max(count - 1, 1)
    marks = "".join(
        f'<line class="flag" x1="{left + z * step:.1f}" x2="{left + z * step:.1f}" y1="6" y2="{base}"/>'
        for z in flagged[:200]
    )
    curves = ""
    for values, colour in series:
        points = " ".join(f"{left + z * step:.1f},{base - (base - 8) * value / max(top, 1e-9):.1f}"
                          for z, value in enumerate(values.tolist()))  # fmt: skip
        curves += f'<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{points}"/>'
    axis = (
        f'<line class="axis" x1="{left}" x2="{width - 8}" y1="{base}" y2="{base}"/>'
        f'<text x="{left - 5}" y="14" text-anchor="end">{top:.3g}</text><text x="{left - 5}" y="{base}" '
        f'text-anchor="end">0</text><text x="{left}" y="{height - 4}">z 0</text>'
        f'<text x="{width - 8}" y="{height - 4}" text-anchor="end">z {count - 1}</text>'
    )
    return f'<svg viewBox="0 0 {width} {height}" role="img">{marks}{curves}{axis}</svg>'
