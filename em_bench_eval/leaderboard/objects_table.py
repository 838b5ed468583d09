"""``objects.csv`` or ``objects.json``: which organelle each instance is, for predictions that are label maps alone.

CSV: columns ``record_id`` (or ``volume_id``), ``id``, ``organelle`` and, if given, ``confidence``. JSON:
``{"<record id>": [{"id": 1, "organelle": "mito", "confidence": 0.9}, ...]}`` or ``{"<record id>": {"1": "mito"}}``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from em_bench_eval.leaderboard.forms import OBJECTS_FILES, ObjectEntry
from em_bench_eval.leaderboard.safe_read import MAX_OBJECTS, MAX_TEXT_BYTES, read_json, read_text
from em_bench_eval.leaderboard.verdict import Faults, printable
from em_bench_eval.schema import ORGANELLES

ITEM_COLUMNS = ("record_id", "volume_id", "image", "item")
Objects = dict[str, list[ObjectEntry]]
_SHARED = {name: name for name in ORGANELLES}  # one string for all rows


def read_objects(folder: Path, files: Mapping[str, int], faults: Faults) -> Objects:
    """Read the table that is there: image or volume -> its objects, unchecked."""
    name = next(name for name in OBJECTS_FILES if name in files)
    return _from_csv(folder / name, faults, name) if name.endswith(".csv") else _from_json(folder / name, faults, name)


def _from_csv(path: Path, faults: Faults, name: str) -> Objects:
    text = read_text(path, MAX_TEXT_BYTES, faults, name)
    found: Objects = {}
    if text is None:
        return found
    rows = csv.reader(io.StringIO(text, newline=""))
    header: list[str] = []
    try:
        header = [column.strip() for column in next(rows, [])]
        item_column = next((column for column in ITEM_COLUMNS if column in header), None)
        missing = [column for column in ("id", "organelle") if column not in header]
        if item_column is None or missing:
            shown = printable(", ".join(header), 100)
            faults.note("unreadable", f"{name} line 1", f"columns {shown}", "record_id, id, organelle, confidence")
            return found
        item, id_, organelle = (header.index(column) for column in (item_column, "id", "organelle"))
        confidence = header.index("confidence") if "confidence" in header else None
        for count, row in enumerate(rows):
            if count == MAX_OBJECTS:
                faults.note("unsafe", name, f"more than {MAX_OBJECTS:,} objects", f"at most {MAX_OBJECTS:,}")
                return found
            if not row:
                continue
            if len(row) != len(header):
                faults.note("unreadable", f"{name} line {rows.line_num}", f"{len(row)} fields", f"{len(header)} fields")
                continue
            sure = row[confidence].strip() if confidence is not None else ""
            entry = (row[id_].strip(), _shared(row[organelle].strip()), sure or None)
            found.setdefault(row[item].strip(), []).append(entry)
    except csv.Error as error:
        faults.note("unreadable", f"{name} line {rows.line_num}", error, "comma-separated values")
    return found


def _from_json(path: Path, faults: Faults, name: str) -> Objects:
    content = read_json(path, faults, name)
    found: Objects = {}
    if not isinstance(content, dict):
        if content is not None:
            faults.note("unreadable", name, f"a {type(content).__name__}", "keys (record ids) with lists of objects")
        return found
    count = 0
    for item, entries in content.items():
        count += len(entries) if isinstance(entries, (dict, list)) else 0
        if count > MAX_OBJECTS:
            faults.note("unsafe", name, f"more than {MAX_OBJECTS:,} objects", f"at most {MAX_OBJECTS:,}")
            return found
        if isinstance(entries, dict):
            found[item] = [(id_, organelle, None) for id_, organelle in entries.items()]
        elif isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries):
            found[item] = [_entry(entry) for entry in entries]
        else:
            faults.note("unreadable", f"{name}, {item}", type(entries).__name__, "a list of {id, organelle}")
    return found


def _entry(entry: Mapping[str, Any]) -> ObjectEntry:
    return entry.get("id"), entry.get("organelle"), entry.get("confidence")


def _shared(organelle: str) -> str:
    return _SHARED.get(organelle, organelle)


def note_unknown_items(objects: Objects, known: set[str], faults: Faults) -> None:
    """Note entries for images or volumes that were not submitted."""
    for item in objects:
        if item not in known:
            faults.note("extra", f"objects of {item}", "no label map of this name", "objects of what is submitted")
