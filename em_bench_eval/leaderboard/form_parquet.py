"""``predictions.parquet``: a row per image, with the columns that ``em-bench predict`` writes.

These are ``volume_id, axis, slice, offset`` (or ``record_id``), ``instances`` and ``objects``; types may be wider.
A cell of ``instances`` that names a path instead of holding bytes is refused: nothing outside the file is ever read.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from em_bench_eval.leaderboard.forms import Candidate, ObjectEntry, Wanted, shape_of
from em_bench_eval.leaderboard.items import Expected
from em_bench_eval.leaderboard.safe_read import MAX_IMAGES, MAX_OBJECTS, decode_labels, open_plain
from em_bench_eval.leaderboard.verdict import Faults
from em_bench_eval.schema import record_id

FILE = "predictions.parquet"
MAX_FOOTER_BYTES = 128 * 2**20
MAX_GROUP_BYTES = 2 * 2**30  # uncompressed, of one row group
ROWS_AT_ONCE = 4
_NAMING = ("volume_id", "axis", "slice", "offset")


class ParquetForm:
    """See ``forms.Form``."""

    def __init__(self, folder: Path, files: Mapping[str, int], expected: Expected | None, faults: Faults):
        self._expected = expected
        self.ids: list[str] = []
        self._parquet = _open(folder / FILE, files[FILE], faults)
        if self._parquet is None:
            return
        names = self._parquet.schema_arrow.names
        self._columns = [name for name in ("instances", "objects", "pixel_size_nm") if name in names]
        self._naming = ["record_id"] if "record_id" in names else [name for name in _NAMING if name in names]
        about = self._parquet.metadata
        self._starts = [0]
        for group in range(about.num_row_groups):
            self._starts.append(self._starts[-1] + about.row_group(group).num_rows)
        for place, row in enumerate(self._rows(range(about.num_row_groups), self._naming, 1024, faults)):
            self.ids.append(_name_of(row, place, faults))
        self._wanted = Wanted(self.ids, expected)

    def read(self, start: int, stop: int, faults: Faults) -> Iterator[Candidate]:
        """Decode ``ids[start:stop]``."""
        stop = min(stop, len(self.ids))
        if self._parquet is None or start >= stop:
            return
        first = bisect_right(self._starts, start) - 1
        last = bisect_right(self._starts, stop - 1)
        place = self._starts[first]
        for row in self._rows(range(first, last), self._columns, ROWS_AT_ONCE, faults):
            if start <= place < stop and self._wanted(place):
                candidate = self._candidate(self.ids[place], row, faults)
                if candidate is not None:
                    yield candidate
            place += 1

    def _rows(self, groups: range, columns: list[str], at_once: int, faults: Faults) -> Iterator[dict[str, Any]]:
        for group in groups:
            try:
                for batch in self._parquet.iter_batches(batch_size=at_once, row_groups=[group], columns=columns):
                    yield from batch.to_pylist()
            except Exception as error:  # whatever damaged pages make the decoder raise
                faults.note("unreadable", f"{FILE}, row group {group}", f"{type(error).__name__}: {error}", "Parquet")
                return

    def _candidate(self, name: str, row: Mapping[str, Any], faults: Faults) -> Candidate | None:
        cell = row["instances"]
        content = cell.get("bytes") if isinstance(cell, Mapping) else cell
        if not isinstance(content, bytes):
            path = isinstance(cell, Mapping) and cell.get("path")
            found = f"a path instead of bytes: {path}" if path else type(content).__name__
            faults.note("unreadable", name, found, "the bytes of a PNG in the column instances")
            return None
        labels = decode_labels(content, name, shape_of(name, self._expected), faults)
        if labels is None:
            return None
        entries = row["objects"]
        if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
            faults.note("unreadable", f"{name}, objects", type(entries).__name__, "a list of {id, organelle}")
            return None
        objects: list[ObjectEntry] = [
            (entry.get("id"), entry.get("organelle"), entry.get("confidence")) for entry in entries
        ]
        return Candidate(name, labels, objects, row.get("pixel_size_nm"))


def _open(path: Path, size: int, faults: Faults) -> Any:
    """Open a Parquet file whose footer is plausible; else note faults and return ``None``."""
    import pyarrow.parquet as pq

    try:
        file = os.fdopen(open_plain(path), "rb")
        file.seek(max(0, size - 8))
        tail = file.read(8)
        footer = int.from_bytes(tail[:4], "little")
        if len(tail) < 8 or tail[4:] != b"PAR1" or footer > size:
            faults.note("unreadable", FILE, "no Parquet footer", "a complete Parquet file")
            return None
        if footer > MAX_FOOTER_BYTES:
            faults.note("unsafe", FILE, f"a footer of {footer:,} bytes", f"at most {MAX_FOOTER_BYTES:,}")
            return None
        parquet = pq.ParquetFile(
            file, pre_buffer=False, thrift_string_size_limit=footer, thrift_container_size_limit=MAX_IMAGES * 8
        )
        about, names = parquet.metadata, parquet.schema_arrow.names
        problem = _columns_problem(names) or _size_problem(about)
    except Exception as error:  # whatever a damaged footer makes the decoder raise
        faults.note("unreadable", FILE, f"{type(error).__name__}: {error}", "a complete Parquet file")
        return None
    if problem:
        faults.note(*problem)
        return None
    return parquet


def _columns_problem(names: list[str]) -> tuple[str, str, str, str] | None:
    missing = [name for name in ("instances", "objects") if name not in names]
    if "record_id" not in names:
        missing += [name for name in _NAMING[:3] if name not in names]
    if missing:
        found = f"no column {', '.join(missing)}; there are {', '.join(names)}"
        return "unreadable", FILE, found, "volume_id, axis, slice, offset (or record_id), instances, objects"
    return None


def _size_problem(about: Any) -> tuple[str, str, str, str] | None:
    """Compare what the footer declares with what predictions can need."""
    if about.num_rows > MAX_IMAGES:
        return "unsafe", FILE, f"{about.num_rows:,} rows", f"at most {MAX_IMAGES:,}"
    objects = 0
    for group in range(about.num_row_groups):
        row_group = about.row_group(group)
        columns = [row_group.column(index) for index in range(row_group.num_columns)]
        declared = sum(column.total_uncompressed_size for column in columns)
        if declared > MAX_GROUP_BYTES:
            found = f"row group {group} of {declared / 2**30:.1f} GiB"
            return "unsafe", FILE, found, f"at most {MAX_GROUP_BYTES // 2**30} GiB: write fewer rows a group"
        objects += max((column.num_values for column in columns), default=0)
    if objects > MAX_OBJECTS + MAX_IMAGES:
        return "unsafe", FILE, f"{objects:,} objects", f"at most {MAX_OBJECTS:,}"
    return None


def _name_of(row: Mapping[str, Any], place: int, faults: Faults) -> str:
    """Name a row; what cannot be one is a fault, and gets a name that no image has."""
    name = row.get("record_id")
    if isinstance(name, str):
        return name
    volume_id, axis, index = row.get("volume_id"), row.get("axis"), row.get("slice")
    offset = row.get("offset") or (0, 0)
    whole = [index, *offset] if isinstance(offset, (list, tuple)) and len(offset) == 2 else [None]
    numbers = [number for number in whole if isinstance(number, int) and not isinstance(number, bool)]
    if isinstance(volume_id, str) and isinstance(axis, str) and len(numbers) == 3:
        return record_id(volume_id, axis, numbers[0], numbers[1:])
    found = f"volume_id {volume_id!r}, axis {axis!r}, slice {index!r}, offset {offset!r}"
    faults.note("unreadable", f"{FILE}, row {place}", found, "text, text, a whole number, two whole numbers")
    return f"\0{place}"
