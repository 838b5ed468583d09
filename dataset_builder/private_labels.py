"""Labels that stay private: a dataset without those of some folds, and a second one that has them.

In the public dataset the rows of a private fold keep image, size and identity, so that anybody can predict them and a
submission can be validated; ``instances``, ``objects`` and ``ignore`` are empty. Volumes keep labels in the slabs of
the other folds only, not in the gaps between folds, which nearly repeat their neighbours; all else is ignore there.
What is counted from labels (tables, card, figures) is counted again without the private ones.

This keeps labels out of sight, not out of the world: whoever finds the original data finds its labels.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from dataset_builder.layout import Box, Layout
from dataset_builder.shards import ROWS_PER_GROUP, write_parquet
from dataset_builder.volumes import LISTED_IN_ATTRIBUTES, create_array, open_array
from em_bench_eval.whole_file import write_whole
from lpa.ome_zarr import write_group

KEY = "private_labels"  # of stats.json, and of a volume's attributes
LABELS = ("instances", "semantic", "ignore")
Slabs = Sequence[tuple[int, int]]  # slices whose labels are public: start, stop


@dataclass
class Seen:
    """What is public of one instance."""

    voxels: int = 0
    low: list[int] = field(default_factory=lambda: [2**31 - 1] * 3)  # (z, y, x)
    high: list[int] = field(default_factory=lambda: [0] * 3)


def public_slabs(splits: Mapping[str, Any], folds: Collection[str]) -> dict[str, Slabs]:
    """Return volume id -> slabs whose labels stay public, of volumes with a slab of ``folds``; none: ``[]``."""
    found: dict[str, Slabs] = {}
    for name, entry in splits["volumes"].items():
        if any(fold in folds for fold, _, _ in entry["slabs"]):
            found[name] = [(int(start), int(stop)) for fold, start, stop in entry["slabs"] if fold not in folds]
    return found


def hide(dataset: Path, folds: Collection[str], volume_ids: Collection[str]) -> None:
    """Take the labels of ``folds`` out of a dataset folder whose files may be hard links: none is written in place."""
    splits = json.loads((dataset / "splits.json").read_text(encoding="utf-8"))
    slabs = {name: kept for name, kept in public_slabs(splits, folds).items() if name in volume_ids}
    for path in sorted((dataset / "data").glob("*/*.parquet")):
        if path.name.split("-")[0] in folds:
            _replace(path, _without_labels(path), ROWS_PER_GROUP)
    seen = {}
    for name in tqdm(sorted(slabs), desc="hiding labels", unit="volume", file=sys.stderr):
        seen[name] = _hide_volume(dataset / "volumes" / f"{name}.zarr", slabs[name])
    organelle_of = _describe_instances(dataset, seen)
    for name in slabs:
        _describe_volume(dataset / "volumes" / f"{name}.zarr", slabs[name], organelle_of[name])
    _count_in_volumes(dataset, organelle_of)


def _replace(path: Path, tables: Iterator[Any], rows_per_group: int) -> None:
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    write_whole(path, lambda partial: write_parquet(partial, tables, schema, rows_per_group))


def _without_labels(path: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            for column in ("instances", "objects", "ignore"):
                place = table.schema.get_field_index(column)
                kind = table.schema.field(column).type
                empty: list[Any] = [[]] * len(table) if column == "objects" else [None] * len(table)
                table = table.set_column(place, table.schema.field(column), pa.array(empty, kind))
            yield table


def _hide_volume(folder: Path, slabs: Slabs) -> dict[int, Seen]:
    """Write the label arrays of one volume again, with what is public; return what is seen of each instance."""
    seen: dict[int, Seen] = {}
    whole = folder / "labels"
    if not slabs:
        shutil.rmtree(whole)
        return seen
    before = folder / ".labels"
    whole.rename(before)
    _copy_node(before, whole)
    factors = _factors(before / "instances")
    finest = next(iter(factors))
    for name in LABELS:
        source = before / (name if (before / name).is_dir() else "instances")
        _copy_node(source, whole / name)
        for level, factor in factors.items():
            array = open_array(source / level)
            written = _new_array(whole / name / level, array, np.uint8 if name == "ignore" else None)
            public = _public_slices(array.shape[0], factor, slabs)
            for box in _layout(array).boxes():
                values = _read(array, box, has_values=name != "ignore" or source.name == "ignore")
                values[~public[box[0]]] = name == "ignore"
                if name == "instances" and level == finest:
                    _note(seen, values, box)
                if values.any():
                    written[box].write(values).result()
    shutil.rmtree(before)
    return seen


def _copy_node(source: Path, target: Path) -> None:
    """Copy a group's metadata; what is written later must not reach the original through a hard link."""
    target.mkdir()
    shutil.copyfile(source / "zarr.json", target / "zarr.json")


