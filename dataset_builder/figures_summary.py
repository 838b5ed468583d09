"""What the figures and the card show of a dataset folder, counted in one pass over the columns that are needed.

Image columns are never read, and nothing grows with the number of rows or instances: sizes are counted in bins of a
hundredth of a decade, and of example rows and instances only the best so far is kept.
"""

from __future__ import annotations

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from em_bench_eval.errors import InputError
from em_bench_eval.schema import ORGANELLES, Organelle
from lpa.signs import THRESHOLDS

BINS_PER_DECADE, DECADES = 100, 18  # from 1 nm^2 or nm^3; an ER of 100 um^3 is 1e11 nm^3
PARTS_OF_ROWS = ["source", "cell_type", "modality", "fold", "domain", "axis", "pixel_size_nm"]
PARTS_OF_OBJECTS = [f"objects.list.element.{name}" for name in ("organelle", "area", "touches_border")]
SIZES = {"small": 0.1, "middle": 0.5, "large": 1.0}  # example instance -> share of the instances that are smaller


@dataclass
class Sizes:
    """How large the instances of one organelle are; ``whole`` are those that no border cuts."""

    whole: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS_PER_DECADE * DECADES, np.int64))
    cut: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS_PER_DECADE * DECADES, np.int64))

    def add(self, sizes: npt.NDArray[np.float64], is_cut: npt.NDArray[np.bool_]) -> None:
        """Count instances."""
        places = np.clip(np.log10(np.maximum(sizes, 1.0)) * BINS_PER_DECADE, 0, len(self.whole) - 1).astype(np.int64)
        self.whole += np.bincount(places[~is_cut], minlength=len(self.whole))
        self.cut += np.bincount(places[is_cut], minlength=len(self.cut))

    @property
    def count(self) -> int:
        """All instances."""
        return int(self.whole.sum() + self.cut.sum())

    def at_least(self, least: float) -> int:
        """Whole instances of at least this size."""
        return int(self.whole[_first_bin(least) :].sum())

    def quantile(self, share: float, least: float = 0.0) -> float | None:
        """Size below which ``share`` of the whole instances of at least ``least`` lie, to 2 %; ``None``: no such."""
        counts = self.whole.copy()
        counts[: _first_bin(least)] = 0
        if not counts.sum():
            return None
        place = int(np.searchsorted(np.cumsum(counts), max(1, math.ceil(share * int(counts.sum())))))
        return float(10 ** ((place + 0.5) / BINS_PER_DECADE))


def _first_bin(least: float) -> int:
    return math.ceil(math.log10(max(least, 1.0)) * BINS_PER_DECADE - 1e-9)


@dataclass(frozen=True)
class RowPlace:
    """Where a row is stored."""

    file: Path
    row_group: int
    row: int


@dataclass(frozen=True)
class Example:
    """An instance to draw."""

    volume_id: str
    instance_id: int
    volume_nm3: float
    voxels: int
    bbox: tuple[int, ...]  # z0, y0, x0, z1, y1, x1
    touches_border: bool


@dataclass
class Summary:
    """Counts over a dataset folder. Objects are instances as they appear in images."""

    folder: Path
    images: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # source, fold, domain
    cell_types: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # cell type, fold, domain
    objects: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # source, fold, organelle
    instances: Counter[tuple[str, str]] = field(default_factory=Counter)  # source, organelle; in whole volumes
    annotated: set[tuple[str, str]] = field(default_factory=set)  # source, organelle
    volumes: dict[str, dict[str, Any]] = field(default_factory=dict)  # volume id -> row of volumes.parquet
    volume_nm3: dict[Organelle, Sizes] = field(default_factory=lambda: defaultdict(Sizes))
    area_nm2: dict[Organelle, Sizes] = field(default_factory=lambda: defaultdict(Sizes))
    best_row: dict[str, RowPlace] = field(default_factory=dict)  # source -> the image that shows most
    examples: dict[Organelle, dict[str, Example]] = field(default_factory=dict)

    @property
    def sources(self) -> list[str]:
        """Sources in the order of the volumes."""
        return list(dict.fromkeys(str(row["source"]) for row in self.volumes.values()))

    def organelles(self) -> list[Organelle]:
        """Organelles that have instances."""
        return [organelle for organelle in Organelle if organelle in self.volume_nm3]


def summarise(folder: Path) -> Summary:
    """Count a dataset folder; raises ``InputError`` if it is none."""
    needed = [folder / "volumes.parquet", folder / "instances.parquet"]  # labels alone have no rows in data/
    missing = [path.name for path in needed if not path.exists()]
    if missing:
        raise InputError(
            f"{folder} is not a dataset folder",
            found=f"no {', '.join(missing)}",
            expected="a folder written by this version of em-bench build",
            remedy="build it again",
        )
    summary = Summary(folder)
    _count_volumes(summary)
    _count_rows(summary)
    _count_instances(summary)
    return summary


def _count_volumes(summary: Summary) -> None:
    import json

    import pyarrow.parquet as pq

    columns = ["volume_id", "zarr", "shape", "voxel_size_nm", "source", "specimen", "annotated", "instances"]
    for batch in pq.ParquetFile(summary.folder / "volumes.parquet").iter_batches(columns=columns):
        for row in batch.to_pylist():
            summary.volumes[row["volume_id"]] = row
            counts = json.loads(row.pop("instances"))
            for organelle in row["annotated"]:
                summary.annotated.add((row["source"], organelle))
                summary.instances[row["source"], organelle] += counts[organelle]


