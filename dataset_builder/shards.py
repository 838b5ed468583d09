"""Rows to parquet files: bounded memory, small row groups, names that ``datasets`` understands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROWS_PER_GROUP = 16  # a filter on source skips row groups by their statistics
BYTES_PER_SHARD = 256 * 2**20


class ShardWriter:
    """Writes ``<folder>/<fold>-00000-of-0000N.parquet``; shards get their final names when closed.

    Rows are kept until a row group is full, so memory does not grow with the dataset.
    """

    def __init__(self, folder: Path, fold: str, features: Any):
        self._folder, self._fold = folder, fold
        self._schema = features.arrow_schema
        self._rows: list[dict[str, object]] = []
        self._writer: Any = None
        self._paths: list[Path] = []
        self.count = 0

    def add(self, row: dict[str, object]) -> None:
        """Append one row in its published form (``records.as_row``)."""
        self._rows.append(row)
        self.count += 1
        if len(self._rows) >= ROWS_PER_GROUP:
            self._flush()

    def close(self) -> list[Path]:
        """Write what is left, check the row count, give the shards their names and return them."""
        import pyarrow.parquet as pq

        self._flush()
        self._close_shard()
        written = sum(pq.ParquetFile(path).metadata.num_rows for path in self._paths)
        if written != self.count:
            raise OSError(f"{self._folder}: {written} rows on disk, {self.count} written")
        names = [f"{self._fold}-{n:05d}-of-{len(self._paths):05d}.parquet" for n in range(len(self._paths))]
        return [path.rename(self._folder / name) for path, name in zip(self._paths, names, strict=True)]

    def abandon(self) -> None:
        """Close the open file without finishing; the caller removes the folder."""
        self._rows.clear()
        self._close_shard()

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self._rows:
            return
        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._paths.append(self._folder / f"{self._fold}-{len(self._paths):05d}.writing")
            self._writer = pq.ParquetWriter(self._paths[-1], self._schema, compression="zstd")
        # images are PNG already: only the small columns gain from compression
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows.clear()
        if self._paths[-1].stat().st_size > BYTES_PER_SHARD:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