def _factors(group: Path) -> dict[str, int]:
    """Return level -> how many slices of the finest level one of its slices stands for; the finest comes first."""
    attributes = json.loads((group / "zarr.json").read_text(encoding="utf-8"))["attributes"]
    levels = {
        entry["path"]: entry["coordinateTransformations"][0]["scale"][0]
        for entry in attributes["ome"]["multiscales"][0]["datasets"]
    }
    finest = min(levels.values())
    return {path: round(depth / finest) for path, depth in levels.items()}


def _public_slices(depth: int, factor: int, slabs: Slabs) -> npt.NDArray[np.bool_]:
    """Which slices of a level are public: those that stand for public slices alone."""
    finest = np.zeros(depth * factor, bool)
    for start, stop in slabs:
        finest[start:stop] = True
    return np.asarray(finest.reshape(depth, factor).all(axis=1), bool)


def _layout(array: Any) -> Layout:
    chunks = array.chunk_layout
    shape, chunk, shard = (
        (int(z), int(y), int(x)) for z, y, x in (array.shape, chunks.read_chunk.shape, chunks.write_chunk.shape)
    )
    return Layout(shape, chunk, shard)


def _new_array(path: Path, like: Any, dtype: npt.DTypeLike) -> Any:
    create_array(path, _layout(like), like.dtype.numpy_dtype if dtype is None else dtype)
    return open_array(path)


def _read(array: Any, box: Box, *, has_values: bool) -> npt.NDArray[Any]:
    if has_values:
        return np.array(array[box].read().result())
    return np.zeros([side.stop - side.start for side in box], np.uint8)


def _note(seen: dict[int, Seen], ids: npt.NDArray[Any], box: Box) -> None:
    """Add the voxels and the extent of every id in a box."""
    from scipy import ndimage

    names, places, counts = np.unique(ids, return_inverse=True, return_counts=True)
    objects = ndimage.find_objects(places.reshape(ids.shape).astype(np.int32) + 1)
    for name, count, sides in zip(names.tolist(), counts.tolist(), objects, strict=True):
        if name == 0 or sides is None:
            continue
        entry = seen.setdefault(name, Seen())
        entry.voxels += count
        for axis, (side, within) in enumerate(zip(sides, box, strict=True)):
            entry.low[axis] = min(entry.low[axis], within.start + side.start)
            entry.high[axis] = max(entry.high[axis], within.start + side.stop)


