"""The texts of a dataset folder: card, citations, licences, evaluation tasks.

The card's YAML ``configs`` decides what ``load_dataset`` returns: without it the folders would be mixed into one
dataset. The tests load through it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template

from dataset_builder.splits import PARTS
from dataset_builder.stats import Stats
from em_bench_eval.schema import FOLDS, ORGANELLES

TEMPLATE = Path(__file__).parent / "card.md"
DESCRIPTION = "Instance segmentation of five organelles in electron microscopy, homogeneous and in the wild."


def texts(stats: Stats, fingerprint: str) -> dict[str, str]:
    """Return file name -> content of every text file of a dataset folder except ``stats.json``.

    ``fingerprint`` identifies the content of the parquet files, see ``configs``.
    """
    return {
        "README.md": _readme(stats, fingerprint),
        "CITATION.bib": "\n".join(info.citation for info in stats.sources.values()) + "\n",
        "LICENSES.md": _licences(stats),
        "eval.yaml": _eval_yaml(stats),
    }


def configs(stats: Stats, fingerprint: str) -> list[dict[str, object]]:
    """Return the card's ``configs``: one entry per configuration, only with splits that have rows.

    Nothing is stored twice: ``wild`` is the files of both parts, ``homogeneous`` those of one. ``description`` carries
    the fingerprint because ``datasets`` names its cache of a local folder after the folder's name and these entries,
    not after the content: without it, a rebuilt dataset would load as the earlier one.
    """
    homogeneous = stats.folds_in("homogeneous")
    have = [part for part in PARTS if any(stats.folds_in(part).values())]
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
    found.append({"config_name": "volumes", "data_files": [{"split": "volumes", "path": ["volumes.parquet"]}]})
    return [{**config, "description": f"content {fingerprint}"} for config in found]


def _readme(stats: Stats, fingerprint: str) -> str:
    import yaml

    header = {
        "pretty_name": "EM organelles in the wild",
        "license": "other",
        "license_name": "per-source",
        "license_link": "LICENSES.md",
        "task_categories": ["image-segmentation"],
        "task_ids": ["instance-segmentation"],
        "tags": ["biology", "electron-microscopy", "instance-segmentation", "organelles"],
        "annotations_creators": ["expert-generated", "machine-generated"],
        "configs": configs(stats, fingerprint),
    }
    template = Template(TEMPLATE.read_text())
    body = template.substitute(
        composition=_composition(stats),
        folds=_folds(stats),
        sources=_sources(stats),
        organelles=", ".join(ORGANELLES),
        gap_nm=f"{stats.policy.gap_nm:g}",
    )
    return f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---\n\n{body}"


def _composition(stats: Stats) -> str:
    counted = ((source, organelle, n) for (source, organelle), n in stats.instances.items())
    table: dict[str, dict[str, int]] = {}
    for source, organelle, n in counted:
        table.setdefault(source, {})[organelle] = n
    rows = []
    for source, info in stats.sources.items():
        images = sum(n for (_, _, _, name), n in stats.images.items() if name == source)
        volumes = sum(1 for name in stats.volumes.values() if name == source)
        annotated = {str(organelle) for organelle in info.annotated}
        cells = [str(table.get(source, {}).get(name, 0)) if name in annotated else "–" for name in ORGANELLES]
        rows.append([source, info.modality, str(volumes), str(images), *cells])
    return _table(["source", "modality", "volumes", "images", *ORGANELLES], rows)


def _folds(stats: Stats) -> str:
    rows = [
        [part, fold, domain, source, str(images)]
        for (part, fold, domain, source), images in sorted(stats.images.items())
    ]
    return _table(["part", "fold", "domain", "source", "images"], rows)


def _sources(stats: Stats) -> str:
    links = {name: f"[{info.title}]({info.url})" if info.url else info.title for name, info in stats.sources.items()}
    return "\n".join(f"* **{name}**: {links[name]}. {info.notes}" for name, info in stats.sources.items())


def _licences(stats: Stats) -> str:
    rows = [
        [name, info.title, info.licence, "yes" if info.redistributable else "no", info.url or "generated"]
        for name, info in stats.sources.items()
    ]
    return (
        "# Licences\n\nEvery row carries the licence and the citation of its source in the columns `licence` and "
        "`citation`.\n\n" + _table(["source", "data set", "licence", "may be redistributed", "from"], rows) + "\n"
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
