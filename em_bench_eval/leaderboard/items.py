"""What a submission must predict: the images of a split, their shapes and pixel sizes, and the hash over them.

Only ids, sizes and PNG headers are read, so this works for public datasets whose test labels are kept private.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from em_bench_eval.errors import InputError
from em_bench_eval.rows import ID_COLUMNS, row_id
from em_bench_eval.schema import parse_record_id

_FINGERPRINT = "content "  # how the dataset card states it, in the description of each configuration


@dataclass(frozen=True)
class SplitItem:
    """One image of a split."""

    record_id: str
    shape: tuple[int, int]  # (y, x)
    pixel_size_nm: tuple[float, float]  # (y, x)


@dataclass(frozen=True)
class VolumeItem:
    """One volume of the dataset."""

    shape: tuple[int, int, int]  # (z, y, x)
    voxel_size_nm: tuple[float, float, float]


@dataclass(frozen=True)
class Expected:
    """A split, as a submission is held against it. Holds no labels."""

    dataset: str  # name, without a path
    config: str
    split: str
    items: dict[str, SplitItem]  # by record id
    volumes: dict[str, VolumeItem] = field(default_factory=dict)  # by volume id
    fingerprint: str = ""  # of the dataset's content, as its card states it
    revision: str = ""  # commit on the Hub

    def to_json(self) -> dict[str, Any]:
        """Return a JSON form, for another process."""
        return {
            **{name: getattr(self, name) for name in ("dataset", "config", "split", "fingerprint", "revision")},
            "items": [[item.record_id, *item.shape, *item.pixel_size_nm] for item in self.items.values()],
            "volumes": [[name, *volume.shape, *volume.voxel_size_nm] for name, volume in self.volumes.items()],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Expected:
        """Read what ``to_json`` gave."""
        return cls(
            **{name: document[name] for name in ("dataset", "config", "split", "fingerprint", "revision")},
            items={name: SplitItem(name, (h, w), (y, x)) for name, h, w, y, x in document["items"]},
            volumes={name: VolumeItem((d, h, w), (z, y, x)) for name, d, h, w, z, y, x in document["volumes"]},
        )


def split_hash(rows: Iterable[SplitItem | Mapping[str, Any]]) -> str:
    """Return the SHA-256 (64 hexadecimal digits) over record ids, shapes and pixel sizes, whatever the order.

    ``rows`` are ``SplitItem`` or rows of the dataset (``rows.open_rows``), of which the images are not decoded. One
    line an image, ``<record id> <height> <width> <pixel height> <pixel width>``, sizes in nm as Python writes floats;
    lines sorted and joined by newlines. Labels do not enter, so a dataset without its test labels has the same hash.
    """
    items = [row if isinstance(row, SplitItem) else split_item(row) for row in rows]
    lines = sorted(
        f"{item.record_id} {item.shape[0]} {item.shape[1]} {item.pixel_size_nm[0]!r} {item.pixel_size_nm[1]!r}"
        for item in items
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def split_item(row: Mapping[str, Any]) -> SplitItem:
    """Describe a dataset row by its columns and the header of its PNG (``image``, else ``instances``)."""
    cell = row.get("image") if row.get("image") is not None else row.get("instances")
    y, x = row["pixel_size_nm"]
    return SplitItem(row_id(row), _shape_of(cell), (float(y), float(x)))


def _shape_of(cell: Any) -> tuple[int, int]:
    if hasattr(cell, "size") and hasattr(cell, "mode"):  # a PIL image
        return int(cell.size[1]), int(cell.size[0])
    content = cell.get("bytes") if isinstance(cell, Mapping) else cell
    if content is None or len(content) < 24 or bytes(content[12:16]) != b"IHDR":
        raise InputError("a row of the dataset has no PNG image", found=type(cell).__name__)
    width, height = struct.unpack(">II", content[16:24])
    return height, width


def expected_items(dataset: str | os.PathLike[str], config: str, split: str) -> Expected:
    """Read what a split holds: a local dataset folder, or ``<org>/<name>`` on the Hub (range requests).

    Raises ``InputError`` if there is no such dataset, configuration or split.
    """
    import datasets

    name = os.fspath(dataset)
    files = data_files(name, config, split)
    items = {item.record_id: item for file in files for item in _items_of(file)}
    volumes: dict[str, VolumeItem] = {}
    if "volumes" in datasets.get_dataset_config_names(name):
        listing = dict(_builder(name, "volumes").config.data_files or {})
        for file in (file for group in listing.values() for file in group):
            volumes.update(_volumes_of(str(file)))
    fingerprint, revision = content_of(name, config)
    return Expected(
        dataset=Path(name).resolve().name if Path(name).is_dir() else name,
        config=config,
        split=split,
        items=items,
        volumes=volumes,
        fingerprint=fingerprint,
        revision=revision,
    )


def content_of(dataset: str, config: str) -> tuple[str, str]:
    """Return the fingerprint of a configuration on the dataset's card, and the commit; "" where there is none."""
    about = _builder(dataset, config).config
    said = str(about.description or "")
    files = [str(file) for group in dict(about.data_files or {}).values() for file in group]
    return said if said.startswith(_FINGERPRINT) else "", _revision(files[0]) if files else ""


