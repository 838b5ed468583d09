"""The preview page of an instance volume: one HTML file that needs nothing else.

Slices with coloured instances, totals, sizes per organelle (paper, Fig. 3), shapes of a small, a middle and a large
instance (Fig. 4) and, with a certificate, the first entries of the queue. ``preview.html`` is the template; every text
that comes from outside goes through ``text``.
"""

from __future__ import annotations

import os
import string
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from em_bench_eval.errors import InputError
from em_bench_eval.schema import Array3D, Organelle
from lpa.audit import METHOD, strata_rows
from lpa.certificate import KIND_NAMES, Certificate, QueueEntry
from lpa.extents import as_instances, extents, organelles_of
from lpa.figures import TITLES, Scene, close_up, histogram, planes, shapes, slice_figure, text
from lpa.pictures import gray_levels
from lpa.signs import THRESHOLDS, volume_text
from lpa.split import three_lengths
from lpa.triage import TO_CORRECT

QUEUE_LENGTH = 24
LIMITS: Mapping[str, tuple[str, str]] = {  # field of Thresholds -> what the page calls it, format
    "min_volume_nm3": ("Crumb: volume below", "{:,.0f} nm³"),
    "max_neck_ratio": ("Merge: neck / thinner body at most", "{:.0%}"),
    "min_persistence_nm": ("Merge: half the difference of these widths at least", "{:g} nm"),
    "max_sigmas": ("Merge: robust standard deviations of log volume above", "{:g}"),
    "min_solidity": ("Merge: share of the convex hull below", "{:.0%}"),
    "min_contact_ratio": ("Split: radius of the contact / of the smaller instance at least", "{:g}"),
    "max_gap_nm": ("Split: gap to a larger neighbour at most", "{:g} nm"),
    "min_alignment": ("Split: in line with it, cosine at least", "{:g}"),
}


def write_preview(
    path: str | os.PathLike[str],
    image: Array3D | None,
    instances: npt.ArrayLike,
    organelle_of: Mapping[int, Organelle | str],
    voxel_size: Iterable[float],
    certificate: Certificate | None = None,
    *,
    title: str = "Instances",
    queue_length: int = QUEUE_LENGTH,
) -> None:
    """Write the page; the file gets its name when it is complete.

    Args:
        path: the HTML file; replaced if it exists.
        image: ``(z, y, x)`` gray values, read slice by slice; ``None``: instances are shown over gray.
        instances: ``(z, y, x)`` integers, 0 = background.
        organelle_of: organelle of every id.
        voxel_size: ``(z, y, x)`` in nm.
        certificate: of these instances; without one there is no queue.
        title: heading of the page.
        queue_length: entries of the queue that are shown.

    Raises:
        InputError: unusable instances, an image of another shape, a certificate of other instances.
    """
    volume, voxel_nm = as_instances(instances), three_lengths(voxel_size)
    found = extents(volume)
    if image is not None and tuple(image.shape) != volume.shape:
        raise InputError("image and instances differ in shape", found=tuple(image.shape), expected=volume.shape)
    if certificate is not None and not np.array_equal(certificate.table["id"], found.ids):
        raise InputError(
            "the certificate belongs to other instances",
            found=f"{len(certificate.table['id'])} ids",
            expected=f"the {len(found.ids)} ids of this volume",
        )
    levels = gray_levels(image) if image is not None else (0.0, 255.0)
    organelle = organelles_of(found.ids, organelle_of)
    limits = THRESHOLDS if certificate is None else certificate.thresholds
    scene = Scene(image, levels, volume, found, organelle, voxel_nm, limits)
    page = _page(scene, certificate, title, queue_length)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _page(scene: Scene, certificate: Certificate | None, title: str, queue_length: int) -> str:
    template = string.Template((Path(__file__).parent / "preview.html").read_text(encoding="utf-8"))
    present, voxel_nm3 = scene.present(), float(np.prod(scene.voxel_nm))
    over_what = "" if scene.image is not None else " There is no image: they are drawn over gray."
    return template.substitute(
        title=text(title),
        facts=_facts(scene),
        verdict=_verdict(certificate),
        totals_table=_totals(scene, certificate),
        totals_note="Median volumes are those of whole instances, not cut by the border."
        + (" Flags are signs, not findings; an instance can have several." if certificate else ""),
        slices_note=f"Every instance has one colour on the whole page.{over_what}",
        toggle_rules="".join(
            f"body:has(#show-{name}:not(:checked)) img[data-organelle={name}] {{ display: none; }}\n"
            for name in present
        ),
        toggles="".join(
            f'<label><input type="checkbox" id="show-{organelle}" checked>{TITLES[organelle]}</label>'
            for organelle in present
        ),
        slices="".join(slice_figure(scene, plane) for plane in planes(scene)),
        queue_section=_queue(scene, certificate, queue_length),
        voxel_volume=f"{voxel_nm3:,.0f} nm³",
        histograms="".join(histogram(scene, organelle) for organelle in present),
        meshes="".join(shapes(scene, organelle) for organelle in present),
        how_section=_how(certificate),
    )


def _facts(scene: Scene) -> str:
    extent = (size * edge / 1000 for size, edge in zip(scene.instances.shape, scene.voxel_nm, strict=True))
    pairs = {
        "Voxels (z, y, x)": " × ".join(map(str, scene.instances.shape)),
        "Voxel size": " × ".join(f"{edge:g}" for edge in scene.voxel_nm) + " nm",
        "Extent": " × ".join(f"{length:.3g}" for length in extent) + " µm",
        "Instances": f"{len(scene.found.ids):,}",
        "Labelled": f"{scene.found.voxels.sum() / max(scene.instances.size, 1):.1%} of the voxels",
    }
    return "".join(f"<div><dt>{key}</dt><dd>{text(value)}</dd></div>" for key, value in pairs.items())


