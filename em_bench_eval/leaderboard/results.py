"""The results table: one document for each submission, and all of them as ``results.json`` and ``results.parquet``.

``results/<submission hash>.json`` is the truth; the tables are derived from it: ``results.json`` has the identity,
provenance and headline scores of each row, ``results.parquet`` every score and interval, and the documents themselves.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from em_bench_eval.errors import InputError
from em_bench_eval.leaderboard.pulls import provenance_of
from em_bench_eval.leaderboard.result_document import check_result, read_result
from em_bench_eval.row import ROW_GROUPS, ROW_KEYS, to_json
from em_bench_eval.whole_file import write_whole

TABLE_FORMAT = "em-organelle-wild results v1"
FOLDER, TABLE, PARQUET = "results", "results.json", "results.parquet"
TEXTS = ("model", "team", "paper", "code", "prompts", "compute", "form", "contact", "notes", "split_hash")
AGNOSTIC_KEYS = tuple(key.replace("macro/", "any/") for key in ROW_KEYS if key.startswith("macro/"))
PASSING = ("timings", "date", "software", "provenance")  # of a document: two scorings of the same differ in them

Document = dict[str, Any]


class Results:
    """Result documents by the hash of their submission."""

    def __init__(self, documents: Iterable[Document] = ()):
        self.documents: dict[str, Document] = {}
        for document in documents:
            self.documents[document["submission"]["hash"]] = document

    def __len__(self) -> int:
        return len(self.documents)

    def of_pull(self, number: int) -> Document | None:
        """Return the result of a pull request."""
        return next((one for one in self.documents.values() if provenance_of(one).get("pull_request") == number), None)

    def of_folder(self, path: str) -> Document | None:
        """Return the result of the submission in a folder of the repository."""
        return next((one for one in self.documents.values() if provenance_of(one).get("path") == path), None)

    def put(self, document: Document) -> bool:
        """Add a result, in place of one of the same hash, folder or pull request; returns whether that changes any.

        A second scoring of the same submission that came to the same result changes nothing.
        """
        check_result(document, "a new result")
        own, origin = document["submission"]["hash"], provenance_of(document)
        known = self.documents.get(own)
        if known is not None and lasting(known) == lasting(document):
            there = provenance_of(known)
            if all(there.get(name) == value for name, value in origin.items() if name != "scored_by"):
                return False
        for name, value in origin.items():
            if name in ("path", "pull_request") and value:
                for old in [old for old, one in self.documents.items() if provenance_of(one).get(name) == value]:
                    del self.documents[old]
        self.documents[own] = json.loads(to_json(document))
        return True

    def drop(self, own: str) -> bool:
        """Remove the result of a submission hash; returns whether there was one."""
        return self.documents.pop(own, None) is not None

    def rows(self) -> list[Document]:
        """Return the rows of the table, ordered by configuration, rank or not, headline score and hash."""
        return sorted((row_of(one) for one in self.documents.values()), key=_order)

    def digest(self) -> str:
        """Return a SHA-256 over all documents."""
        whole = hashlib.sha256()
        for name, content in sorted(self.document_files().items()):
            whole.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
        return whole.hexdigest()

    def document_files(self) -> dict[str, bytes]:
        """Return the files of the documents: path -> content."""
        return {f"{FOLDER}/{own}.json": to_json(one).encode() for own, one in self.documents.items()}

    def table_files(self) -> dict[str, bytes]:
        """Return ``results.json`` and ``results.parquet``."""
        table = to_json({"format": TABLE_FORMAT, "rows": self.rows()})
        return {TABLE: table.encode(), PARQUET: self._parquet()}

    def _parquet(self) -> bytes:
        import pyarrow as pa
        import pyarrow.parquet as pq

        number = pa.float64()
        score = pa.struct(
            [("group", pa.string()), ("key", pa.string()), ("value", number), ("low", number), ("high", number)]
        )
        provenance = pa.struct(
            [("repository", pa.string()), ("pull_request", pa.int64())]
            + [(name, pa.string()) for name in ("author", "commit", "path", "tree", "scored_by")]
        )
        texts = [(name, pa.string()) for name in _FLAT]
        schema = pa.schema(
            [
                *texts,
                *((name, pa.bool_()) for name in ("ranked", "class_agnostic")),
                ("images", pa.int64()),
                ("training_data", pa.list_(pa.string())),
                ("provenance", provenance),
                ("scores", pa.list_(score)),
                ("document", pa.string()),
            ]
        )
        rows = []
        for row in self.rows():
            document = self.documents[row["hash"]]
            rows.append({**row, "scores": _all_scores(document), "document": to_json(document)})
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema), buffer, compression="zstd")
        return buffer.getvalue()


_FLAT = (
    *("hash", *TEXTS, "config", "split", "metric_version", "settings_hash"),
    *("dataset", "dataset_fingerprint", "dataset_revision", "software", "date"),
)


def lasting(document: Mapping[str, Any]) -> str:
    """Return a document without what differs between two scorings of the same."""
    return json.dumps({key: value for key, value in document.items() if key not in PASSING}, sort_keys=True)


def row_of(document: Mapping[str, Any]) -> Document:
    """Return the row of ``results.json`` of a result document."""
    submission, dataset = document["submission"], document["dataset"]
    keys = AGNOSTIC_KEYS if document["class_agnostic"] else ROW_KEYS
    return {
        "hash": submission["hash"],
        **{name: str(submission.get(name) or "") for name in TEXTS},
        "training_data": list(submission["training_data"]),
        **{name: document[name] for name in ("ranked", "class_agnostic", "config", "split")},
        **{name: str(document[name]) for name in ("metric_version", "settings_hash", "date")},
        "images": int(dataset["images"]),
        "dataset": dataset["name"],
        "dataset_fingerprint": dataset["fingerprint"],
        "dataset_revision": dataset["revision"],
        "software": json.dumps(document["software"], sort_keys=True),
        "provenance": dict(provenance_of(document)) or None,
        "scores": {
            group: {key: document["scores"][group].get(key) for key in keys}
            for group in ROW_GROUPS
            if group in document["scores"]
        },
    }


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    key = "any/dice__instance" if row["class_agnostic"] else "macro/dice__instance"
    headline = row["scores"]["all"].get(key)
    return (row["config"], not row["ranked"], headline is None, -(headline or 0.0), row["hash"])


def _all_scores(document: Mapping[str, Any]) -> list[Document]:
    found = []
    for group, values in document["scores"].items():
        intervals = document["intervals"][group].get("values", {})
        for key, value in values.items():
            low, high = intervals.get(key) or (None, None)
            found.append({"group": group, "key": key, "value": value, "low": low, "high": high})
    return found


def documents_in(parquet: bytes) -> dict[str, str]:
    """Return submission hash -> text of the document in a ``results.parquet``; empty if it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(parquet), columns=["hash", "document"])
    except (pa.ArrowException, OSError, ValueError, KeyError):
        return {}
    return dict(zip(table["hash"].to_pylist(), table["document"].to_pylist(), strict=True))


