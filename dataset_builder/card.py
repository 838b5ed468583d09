"""The texts of a dataset folder: card, citations, licences, evaluation tasks.

The card's YAML ``configs`` decides what ``load_dataset`` returns: without it the folders would be mixed into one
dataset. The tests load through it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

from dataset_builder.citation import bibliography
from dataset_builder.licences import FILE as SOURCES_FILE
from dataset_builder.licences import annotations_text, licences_md, sources_json
from dataset_builder.splits import PARTS
from dataset_builder.stats import Stats
from em_bench_eval.schema import FOLDS, ORGANELLES, Organelle, SourceInfo

if TYPE_CHECKING:
    from dataset_builder.figures import Rendered
    from dataset_builder.figures_summary import Sizes, Summary

TEMPLATE = Path(__file__).parent / "card.md"
DESCRIPTION = "Instance segmentation of five organelles in electron microscopy, homogeneous and in the wild."
SIZE_CATEGORIES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
MADE_BY_MACHINE = ("model", "synthetic", "lpa")


def texts(stats: Stats, fingerprint: str, rendered: Rendered | None = None) -> dict[str, str]:
    """Return file name -> content of every text file of a dataset folder except ``stats.json`` and ``splits.json``.

    Args:
        stats: what is in the dataset.
        fingerprint: identifies the content of the parquet files, see ``configs``.
        rendered: what ``figures.render`` returned; without it the card has no figures and no table of sizes.
    """
    return {
        "README.md": _readme(stats, fingerprint, rendered),
        "CITATION.bib": bibliography(info.citation for info in stats.sources.values()),
        "LICENSES.md": licences_md(stats.sources),
        SOURCES_FILE: sources_json(stats.sources),
        "eval.yaml": _eval_yaml(stats),
    }


def configs(stats: Stats, fingerprint: str) -> list[dict[str, object]]:
    """Return the card's ``configs``: one entry per configuration, only with splits that have rows.

    Nothing is stored twice: ``wild`` is the files of both parts, ``homogeneous`` those of one. ``description`` carries
    the fingerprint because ``datasets`` names its cache of a local folder after the folder's name and these entries,
    not after the content: without it, a rebuilt dataset would load as the earlier one.
    """
    listing: dict[str, object] = {"data_files": [{"split": "volumes", "path": ["volumes.parquet"]}]}
    homogeneous = stats.folds_in("homogeneous")
    have = [part for part in PARTS if any(stats.folds_in(part).values())]
    if not have:  # labels alone
        return [{"config_name": "volumes", "default": True, **listing, "description": f"content {fingerprint}"}]
    default = [{"split": "wild", "path": [f"data/{part}/*.parquet" for part in have]}]
    if "homogeneous" in have:
        default.insert(0, {"split": "homogeneous", "path": ["data/homogeneous/*.parquet"]})
    found: list[dict[str, object]] = [{"config_name": "default", "default": True, "data_files": default}]
    if any(homogeneous.values()):
        files = [{"split": fold, "path": [f"data/homogeneous/{fold}-*.parquet"]} for fold in FOLDS if homogeneous[fold]]
        found.append({"config_name": "homogeneous", "data_files": files})
    wild = []
    for fold in FOLDS:
        parts = [part for part in have if stats.folds_in(part)[fold]]
        if parts:
            wild.append({"split": fold, "path": [f"data/{part}/{fold}-*.parquet" for part in parts]})
    found.append({"config_name": "wild", "data_files": wild})
    found.append({"config_name": "volumes", **listing})
    return [{**config, "description": f"content {fingerprint}"} for config in found]


def _header(stats: Stats, fingerprint: str) -> dict[str, object]:
    images = sum(stats.images.values())
    kinds = {kind for info in stats.sources.values() for kind in info.annotated.values()}
    by_machine = any(word in kind for kind in kinds for word in MADE_BY_MACHINE)
    by_hand = any(kind.startswith(("manual", "refined")) for kind in kinds)
    return {
        "pretty_name": "EM organelles in the wild",
        "license": "other",
        "license_name": "per-source",
        "license_link": "LICENSES.md",
        "task_categories": ["image-segmentation"],
        "task_ids": ["instance-segmentation"],
        "tags": ["biology", "electron-microscopy", "instance-segmentation", "organelles"],
        "annotations_creators": ["expert-generated"] * by_hand + ["machine-generated"] * by_machine
        or ["no-annotation"],
        "size_categories": [next((name for limit, name in SIZE_CATEGORIES if images < limit), "n>1M")],
        "configs": configs(stats, fingerprint),
    }


def _readme(stats: Stats, fingerprint: str, rendered: Rendered | None) -> str:
    import yaml

    summary = None if rendered is None else rendered.summary
    body = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        images=f"{sum(stats.images.values()):,}",
        volumes=f"{len(stats.volumes):,}",
        instances=f"{sum(stats.instances.values()):,}",
        count_of_sources=_counted(len(stats.sources), "source"),
        composition=_composition(stats),
        composition_figure=_figures(rendered, "composition"),
        overlays_figure=_figures(rendered, "overlays"),
        meshes_figure=_figures(rendered, "meshes"),
        sizes_figure=_figures(rendered, "sizes"),
        sizes=_sizes(summary),
        folds=_folds(stats),
        sources=_sources(stats),
        example_source=next(iter(stats.sources), "phantom"),
        rows_by_fold=_rows_by_fold(stats, summary),
        notes=_notes(stats),
        organelles=", ".join(ORGANELLES),
        gap_nm=f"{stats.policy.gap_nm:g}",
        limitations=_limitations(stats),
        recipe=_closed(stats),
    )
    return f"---\n{yaml.safe_dump(_header(stats, fingerprint), sort_keys=False, allow_unicode=True)}---\n\n{body}"


def _figures(rendered: Rendered | None, name: str) -> str:
    shown = [figure for figure in (rendered.figures if rendered else ()) if Path(figure.path).name.startswith(name)]
    pictures = "\n\n".join(f"![{figure.caption}]({figure.path})" for figure in shown)
    return f"{pictures}\n\n*{shown[0].caption}*\n" if shown else ""


def _counted(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _composition(stats: Stats) -> str:
    rows = []
    for source, info in stats.sources.items():
        images = sum(n for (_, _, _, name), n in stats.images.items() if name == source)
        volumes = sum(1 for name in stats.volumes.values() if name == source)
        counts = [
            f"{stats.instances[source, organelle.value]:,}" if organelle in info.annotated else "–"
            for organelle in Organelle
        ]
        rows.append([source, info.modality, f"{volumes:,}", f"{images:,}", *counts])
    totals = [f"{sum(n for (_, own), n in stats.instances.items() if own == name):,}" for name in ORGANELLES]
    images = sum(stats.images.values())
    rows.append(["**all**", "", f"{len(stats.volumes):,}", f"{images:,}", *totals])
    return _table(["source", "modality", "volumes", "images", *ORGANELLES], rows)


def _sources(stats: Stats) -> str:
    rows = [
        [
            f"[{name}]({info.url})" if info.url else name,
            info.licence,
            "yes" if info.redistributable else "no",
            annotations_text(info),
            _voxel(info),
            _cited(info),
        ]
        for name, info in stats.sources.items()
    ]
    header = ["source", "licence", "redistributable", "annotation", "voxel size (z, y, x), nm", "cite"]
    return _table(header, rows)


def _voxel(info: SourceInfo) -> str:
    return "differs" if info.voxel_size is None else " × ".join(f"{edge:g}" for edge in info.voxel_size)


def _cited(info: SourceInfo) -> str:
    """Keys in ``CITATION.bib``, with their DOI where they have one."""
    from dataset_builder.citation import merged

    return ", ".join(
        f"[{entry.key}](https://doi.org/{entry.fields['doi']})" if "doi" in entry.fields else entry.key
        for entry in merged([info.citation])
    )


def _rows_by_fold(stats: Stats, summary: Summary | None) -> str:
    """Images of every source in every fold and domain, and the objects in them where they were counted."""
    columns = (("train", "in"), ("validation", "in"), ("test", "in"), ("test", "out"))
    rows = []
    for source in stats.sources:
        cells = []
        for fold, domain in columns:
            images = sum(
                n for (_, own, where, name), n in stats.images.items() if (own, where, name) == (fold, domain, source)
            )
            cells.append(f"{images:,}" if images else "–")
        if summary is not None:
            objects = [sum(summary.objects[source, fold, name] for name in ORGANELLES) for fold in FOLDS]
            cells.append(" / ".join(f"{n:,}" for n in objects))
        rows.append([source, *cells])
    header = ["images", "train", "validation", "test, in-domain", "test, out of domain"]
    return _table([*header, "instances in images (train / validation / test)"][: len(rows[0]) if rows else 5], rows)


def _folds(stats: Stats) -> str:
    table: dict[tuple[str, str, str], int] = {}
    for (part, fold, domain, _), images in stats.images.items():
        table[part, fold, domain] = table.get((part, fold, domain), 0) + images
    rows = [
        [part, fold, domain, f"{table[part, fold, domain]:,}"]
        for part in PARTS
        for fold in FOLDS
        for domain in ("in", "out")
        if (part, fold, domain) in table
    ]
    return _table(["part", "fold", "domain", "images"], rows)


def _sizes(summary: Summary | None) -> str:
    """Sizes of instances in physical units, and of how many they are known."""
    if summary is None:
        return ""
    rows = []
    for organelle in summary.organelles():
        volumes, areas = summary.volume_nm3[organelle], summary.area_nm2[organelle]
        rows.append(
            [
                organelle.value,
                f"{volumes.count:,}",
                f"{int(volumes.whole.sum()):,}",
                _quantiles(volumes, 3),
                f"{areas.count:,}",
                _quantiles(areas, 2),
            ]
        )
    header = [
        "organelle",
        "instances",
        "whole",
        "volume, µm³: median (5 to 95 %)",
        "in images",
        "area, µm²: median (5 to 95 %)",
    ]
    return f"{_table(header, rows)}\n\nSizes are those of instances that no border cuts, to 2 %.\n"


def _quantiles(sizes: Sizes, power: int) -> str:
    found = [sizes.quantile(share) for share in (0.5, 0.05, 0.95)]
    median, low, high = (None if size is None else _two_digits(size / 1000**power) for size in found)
    return "–" if median is None else f"{median} ({low} to {high})"


def _two_digits(number: float) -> str:
    import numpy as np

    return str(np.format_float_positional(float(f"{number:.2g}"), trim="-"))


def _notes(stats: Stats) -> str:
    return "\n".join(f"* **{name}**: {info.title}. {info.notes}".rstrip() for name, info in stats.sources.items())


def _limitations(stats: Stats) -> str:
    """Say what this very dataset cannot answer."""
    sources = stats.sources
    entries = []
    for organelle in Organelle:
        having = [name for name, info in sources.items() if organelle in info.annotated]
        if not having:
            entries.append(f"`{organelle}` is annotated nowhere: nothing here can train or test it.")
        elif len(having) < len(sources):
            entries.append(
                f"`{organelle}` is annotated in {', '.join(having)} only; elsewhere it is unknown, not absent."
            )
    derived = _with_kind(stats, "lpa")
    if derived:
        entries.append(
            f"Instance ids of {derived} are derived from semantic labels by 3D label propagation: organelles that "
            "touch count as one instance, and one that a damaged slice cuts counts as two. The paper estimates that "
            "73 % of the instances of BetaSeg were right before experts refined them; these are the ids before that."
        )
    for kind, text in (
        ("model", "are made by models and were not checked voxel by voxel: they are no ground truth"),
        ("refined", "were made by models and then corrected by experts: they share the models' bias"),
        ("synthetic", "are simulated, images and labels: scores on them do not carry over to tissue"),
    ):
        if where := _with_kind(stats, kind):
            entries.append(f"Labels of {where} {text}.")
    if not any(domain == "out" for _, _, domain, _ in stats.images):
        entries.append("No specimen is held out: every test row comes from a specimen that also trains.")
    largest = max(sources, key=lambda name: _images_of(stats, name), default="")
    share = _images_of(stats, largest) / max(sum(stats.images.values()), 1)
    if len(sources) > 1 and share > 0.5:
        entries.append(f"{share:.0%} of the images come from {largest}: average over sources, not over images.")
    entries.append("Images that follow each other in a stack are nearly the same: their number is no sample size.")
    return "\n".join(f"* {entry}" for entry in entries)


def _images_of(stats: Stats, source: str) -> int:
    return sum(n for (_, _, _, name), n in stats.images.items() if name == source)


def _with_kind(stats: Stats, word: str) -> str:
    """Name the sources with labels of a kind, and the organelles unless it is all of them."""
    named = []
    for name, info in stats.sources.items():
        organelles = [str(organelle) for organelle, kind in info.annotated.items() if word in kind]
        if organelles:
            named.append(name + (f" ({', '.join(organelles)})" if len(organelles) < len(info.annotated) else ""))
    return ", ".join(named)


def _closed(stats: Stats) -> str:
    closed = [name for name, info in stats.sources.items() if not info.redistributable]
    if not closed:
        return ""
    return (
        f"{', '.join(closed)} may not be redistributed: a published copy of this dataset holds the recipe instead of "
        "their pixels, and `LICENSES.md` says how to build them."
    )


def _eval_yaml(stats: Stats) -> str:
    import yaml

    parts: Mapping[str, dict[str, int]] = {"homogeneous": stats.folds_in("homogeneous"), "wild": stats.folds_in()}
    tasks = [
        {"id": f"{config}_{organelle}", "config": config, "split": "test"}
        for config, folds in parts.items()
        if folds["test"]
        for organelle in (*ORGANELLES, "macro")
    ]
    content = {
        "name": "em-organelle-wild",
        "description": DESCRIPTION,
        "evaluation_framework": "em_bench_eval",
        "tasks": tasks,
    }
    return str(yaml.safe_dump(content, sort_keys=False))


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