def _verdict(certificate: Certificate | None) -> str:
    if certificate is None:
        return ""
    known = ' known"' if "all" in certificate.error_rates else '"'
    return f'<p class="verdict{known}>{text(certificate.summary())}</p>'


def _totals(scene: Scene, certificate: Certificate | None) -> str:
    heads = ["Organelle", "Instances", "Volume", "Share of the volume", "Median volume", "Cut by the border"]
    heads += [KIND_NAMES[kind].capitalize() for kind in TO_CORRECT] + ["Error rate"] if certificate else []
    body = ""
    for organelle in (*scene.present(), None):
        rows = np.arange(len(scene.found.ids)) if organelle is None else scene.rows(organelle)
        volumes, cut = scene.volume_nm3[rows], scene.is_cut[rows]
        cells = [f"{len(rows):,}", volume_text(float(volumes.sum()))]
        cells.append(f"{scene.found.voxels[rows].sum() / max(scene.instances.size, 1):.2%}")
        whole = volumes[~cut]
        cells.append(volume_text(float(np.median(whole))) if organelle is not None and len(whole) else "–")
        cells.append(f"{cut.sum():,}")
        if certificate:
            cells += [f"{len(certificate.flagged(organelle, kind)):,}" for kind in TO_CORRECT]
            rate = certificate.error_rates.get("all" if organelle is None else organelle.value)
            cells.append(f"{rate.rate:.1%} ({rate.low:.1%} to {rate.high:.1%})" if rate else "not known")
        name = "All" if organelle is None else TITLES[organelle]
        body += f'<tr{"" if organelle else " class=all"}><th scope="row">{name}</th>'
        body += "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    return _table(heads, body)


def _queue(scene: Scene, certificate: Certificate | None, length: int) -> str:
    if certificate is None:
        return ""
    entries = certificate.queue[: max(0, length)]
    bar = tqdm(entries, desc="close-ups", unit="entry", disable=None if len(entries) >= 8 else True)
    cards = "".join(_entry(scene, entry) for entry in bar)
    shown = f"The first {len(entries)} of {len(certificate.queue):,}" if entries else "Nothing is flagged"
    return (
        f"<h2>Queue for the expert</h2><p>{shown}, most valuable correction first: risk × the volume that a correction "
        "would move / the volume of the organelle. The risk puts entries in order and is no probability. Flagged "
        "instance with a white outline, neighbours that it is about in full colour, all others faint. The whole list "
        f'is <code>queue.csv</code>.</p><div class="queue">{cards}</div>'
    )


def _entry(scene: Scene, entry: QueueEntry) -> str:
    flag = entry.flag
    row = int(np.searchsorted(scene.found.ids, flag.instance_id))
    reasons = "".join(f"<li>{text(reason.text)}</li>" for reason in flag.reasons)
    at = ", ".join(map(str, flag.focus))
    picture, where = close_up(scene, row, flag)
    return (
        f'<figure class="entry card"><div>{picture}<figcaption>{where}</figcaption></div>'
        f'<div><span class="rank">{entry.rank}.</span> <span class="chip {flag.kind}">{flag.kind}</span> '
        f"<h3>{text(flag.organelle)} {flag.instance_id}</h3><ul>{reasons}</ul>"
        f'<p class="soft">{volume_text(float(scene.volume_nm3[row]))}; risk {flag.risk:.2f}, value {entry.value:.2g}'
        f"<br>look at (z, y, x) = ({at})</p></div></figure>"
    )


def _how(certificate: Certificate | None) -> str:
    """Limits and audit, for whoever wants to know what the flags mean."""
    if certificate is None:
        return ""
    shown = [organelle for organelle in Organelle if organelle.value in set(certificate.table["organelle"])]
    rows = ""
    for field, (name, form) in LIMITS.items():
        values = [getattr(certificate.thresholds[organelle], field) for organelle in shown]
        cells = "".join(f"<td>{'not used' if value is None else form.format(value)}</td>" for value in values)
        rows += f'<tr><th scope="row">{name}</th>{cells}</tr>'
    limits = _table(["Limit", *(TITLES[organelle] for organelle in shown)], rows)
    is_wrong = {id_: judgement.verdict != "ok" for id_, judgement in certificate.judgements.items()}
    strata = "".join(
        f'<tr><th scope="row">{TITLES[Organelle(str(row["organelle"]))]}, {row["stratum"]}</th>'
        + "".join(
            f"<td>{'–' if row[key] is None else row[key]}</td>" for key in ("instances", "drawn", "judged", "wrong")
        )
        + "</tr>"
        for row in strata_rows(certificate.sample, is_wrong)
    )
    audit = _table(["Stratum", "Instances", "Drawn", "Judged", "Wrong"], strata)
    return (
        f'<h2>How this was judged</h2><div class="card"><details><summary>Limits of the flags</summary>'
        f'<div class="scroll">{limits}</div></details></div><div class="card"><details><summary>Audit sample</summary>'
        f'<p class="small">Drawn with seed {certificate.seed}; estimate: {METHOD}.</p><div class="scroll">{audit}</div>'
        "</details></div>"
    )


def _table(heads: Iterable[str], body: str) -> str:
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
