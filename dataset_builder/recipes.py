"""Recipes: how users build the sources that may not be passed on, and how they know that it worked.

A recipe is ``recipes/<source>.json`` for programs and a chapter of ``recipes/README.md`` for people: exact command
lines, versions, settings, options, and a fingerprint of the rows that come out.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dataset_builder.source import load_source
from em_bench_eval.rows import decode_png
from em_bench_eval.schema import record_id

FORMAT = "em-organelle-wild recipe v1"
DECIDING = ("numpy", "scipy", "pillow", "pyarrow", "tensorstore")  # versions that may change what comes out
FINGERPRINTED = (
    "fold",
    "domain",
    "specimen",
    "annotated",
    "annotation_type",
    "pixel_size_nm",
    "voxel_size_nm",
    "objects",
)


@dataclass(frozen=True)
class Recipes:
    """The recipes of a dataset: documents by source, and their files by path in the dataset."""

    documents: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, str]


def make_recipes(folder: Path, names: Sequence[str], stats: Mapping[str, Any]) -> Recipes:
    """Write recipes for some sources of a dataset folder; ``stats`` is its ``stats.json``."""
    if not names:
        return Recipes({}, {})
    prints = row_fingerprints(folder, names)
    documents = {name: _document(name, stats, *prints[name]) for name in names}
    files = {f"recipes/{name}.json": json.dumps(entry, indent=2) + "\n" for name, entry in documents.items()}
    files["recipes/README.md"] = _readme(documents)
    return Recipes(documents, files)


def row_fingerprints(folder: Path, names: Sequence[str]) -> dict[str, tuple[str, int]]:
    """Return source -> (fingerprint, number) of its rows in a dataset folder, in their order.

    Pixels are hashed, not PNG files: another version of the PNG encoder changes nothing.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    digests = {name: hashlib.sha256() for name in names}
    counts = dict.fromkeys(names, 0)
    for path in tqdm(sorted((folder / "data").glob("*/*.parquet")), desc="fingerprints", unit="shard", file=sys.stderr):
        if not set(names) & set(pc.unique(pq.read_table(path, columns=["source"])["source"]).to_pylist()):
            continue
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=16):
                for row in batch.to_pylist():
                    if row["source"] in digests:
                        digests[row["source"]].update(_row_bytes(row))
                        counts[row["source"]] += 1
    return {name: (digests[name].hexdigest()[:16], counts[name]) for name in names}


def _row_bytes(row: Mapping[str, Any]) -> bytes:
    name = record_id(row["volume_id"], row["axis"], row["slice"], row["offset"])
    digest = hashlib.sha256(json.dumps([name, *(row[column] for column in FINGERPRINTED)], sort_keys=True).encode())
    for column in ("image", "instances", "ignore"):
        if row[column] is None:
            digest.update(b"none")
            continue
        pixels = decode_png(row[column])
        digest.update(f"{pixels.shape} {pixels.dtype}".encode())
        digest.update(pixels.tobytes())
    return digest.digest()


def _document(name: str, stats: Mapping[str, Any], fingerprint: str, rows: int) -> dict[str, Any]:
    source = load_source(name)
    options = "".join(f" --option '{name}.{key}={value}'" for key, value in stats["options"].get(name, {}).items())
    settings = stats["settings"]
    rebuilt = f"rebuilt-{name}"
    return {
        "format": FORMAT,
        "source": name,
        "title": source.info.title,
        "licence": source.info.licence,
        "url": source.info.url,
        "raw_data": f"em-bench fetch {name} --raw raw" if source.downloads else f"by hand from {source.info.url}",
        "raw_layout": source.layout,
        "commands": [
            *([f"em-bench fetch {name} --raw raw"] if source.downloads else []),
            f"em-bench build --source {name} --raw raw --splits splits.json --max-side {settings['max_side']} "
            f"--min-size-nm3 {settings['min_size_nm3']}{options} --out {rebuilt}",
            f"em-bench publish {rebuilt} --to any/name --dry-run",
        ],
        "settings": dict(settings),
        "options": dict(stats["options"].get(name, {})),
        "policy": stats["policy"],
        "rows": rows,
        "rows_fingerprint": fingerprint,
        "made_with": {"em-organelle-wild": stats["version"], "python": platform.python_version(), **_versions()},
    }


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in DECIDING}


def _readme(documents: Mapping[str, Mapping[str, Any]]) -> str:
    chapters = []
    for name, entry in documents.items():
        commands = "\n".join(entry["commands"])
        layout = f"\nExpected below `raw/`:\n\n```\n{entry['raw_layout']}\n```\n" if entry["raw_layout"] else ""
        chapters.append(
            f"## {name}: {entry['title']}\n\nLicence: {entry['licence']}. Raw data: {entry['raw_data']}\n{layout}\n"
            f"```shell\n{commands}\n```\n\nThe last command uploads nothing: it prints the fingerprint of the rows. "
            f"{entry['rows']} rows with the fingerprint `{entry['rows_fingerprint']}` are the same, pixel by pixel, as "
            "those that this dataset was made from.\n"
        )
    first = next(iter(documents.values()))
    versions = ", ".join(f"{name} {version}" for name, version in first["made_with"].items())
    return (
        "# Sources that you build yourself\n\nTheir licences do not let anybody pass them on, so nothing of them is "
        "here: no pixel, no label. Run the commands in this dataset's folder: `splits.json` says which slices belong "
        f"to which fold.\n\nMade with {versions}.\n\n" + "\n".join(chapters)
    )


def card_section(recipes: Recipes) -> str:
    """Return what the card says about recipes: empty if there are none."""
    if not recipes.documents:
        return ""
    rows = "\n".join(
        f"| {name} | {entry['title']} | {entry['licence']} | {entry['rows']} | `{entry['rows_fingerprint']}` |"
        for name, entry in recipes.documents.items()
    )
    return (
        "\n## Sources that you build yourself\n\nThese belong to the benchmark, but may not be passed on; nothing of "
        "them is in this repository, and the counts above are without them. `recipes/README.md` says how to build the "
        "same rows from the original, and how to check that they are the same.\n\n"
        f"| source | data set | licence | rows | fingerprint |\n| --- | --- | --- | --- | --- |\n{rows}\n"
    )