def parse_document(text: str, where: str) -> Document | None:
    """Read a document of the table; a damaged one is named on stderr and left out: it will be scored again."""
    try:
        document = json.loads(text)
        check_result(document, where)
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # InputError is a ValueError
        print(f"left out, a damaged result: {where}: {str(error).splitlines()[0]}", file=sys.stderr)
        return None
    return dict(document)


def read_folder(folder: str | os.PathLike[str]) -> Results:
    """Read ``results/*.json`` of a local folder; no folder is an empty table. Raises ``InputError`` if damaged."""
    return Results(read_result(path) for path in sorted((Path(folder) / FOLDER).glob("*.json")))


def write_folder(folder: str | os.PathLike[str], results: Results) -> None:
    """Write documents, then the tables, each file at once; documents that are gone are removed last."""
    root = Path(folder)
    files = {**results.document_files(), **results.table_files()}
    for name, content in files.items():
        write_file(root / name, content)
    for path in (root / FOLDER).glob("*.json"):
        if f"{FOLDER}/{path.name}" not in files:
            path.unlink()


def write_file(path: Path, content: bytes) -> None:
    """Write a file under another name, then move it to its place; nothing happens if it has this content."""
    if path.is_file() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_whole(path, lambda partial: partial.write_bytes(content))
    except OSError as error:
        raise InputError(f"cannot write {path}", found=error.strerror) from error
