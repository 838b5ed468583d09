"""Rows to parquet files: parts that any process writes, then shards of even size that ``datasets`` understands.

A part holds the rows of one box and one fold, uncompressed Arrow, so that joining parts copies bytes and no more. Which
rows go into which shard follows from their order and size alone: it does not depend on how they were cut into parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_bench_eval.whole_file import sha256_of, write_whole

ROWS_PER_GROUP = 16  # a filter on source skips row groups by their statistics; random access reads one group
BYTES_PER_SHARD = 256 * 2**20
IMAGES = ("image", "instances", "ignore")  # PNG already: compressing or counting them again gains nothing


@dataclass(frozen=True)
class Part:
    """The rows of one file, and the bytes that each takes."""

    path: Path
    sizes: Sequence[int]


@dataclass(frozen=True)
class Shard:
    """One published parquet file: which rows of which parts, in order."""

    path: Path
    pieces: Sequence[tuple[Path, int, int]]  # part, first row, row after the last

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(stop - start for _, start, stop in self.pieces)


def write_part(path: Path, rows: Any) -> None:
    """Write a ``pyarrow.Table`` of rows in their published form; the file appears when it is complete."""
    import pyarrow as pa

    def write(temporary: Path) -> None:
        with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, rows.schema) as writer:
            writer.write_table(rows)

    write_whole(path, write)


def plan_shards(folder: Path, fold: str, parts: Iterable[Part]) -> list[Shard]:
    """Divide rows into shards of whole row groups, a new one once ``BYTES_PER_SHARD`` is reached."""
    shards: list[list[tuple[Path, int, int]]] = [[]]
    filled = count = 0
    for part in parts:
        start = 0
        for row, size in enumerate(part.sizes):
            if count % ROWS_PER_GROUP == 0 and filled >= BYTES_PER_SHARD:
                if row > start:
                    shards[-1].append((part.path, start, row))
                shards.append([])
                start, filled, count = row, 0, 0
            filled += size
            count += 1
        if len(part.sizes) > start:
            shards[-1].append((part.path, start, len(part.sizes)))
    kept = [pieces for pieces in shards if pieces]
    names = [f"{fold}-{n:05d}-of-{len(kept):05d}.parquet" for n in range(len(kept))]
    return [Shard(folder / name, pieces) for name, pieces in zip(names, kept, strict=True)]


def write_shard(shard: Shard, schema: Any) -> str:
    """Write one shard, check its row count, and return the SHA-256 of the file."""
    import pyarrow as pa

    shard.path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(shard.path, lambda temporary: write_parquet(temporary, _groups(shard, pa), schema))
    return checked_hash(shard.path, shard.rows)


def write_parquet(path: Path, groups: Iterable[Any], schema: Any, rows_per_group: int = ROWS_PER_GROUP) -> None:
    """Write Arrow tables as the row groups of a parquet file; only the small columns are compressed."""
    import pyarrow.parquet as pq

    leaves = _leaves(schema)
    small = [leaf for leaf in leaves if leaf.split(".")[0] not in IMAGES]
    compression = {leaf: "zstd" if leaf in small else "none" for leaf in leaves}
    with pq.ParquetWriter(
        path, schema, compression=compression, use_dictionary=small, write_statistics=small
    ) as writer:
        for group in groups:
            writer.write_table(group, row_group_size=rows_per_group)


def checked_hash(path: Path, rows: int) -> str:
    """Return the SHA-256 of a parquet file; raises ``OSError`` if it does not hold ``rows`` rows."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        written = file.metadata.num_rows
    if written != rows:
        raise OSError(f"{path}: {written} rows on disk, {rows} written")
    return sha256_of(path)


def _groups(shard: Shard, pa: Any) -> Iterator[Any]:
    """Yield tables of ``ROWS_PER_GROUP`` rows (the last may have fewer) across the borders of parts."""
    waiting: list[Any] = []
    count = 0
    for path, start, stop in shard.pieces:
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        while start < stop:
            taken = table.slice(start, min(stop - start, ROWS_PER_GROUP - count))
            waiting.append(taken)
            start, count = start + len(taken), count + len(taken)
            if count == ROWS_PER_GROUP:
                yield pa.concat_tables(waiting).combine_chunks()
                waiting, count = [], 0
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def _leaves(schema: Any) -> list[str]:
    """Return the names of the leaf columns in parquet, by which the writer's options go."""
    import io

    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.ParquetWriter(buffer, schema).close()
    parquet = pq.ParquetFile(buffer).schema
    return [parquet.column(number).path for number in range(len(parquet))]