def _row_groups(path: Path, columns: list[str]) -> Iterator[tuple[int, Any]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            yield number, file.read_row_group(number, columns=columns).combine_chunks()


def _count_rows(summary: Summary) -> None:
    best: dict[str, tuple[int, int]] = {}
    files = sorted((summary.folder / "data").glob("*/*.parquet"))
    for path in tqdm(files, "counting rows", unit="file", file=sys.stderr, disable=None):
        for number, table in _row_groups(path, [*PARTS_OF_ROWS, *PARTS_OF_OBJECTS]):
            source, cell_type, fold, domain, axis = (
                table[name].to_pylist() for name in ("source", "cell_type", "fold", "domain", "axis")
            )
            summary.images.update(zip(source, fold, domain, strict=True))
            summary.cell_types.update(zip(cell_type, fold, domain, strict=True))
            objects = _Objects.of(table)
            for organelle in Organelle:
                own = objects.organelle == ORGANELLES.index(organelle)
                if not own.any():
                    continue
                summary.area_nm2[organelle].add(objects.area_nm2[own], objects.is_cut[own])
                per_row = np.bincount(objects.row[own], minlength=len(source))
                for place in np.flatnonzero(per_row):
                    summary.objects[source[place], fold[place], organelle.value] += int(per_row[place])
            kinds, count = objects.per_row(len(source))
            for place, name in enumerate(source):
                shows = (int(kinds[place]), int(count[place]))
                if axis[place] == "z" and shows > best.get(name, (-1, -1)):
                    best[name] = shows
                    summary.best_row[name] = RowPlace(path, number, place)


@dataclass(frozen=True)
class _Objects:
    """The objects of one row group, flat; arrays are parallel."""

    row: npt.NDArray[np.int64]
    organelle: npt.NDArray[np.int64]  # place in ORGANELLES
    area_nm2: npt.NDArray[np.float64]
    is_cut: npt.NDArray[np.bool_]

    @staticmethod
    def of(table: Any) -> _Objects:
        import pyarrow as pa
        import pyarrow.compute as pc

        column = table["objects"].combine_chunks() if table.num_rows else pa.array([], table["objects"].type)
        entries = column.flatten()
        row = np.repeat(np.arange(table.num_rows), pc.list_value_length(column).to_numpy(zero_copy_only=False))
        pixels = np.array(table["pixel_size_nm"].to_pylist(), np.float64).reshape(-1, 2).prod(axis=1)
        names = pc.index_in(entries.field("organelle"), value_set=pa.array(ORGANELLES))
        area = entries.field("area").to_numpy(zero_copy_only=False).astype(np.float64)
        return _Objects(
            row,
            names.to_numpy(zero_copy_only=False).astype(np.int64),
            area * pixels[row],
            entries.field("touches_border").to_numpy(zero_copy_only=False).astype(bool),
        )

    def per_row(self, rows: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Organelles and objects of every row."""
        table = np.zeros((rows, len(ORGANELLES)), np.int64)
        np.add.at(table, (self.row, self.organelle), 1)
        return (table > 0).sum(axis=1), table.sum(axis=1)


def _count_instances(summary: Summary) -> None:
    """Count sizes in a first pass; find the instances nearest to the sizes that are wanted in a second one."""
    for organelle, table in _instances(summary.folder, ["organelle", "volume_nm3", "touches_border"]):
        summary.volume_nm3[organelle].add(table["volume_nm3"], table["touches_border"])
    wanted: dict[Organelle, dict[str, float]] = {}
    with_cut: set[Organelle] = set()
    for organelle, sizes in summary.volume_nm3.items():
        least = THRESHOLDS[organelle].min_volume_nm3  # smaller ones are crumbs
        everything = Sizes(sizes.whole + sizes.cut)
        if sizes.at_least(least) < len(SIZES):
            with_cut.add(organelle)
            sizes = everything
            least = least if everything.at_least(least) >= len(SIZES) else 0.0
        found = {name: sizes.quantile(share, least) or everything.quantile(share) for name, share in SIZES.items()}
        wanted[organelle] = {name: size or 1.0 for name, size in found.items()}
    best: dict[tuple[Organelle, str], tuple[bool, float]] = {}
    columns = ["volume_id", "instance_id", "organelle", "voxels", "volume_nm3", "bbox", "touches_border"]
    for organelle, table in _instances(summary.folder, columns):
        for name, size in wanted[organelle].items():
            off = np.abs(np.log10(np.maximum(table["volume_nm3"], 1.0) / size))
            score = np.stack([table["touches_border"] & (organelle not in with_cut), off])
            place = int(np.lexsort(score[::-1])[0])  # whole instances first
            key = (bool(score[0, place]), float(score[1, place]))
            if key < best.get((organelle, name), (True, math.inf)):
                best[organelle, name] = key
                summary.examples.setdefault(organelle, {})[name] = Example(
                    volume_id=table["volume_id"][place],
                    instance_id=int(table["instance_id"][place]),
                    volume_nm3=float(table["volume_nm3"][place]),
                    voxels=int(table["voxels"][place]),
                    bbox=tuple(int(edge) for edge in table["bbox"][place]),
                    touches_border=bool(table["touches_border"][place]),
                )


def _instances(folder: Path, columns: list[str]) -> Iterator[tuple[Organelle, Mapping[str, Any]]]:
    """Yield the instances of each organelle in each row group, as arrays by column."""
    for _, table in _row_groups(folder / "instances.parquet", columns):
        names = np.array(table["organelle"].cast("string").to_pylist(), object)
        arrays = {}
        for column in columns:
            values = table[column].to_pylist() if column in ("volume_id", "bbox") else table[column].to_numpy()
            arrays[column] = np.array(values, object if column == "volume_id" else None)
        for organelle in Organelle:
            own = names == organelle.value
            if own.any():
                yield organelle, {column: values[own] for column, values in arrays.items()}