def _describe_instances(dataset: Path, seen: Mapping[str, Mapping[int, Seen]]) -> dict[str, dict[int, str]]:
    """Write ``instances.parquet`` again; return volume id -> public instance id -> organelle."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = dataset / "instances.parquet"
    organelle_of: dict[str, dict[int, str]] = {name: {} for name in seen}

    def rows() -> Iterator[Any]:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                kept = []
                for row in table.to_pylist():
                    if row["volume_id"] not in seen:
                        kept.append(row)
                    elif (part := seen[row["volume_id"]].get(row["instance_id"])) is not None:
                        organelle_of[row["volume_id"]][row["instance_id"]] = row["organelle"]
                        kept.append(_public_part(row, part))
                yield pa.Table.from_pylist(kept, table.schema)

    _replace(path, rows(), 2**16)
    return organelle_of


def _public_part(row: Mapping[str, Any], part: Seen) -> dict[str, Any]:
    """Describe what is public of an instance; one that goes on out of sight is cut, as by a border."""
    is_cut = row["touches_border"] or part.voxels != row["voxels"]
    volume = row["volume_nm3"] / row["voxels"] * part.voxels
    if part.voxels == row["voxels"]:
        volume = row["volume_nm3"]
    return {
        **row,
        "voxels": part.voxels,
        "volume_nm3": volume,
        "bbox": [*part.low, *part.high],
        "touches_border": is_cut,
    }


def _describe_volume(folder: Path, slabs: Slabs, organelle_of: Mapping[int, str]) -> None:
    node = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))["attributes"]
    # other classes go as well: together they may outline the organelles
    kept = node["em_organelle_wild"].items()
    about = {name: value for name, value in kept if name not in ("organelle_of", "extras")}
    about |= {"instances": len(organelle_of), KEY: {"public_slices": [list(slab) for slab in slabs]}}
    if slabs and len(organelle_of) <= LISTED_IN_ATTRIBUTES:
        about["organelle_of"] = {str(id_): organelle for id_, organelle in sorted(organelle_of.items())}
    _rewrite_group(folder, {**node, "em_organelle_wild": about})
    if slabs:
        labels = json.loads((folder / "labels" / "zarr.json").read_text(encoding="utf-8"))["attributes"]
        labels["ome"]["labels"] = list(LABELS)
        _rewrite_group(folder / "labels", labels)


def _rewrite_group(folder: Path, attributes: Mapping[str, object]) -> None:
    (folder / "zarr.json").unlink()  # maybe a hard link to the original
    write_group(folder, attributes)


def _count_in_volumes(dataset: Path, organelle_of: Mapping[str, Mapping[int, str]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = dataset / "volumes.parquet"

    def rows() -> Iterator[Any]:
        table = pq.read_table(path)
        listed = table.to_pylist()
        for row in listed:
            if row["volume_id"] in organelle_of:
                counts = Counter(organelle_of[row["volume_id"]].values())
                row["instances"] = json.dumps({name: counts[name] for name in json.loads(row["instances"])})
                row["extras"] = []
        yield pa.Table.from_pylist(listed, table.schema)

    _replace(path, rows(), 2**16)


def count(dataset: Path) -> tuple[Counter[tuple[str, str]], Counter[tuple[str, str]]]:
    """Count the objects in rows and the instances in volumes that a folder shows, by (source, organelle)."""
    import pyarrow.parquet as pq

    objects: Counter[tuple[str, str]] = Counter()
    for path in sorted((dataset / "data").glob("*/*.parquet")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=["source", "objects"], batch_size=1024):
                for row in batch.to_pylist():
                    objects.update((row["source"], entry["organelle"]) for entry in row["objects"])
    instances: Counter[tuple[str, str]] = Counter()
    for row in pq.read_table(dataset / "volumes.parquet", columns=["source", "annotated", "instances"]).to_pylist():
        for organelle, number in json.loads(row["instances"]).items():
            if organelle in row["annotated"]:
                instances[row["source"], organelle] += number
    return objects, instances


def card_section(folds: Collection[str], *, has_them: bool) -> str:
    """Return what the card says, of the public dataset or of the one with the labels."""
    named = ", ".join(f"`{fold}`" for fold in sorted(folds))
    if has_them:
        return (
            f"\n## Private labels\n\nThese are the rows of {named} with their labels, which the public dataset does "
            "not show. Keep this repository private: it decides the leaderboard.\n"
        )
    return (
        f"\n## Private labels\n\nThe labels of {named} are not here: in these rows `instances`, `objects` and `ignore` "
        "are empty, and volumes have labels only where other folds are. Predict them, and submit to the leaderboard, "
        "which scores against the labels; score on `validation` yourself. What is counted above is counted without "
        "them. Sources that publish their own labels still do: please do not train on them.\n"
    )
