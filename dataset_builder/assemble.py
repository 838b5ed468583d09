"""From finished volumes to the dataset folder: shards, tables, splits and texts."""

from __future__ import annotations

import hashlib
import json
import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dataset_builder import card, figures
from dataset_builder.columns import array_of, table_of
from dataset_builder.journal import Partial
from dataset_builder.leaks import Placed, Site
from dataset_builder.records import row_schema
from dataset_builder.shards import Part, Shard, checked_hash, plan_shards, write_parquet, write_shard
from dataset_builder.split_file import as_split_file
from dataset_builder.splits import PARTS, SplitPolicy
from dataset_builder.splits import Part as SplitPart
from dataset_builder.stats import Stats
from dataset_builder.volumes import COLUMNS
from dataset_builder.workers import Workers
from em_bench_eval.schema import FOLDS, ORGANELLES, Fold
from em_bench_eval.whole_file import write_whole


def placed(result: Any) -> Iterator[Placed]:
    """Yield where each row of a finished volume lies."""
    split = result["split"]
    specimen, domain = _same(split["specimen"]), _same(split["domain"])
    for part in result["parts"]:
        for fold, number, start, stop, _, hashed in part["rows"]:
            yield Placed(
                volume_id=result["volume_id"],
                slice=number,
                slice_nm=result["slice_nm"],
                specimen=specimen,
                fold=_same(fold),
                domain=domain,
                fingerprint=None if hashed is None else int(hashed, 16),
                axis=_same(part["axis"]),
                z_range=None if part["axis"] == "z" else (start, stop),
            )


def site(result: Any) -> Site | None:
    """Return where a finished volume lies; ``None`` for one that is in no frame."""
    if "frame" not in result["split"]:
        return None
    frame, listing = result["split"]["frame"], result["listing"]
    return Site.of(frame["name"], frame["origin_nm"], listing["shape"], listing["voxel_size_nm"])


def _same(text: Any) -> Any:
    """Return one string object for equal strings: rows are very many."""
    return sys.intern(text)


def write_dataset(names: Sequence[str], partial: Partial, pool: Workers, stats: Stats, policy: SplitPolicy) -> None:
    """Write everything below ``partial.dataset`` that is not of one volume; finished shards are not written again."""
    hashes = _write_shards(names, partial, pool)
    results = (partial.journal[name] for name in names)
    listing = [result["listing"] for result in results]
    path = partial.dataset / "volumes.parquet"
    hashes[path.name] = _write_volumes(path, listing)
    path = partial.dataset / "instances.parquet"
    hashes[path.name] = _write_instances(path, listing, partial.work)
    splits = as_split_file(policy, {name.split(" ", 1)[1]: partial.journal[name]["split"] for name in names})
    texts = {
        **card.texts(stats, _fingerprint(hashes), figures.render(partial.dataset)),
        "splits.json": json.dumps(splits, indent=1) + "\n",
        "stats.json": json.dumps(stats.as_json(), indent=2) + "\n",
    }
    for name, text in texts.items():
        (partial.dataset / name).write_text(text)


def _write_shards(names: Sequence[str], partial: Partial, pool: Workers) -> dict[str, str]:
    """Write all shards; return the SHA-256 of each by its path in the dataset."""
    shards = list(_shards(names, partial))
    uses = Counter(path for shard in shards for path, _, _ in shard.pieces)
    name_of = {shard.path: str(shard.path.relative_to(partial.dataset)) for shard in shards}
    hashes = {}
    schema = row_schema()
    todo = [(shard, schema) for shard in shards if f"shard {name_of[shard.path]}" not in partial.journal]
    with tqdm(total=len(shards), desc="writing shards", unit="shard", file=sys.stderr) as bar:
        for shard in shards:
            if f"shard {name_of[shard.path]}" in partial.journal:
                hashes[name_of[shard.path]] = partial.journal[f"shard {name_of[shard.path]}"]
                _release(shard, uses)
                bar.update()
        for shard, digest in pool.run(_write_shard, todo):
            name = name_of[shard.path]
            hashes[name] = digest
            partial.journal.add(f"shard {name}", digest)
            _release(shard, uses)
            bar.update()
    return hashes