def data_files(dataset: str | os.PathLike[str], config: str, split: str) -> list[str]:
    """Return the Parquet files of a split as the dataset's card names them: paths, or ``hf://`` with a commit.

    Raises ``InputError`` if there is no such dataset, configuration or split.
    """
    name = os.fspath(dataset)
    files = dict(_builder(name, config).config.data_files or {})
    if split not in files:
        raise InputError(f"{name} has no split {split!r}", found=f"{config}: {', '.join(map(str, files))}")
    return [str(file) for file in files[split]]


def _builder(name: str, config: str) -> Any:
    import datasets

    from em_bench_eval.rows import no_dataset

    if not Path(name).is_dir() and name.count("/") != 1:
        raise no_dataset(name, "no such folder")
    try:
        return datasets.load_dataset_builder(name, config)
    except ValueError as error:
        raise InputError(f"cannot open {name}", found=str(error), remedy="check the configuration's name") from error
    except (FileNotFoundError, ConnectionError) as error:
        raise no_dataset(name, f"no such folder, and not on the Hub: {error}") from error


def _items_of(file: str) -> Iterator[SplitItem]:
    """Read the items of one parquet file; of ``image`` and ``instances`` the smaller one that is there is read."""
    import pyarrow.parquet as pq

    with _open(file) as opened:
        parquet = pq.ParquetFile(opened, pre_buffer=False)
        columns = [*(name for name in ID_COLUMNS if name in parquet.schema_arrow.names), "pixel_size_nm"]
        for group in range(parquet.num_row_groups):
            for picture in _pictures(parquet, group):
                try:
                    batches = parquet.iter_batches(batch_size=16, row_groups=[group], columns=[*columns, picture])
                    found = [split_item(row) for batch in batches for row in batch.to_pylist()]
                    break
                except InputError:  # labels that were blanked out
                    if picture == "image":
                        raise
            yield from found


def _pictures(parquet: Any, group: int) -> list[str]:
    """Name the columns that may hold a PNG for every row, the cheaper first: its header tells the shape."""
    sizes = {}
    about = parquet.metadata.row_group(group)
    for index in range(about.num_columns):
        column = about.column(index)
        name, _, part = column.path_in_schema.partition(".")
        stated = column.statistics
        filled = stated is not None and stated.has_null_count and stated.null_count == 0
        if name in ("image", "instances") and part == "bytes" and (filled or name == "image"):
            sizes[name] = column.total_compressed_size
    if "image" not in sizes:
        raise InputError("the dataset has no images", found=", ".join(parquet.schema_arrow.names))
    return sorted(sizes, key=lambda name: (sizes[name], name))


def _volumes_of(file: str) -> Iterator[tuple[str, VolumeItem]]:
    import pyarrow.parquet as pq

    with _open(file) as opened:
        for row in pq.read_table(opened, columns=["volume_id", "shape", "voxel_size_nm"]).to_pylist():
            z, y, x = row["shape"]
            depth, height, width = row["voxel_size_nm"]
            yield row["volume_id"], VolumeItem((int(z), int(y), int(x)), (depth, height, width))


def _open(file: str) -> Any:
    if "://" not in file:
        return open(file, "rb")
    from huggingface_hub import HfFileSystem

    return HfFileSystem().open(file, "rb")


def _revision(file: str) -> str:
    """Return the commit in ``hf://datasets/org/name@commit/...``."""
    head, at, rest = file.partition("@")
    return rest.split("/")[0] if at and head.startswith("hf://") else ""


def volume_of(record_id: str) -> str:
    """Return the volume that an image was cut from."""
    return parse_record_id(record_id)[0]
