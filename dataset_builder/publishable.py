"""The part of a dataset folder that may be passed on, as a dataset folder of its own.

Rows, volumes, instances and pictures of withheld sources are left out, and counts, card, configurations and citations
are made again, so that ``load_dataset`` and ``em-bench`` read the result like any other dataset. Only files that
``em-bench build`` writes are taken over: what else lies in the folder stays at home.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dataset_builder import card, private_labels
from dataset_builder.citation import bibliography
from dataset_builder.licences import licences_md, read_sources, redistributable, sources_json
from dataset_builder.recipes import card_section, make_recipes
from dataset_builder.shards import ROWS_PER_GROUP, write_parquet
from dataset_builder.source import load_source, source_names
from dataset_builder.split_file import read_split_file
from dataset_builder.stats import FORMAT, Stats
from em_bench_eval.errors import InputError, unknown_name
from em_bench_eval.schema import FOLDS, Organelle, SourceInfo, VoxelSize
from em_bench_eval.whole_file import sha256_of

TEXTS = ("README.md", "CITATION.bib", "LICENSES.md", "sources.json", "eval.yaml", "splits.json", "stats.json")
TABLES = ("volumes.parquet", "instances.parquet")
NO_LICENCE = ("", "none", "none stated", "private", "proprietary")


@dataclass(frozen=True)
class Verdict:
    """Whether the pixels and labels of one source may be uploaded, and why not."""

    source: str
    licence: str
    rows: int
    volumes: int
    as_pixels: bool
    reason: str = ""
    dropped: bool = False  # on request: not even a recipe


def verdicts(folder: Path, without: Collection[str] = ()) -> list[Verdict]:
    """Judge every source of a dataset folder by all that is known of it; the strictest word counts.

    Args:
        folder: a folder that ``em-bench build`` wrote.
        without: sources to drop although they could be published.

    Raises:
        InputError: it is not clear: the folder does not describe a source, contradicts itself or the installed source;
            a source may not be passed on and nobody else could build it; ``without`` names an unknown source.
    """
    stats = read_stats(folder)
    described = read_sources(folder)
    allowed = redistributable(folder)
    for name in without:
        if name not in allowed:
            raise unknown_name("source in --without", name, allowed)
    licences = _licences(folder)
    found = []
    for name, may in allowed.items():
        rows = sum(entry["images"] for entry in stats["images_by"] if entry["source"] == name)
        volumes = sum(1 for source, _ in licences.values() if source == name)
        licence = described[name]["licence"] if name in described else "?"
        common = (name, licence, rows, volumes)
        if name in without:
            found.append(Verdict(*common, False, "left out by --without", dropped=True))
            continue
        _check_clear(folder, name, described, {text for source, text in licences.values() if source == name})
        ours = load_source(name).info if name in source_names() else None
        reason = ""
        if not may:
            reason = "may not be redistributed"
        elif licence.lower() in NO_LICENCE:
            reason = "no licence allows to redistribute it"
        elif ours is not None and not ours.redistributable:
            reason = "may not be redistributed, says the installed em-bench"
        if reason and ours is None:
            raise InputError(
                f"source {name} {reason}, and nobody else could rebuild it",
                found=f"a private source with the licence {licence!r}",
                expected="a source that may be redistributed, or one of em-bench sources",
                remedy=f"leave it out with --without {name}; or name a licence and say redistributable: true in its "
                "spec, if that is so, and build again",
            )
        found.append(Verdict(*common, not reason, reason))
    return found


def _licences(folder: Path) -> dict[str, tuple[str, str]]:
    """Return volume id -> (source, licence) of all volumes."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "volumes.parquet", columns=["volume_id", "source", "licence"]).to_pydict()
    return dict(zip(table["volume_id"], zip(table["source"], table["licence"], strict=True), strict=True))


def _check_clear(folder: Path, name: str, described: Mapping[str, Mapping[str, Any]], stated: set[str]) -> None:
    if name not in described or stated - {described[name]["licence"]}:
        known = (
            f"sources.json: {described[name]['licence']!r}" if name in described else "sources.json does not name it"
        )
        raise InputError(
            f"it is not clear what the licence of source {name} in {folder} is",
            found=f"{known}; volumes.parquet: {', '.join(map(repr, sorted(stated))) or 'no volume'}",
            expected="one licence, the same everywhere",
            remedy=f"build the dataset again, or leave the source out with --without {name}",
        )


def read_stats(folder: Path) -> dict[str, Any]:
    """Read ``stats.json``; raises ``InputError`` if the folder is no dataset that this version can publish."""
    try:
        stats: dict[str, Any] = json.loads((folder / "stats.json").read_text(encoding="utf-8"))
        if stats["format"] != FORMAT:
            raise ValueError(f"format {stats['format']!r}")
        _ = stats["version"], stats["options"], stats["settings"], stats["images_by"], stats["instances_by"]
        missing = [name for name in (*TEXTS, *TABLES) if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"no {', '.join(missing)}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder} is not a dataset folder that can be published",
            found=f"no {error}" if isinstance(error, KeyError) else str(error),
            expected=f"a folder that em-bench build wrote, {FORMAT!r}",
            remedy="name such a folder, or build it again with this version",
        ) from error
    return stats