def _write_shard(job: tuple[Shard, Any]) -> tuple[Shard, str]:
    shard, schema = job
    return shard, write_shard(shard, schema)


def _release(shard: Shard, uses: Counter[Path]) -> None:
    """Delete the parts that no other shard needs, so that rows do not lie on disk twice."""
    for path, _, _ in shard.pieces:
        uses[path] -= 1
        if not uses[path]:
            path.unlink(missing_ok=True)


def _shards(names: Sequence[str], partial: Partial) -> Iterator[Shard]:
    """Plan the shards of every part and fold; rows keep the order of volumes, axes, tiles and slices."""
    parts: dict[tuple[SplitPart, Fold], list[Part]] = {(part, fold): [] for part in PARTS for fold in FOLDS}
    for name in names:
        result = partial.journal[name]
        rows = partial.work / result["volume_id"] / "rows"
        for box in result["parts"]:
            for fold in FOLDS:
                sizes = array("L", (row[4] for row in box["rows"] if row[0] == fold))
                if len(sizes):
                    parts[result["part"], fold].append(Part(rows / f"{box['name']}-{fold}.arrow", sizes))
    for (part, fold), files in parts.items():
        yield from plan_shards(partial.dataset / "data" / part, fold, files)


def _write_volumes(path: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    table = table_of(COLUMNS, rows)
    write_whole(path, lambda temporary: write_parquet(temporary, [table], table.schema))
    return checked_hash(path, len(rows))


def _write_instances(path: Path, listing: Sequence[Mapping[str, Any]], work: Path) -> str:
    """Write one row per instance of every volume: organelle, size, bounding box, whether the volume cuts it."""
    import pyarrow as pa

    schema = pa.schema(
        {
            "volume_id": pa.dictionary(pa.int32(), pa.string()),
            "instance_id": pa.int64(),
            "organelle": pa.dictionary(pa.int8(), pa.string()),
            "voxels": pa.int64(),
            "volume_nm3": pa.float64(),
            "bbox": pa.list_(pa.int32(), 6),
            "touches_border": pa.bool_(),
        }
    )
    count = 0

    def tables() -> Iterator[Any]:
        nonlocal count
        for row in listing:
            with np.load(work / row["volume_id"] / "table.npz") as table:
                ids, classes, voxels, boxes = (table[name] for name in ("ids", "classes", "voxels", "boxes"))
            cut = (boxes[:, :3] == 0).any(axis=1) | (boxes[:, 3:] == np.array(row["shape"])).any(axis=1)
            columns = [
                pa.DictionaryArray.from_arrays(
                    array_of("int32", np.zeros(len(ids))), array_of("string", [row["volume_id"]])
                ),
                array_of("int64", ids),
                pa.DictionaryArray.from_arrays(
                    array_of("int8", classes.astype(np.int8) - 1), array_of("string", ORGANELLES)
                ),
                array_of("int64", voxels),
                array_of("float64", voxels * float(np.prod(row["voxel_size_nm"]))),
                pa.FixedSizeListArray.from_arrays(array_of("int32", boxes.ravel()), 6),
                array_of("bool", cut),
            ]
            count += len(ids)
            yield pa.Table.from_arrays(columns, schema=schema)

    write_whole(path, lambda temporary: write_parquet(temporary, tables(), schema, rows_per_group=2**16))
    return checked_hash(path, count)


def _fingerprint(hashes: Mapping[str, str]) -> str:
    """Hash the names and contents of all parquet files."""
    return hashlib.sha256("".join(f"{name} {hashes[name]}\n" for name in sorted(hashes)).encode()).hexdigest()[:16]