def known_files(folder: Path, volume_ids: Iterable[str]) -> dict[str, Path]:
    """Return path in the dataset -> file, of all that ``em-bench build`` writes and is no volume of another dataset."""
    patterns = (*TEXTS, *TABLES, "data/*/*.parquet", "figures/*.png", "figures/*.jpg")
    found = [path for pattern in (*patterns, "recipes/*.json", "recipes/*.md") for path in folder.glob(pattern)]
    for name in volume_ids:
        for parent, _, names in os.walk(folder / "volumes" / f"{name}.zarr"):
            found += [Path(parent) / file for file in names]
    files = {path.relative_to(folder).as_posix(): path for path in found if path.is_file()}
    return {name: files[name] for name in sorted(files)}


def all_volumes(folder: Path) -> list[str]:
    """Return the ids of all volumes of a dataset folder."""
    return list(_licences(folder))


def write_publishable(folder: Path, out: Path, judged: Sequence[Verdict], private: Collection[str] = ()) -> None:
    """Write the part of ``folder`` that ``judged`` lets pass into the new folder ``out``. Deterministic.

    Unchanged files are hard links where the file system has them. ``private`` names folds whose labels are left out.

    Raises:
        InputError: nothing would remain.
    """
    kept = _kept(folder, judged)
    volumes = {name: source for name, (source, _) in _licences(folder).items() if source in kept}
    _write_tables(folder, out, kept, volumes, FOLDS)
    if private:
        private_labels.hide(out, private, volumes)
    _write_texts(folder, out, judged, volumes, private)


def write_labels(folder: Path, out: Path, judged: Sequence[Verdict], private: Collection[str]) -> None:
    """Write the rows and volumes whose labels are ``private``, with labels, as a dataset folder of its own.

    Raises:
        InputError: there are no such rows.
    """
    kept = _kept(folder, judged)
    hidden = private_labels.public_slabs(json.loads((folder / "splits.json").read_text(encoding="utf-8")), private)
    volumes = {name: source for name, (source, _) in _licences(folder).items() if source in kept and name in hidden}
    _write_tables(folder, out, kept, volumes, private)
    if not list((out / "data").glob("*/*.parquet")):
        raise InputError(
            f"{folder} has nothing in the folds whose labels are to be private",
            found=", ".join(private),
            expected="rows that may be published",
        )
    _write_texts(folder, out, judged, volumes, private, has_labels=True)


def _kept(folder: Path, judged: Sequence[Verdict]) -> set[str]:
    kept = {verdict.source for verdict in judged if verdict.as_pixels}
    if not kept:
        raise InputError(
            f"no source of {folder} may be redistributed",
            found=", ".join(f"{verdict.source}: {verdict.reason}" for verdict in judged),
            expected="at least one that may (em-bench sources NAME says which)",
        )
    return kept


def _write_tables(
    folder: Path, out: Path, kept: Collection[str], volumes: Mapping[str, str], folds: Collection[str]
) -> None:
    """Write rows of the chosen sources and folds, the tables of the chosen volumes, and these volumes."""
    import pyarrow as pa

    out.mkdir(parents=True)
    _filter_shards(folder, out, kept, folds)
    names = pa.array(sorted(volumes), pa.string())
    for name in TABLES:
        tables = (_rows_in(table, "volume_id", names) for table in _row_groups(folder / name))
        write_parquet(out / name, tables, _schema(folder / name), 2**16)
    for name, path in known_files(folder, volumes).items():
        if name.startswith("volumes/"):
            _link(path, out / name)
    shutil.copyfile(folder / "splits.json", out / "splits.json")


def _filter_shards(folder: Path, out: Path, kept: Collection[str], folds: Collection[str]) -> None:
    """Write the rows of kept sources and folds, shard by shard, and number the shards anew."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = pa.array(sorted(kept))
    groups: dict[tuple[str, str], list[tuple[Path, bool]]] = {}
    for path in sorted((folder / "data").glob("*/*.parquet")):
        has = set(pq.read_table(path, columns=["source"])["source"].unique().to_pylist())
        if has & set(kept) and path.name.split("-")[0] in folds:
            groups.setdefault((path.parent.name, path.name.split("-")[0]), []).append((path, has <= set(kept)))
    todo = [(key, number, *entry) for key, entries in groups.items() for number, entry in enumerate(entries)]
    for (part, fold), number, path, whole in tqdm(todo, desc="choosing rows", unit="shard", file=sys.stderr):
        name = f"data/{part}/{fold}-{number:05d}-of-{len(groups[part, fold]):05d}.parquet"
        if whole:
            _link(path, out / name)
        else:
            tables = (_rows_in(table, "source", names) for table in _row_groups(path))
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            write_parquet(out / name, _even(tables, ROWS_PER_GROUP), _schema(path))


def _rows_in(table: Any, column: str, names: Any) -> Any:
    """Return the rows whose ``column`` is one of ``names``; a dictionary forgets the values that are gone."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = table.schema.field(column).type
    if not pa.types.is_dictionary(kind):
        return table.filter(pc.is_in(table[column], names))
    kept = table.filter(pc.is_in(table[column].cast(kind.value_type), names))
    values = kept[column].cast(kind.value_type).dictionary_encode().cast(kind)
    return kept.set_column(kept.schema.get_field_index(column), table.schema.field(column), values)


def _row_groups(path: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for number in range(file.metadata.num_row_groups):
            yield file.read_row_group(number)


def _schema(path: Path) -> Any:
    import pyarrow.parquet as pq

    return pq.read_schema(path)


def _even(tables: Iterable[Any], rows: int) -> Iterator[Any]:
    """Join and cut tables to ``rows`` rows each; few are in memory at a time."""
    import pyarrow as pa

    waiting: Any = None
    for table in tables:
        waiting = table if waiting is None else pa.concat_tables([waiting, table])
        while waiting.num_rows >= rows:
            yield waiting.slice(0, rows)
            waiting = waiting.slice(rows)
    if waiting is not None and waiting.num_rows:
        yield waiting


def _link(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(path, target)


def _write_texts(
    folder: Path,
    out: Path,
    judged: Sequence[Verdict],
    volumes: Mapping[str, str],
    private: Collection[str] = (),
    *,
    has_labels: bool = False,
) -> None:
    infos = source_infos(folder)
    remain = {verdict.source: infos[verdict.source] for verdict in judged if not verdict.dropped}
    withheld = [verdict.source for verdict in judged if not verdict.as_pixels and not verdict.dropped]
    shown = {name: info for name, info in remain.items() if name not in withheld}
    if has_labels:
        remain = shown = {name: info for name, info in shown.items() if name in set(volumes.values())}
        withheld = []
    stats = _stats(folder, shown, volumes, private if has_labels else FOLDS)
    if private:
        stats.objects, stats.instances = private_labels.count(out)
    tables = sorted([*(out / "data").glob("*/*.parquet"), *(out / name for name in TABLES)])
    lines = sorted(f"{path.relative_to(out).as_posix()} {sha256_of(path)}\n" for path in tables)
    fingerprint = hashlib.sha256("".join(lines).encode()).hexdigest()
    rendered = None
    if (folder / "figures").is_dir() and not has_labels:
        from dataset_builder.figures import render

        rendered = render(out)
    texts = card.texts(stats, fingerprint[:16], rendered)
    recipes = make_recipes(folder, withheld, read_stats(folder))
    texts["README.md"] += card_section(recipes)
    texts["LICENSES.md"] = licences_md(remain)
    texts["CITATION.bib"] = bibliography(info.citation for info in remain.values())
    texts["sources.json"] = sources_json(remain)
    counted = stats.as_json()
    if private:
        texts["README.md"] += private_labels.card_section(private, has_them=has_labels)
        counted |= {} if has_labels else {private_labels.KEY: sorted(private)}
    texts["stats.json"] = json.dumps(counted, indent=2) + "\n"
    splits = json.loads((folder / "splits.json").read_text(encoding="utf-8"))
    splits["volumes"] = {name: entry for name, entry in splits["volumes"].items() if entry["source"] in remain}
    texts["splits.json"] = json.dumps(splits, indent=1) + "\n"
    for name, text in {**texts, **recipes.files}.items():
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(text, encoding="utf-8")


def source_infos(folder: Path) -> dict[str, SourceInfo]:
    """Return what a dataset folder says of its sources; the notes are those of the installed source."""
    return {
        name: SourceInfo(
            name=name,
            title=entry["title"],
            citation=entry["citation"],
            licence=entry["licence"],
            url=entry["url"],
            redistributable=entry["redistributable"],
            modality=entry["modality"],
            annotated={Organelle(organelle): kind for organelle, kind in entry["annotated"].items()},
            voxel_size=None if entry["voxel_size_nm"] is None else VoxelSize(*entry["voxel_size_nm"]),
            notes=load_source(name).info.notes if name in source_names() else "",
        )
        for name, entry in read_sources(folder).items()
    }


def _stats(
    folder: Path, sources: dict[str, SourceInfo], volumes: Mapping[str, str], folds: Collection[str] = FOLDS
) -> Stats:
    """Read the counts back, of some sources and folds."""
    counted = read_stats(folder)
    images = {
        (entry["part"], entry["fold"], entry["domain"], entry["source"]): entry["images"]
        for entry in counted["images_by"]
        if entry["source"] in sources and entry["fold"] in folds
    }
    rows = [entry for entry in counted["instances_by"] if entry["source"] in sources]
    return Stats(
        read_split_file(folder / "splits.json"),
        counted["settings"],
        sources,
        dict(volumes),
        Counter(images),
        Counter({(entry["source"], entry["organelle"]): entry["slice_objects"] for entry in rows}),
        Counter({(entry["source"], entry["organelle"]): entry["volume_instances"] for entry in rows}),
        {name: options for name, options in counted["options"].items() if name in sources},
    )
