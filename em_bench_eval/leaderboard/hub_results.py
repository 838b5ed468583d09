"""The results table in the submissions repository: read at one commit, changed by one commit, or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from em_bench_eval.errors import InputError
from em_bench_eval.hub_faults import is_passing, status_of
from em_bench_eval.leaderboard.pulls import Submissions
from em_bench_eval.leaderboard.results import FOLDER, PARQUET, TABLE, Results, documents_in, parse_document

ATTEMPTS = 8  # to commit while others do
PICTURES = "pictures"  # folder of the repository: <submission hash>.json.gz


def read_results(hub: Submissions, revision: str) -> Results:
    """Read the results of a commit. Documents come from ``results.parquet`` where it holds just these, in one file."""
    return _read(hub, revision, _listed(hub, revision))


def _listed(hub: Submissions, revision: str) -> dict[str, Any]:
    return {path: entry for path, entry in hub.children(revision, FOLDER).items() if path.endswith(".json")}


def _read(hub: Submissions, revision: str, listed: Mapping[str, Any]) -> Results:
    if not listed:
        return Results()
    held = documents_in(download(hub, revision, PARQUET) or b"")
    found = []
    for path, entry in sorted(listed.items()):
        text = held.get(Path(path).stem)
        if text is None or not _is_blob(text.encode(), entry):
            text = (download(hub, revision, path) or b"").decode("utf-8", errors="replace")
        document = parse_document(text, path)
        if document is not None and document["submission"]["hash"] == Path(path).stem:
            found.append(document)
    return Results(found)


def _is_blob(content: bytes, entry: Any) -> bool:
    return bool(entry.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())


def download(hub: Submissions, revision: str, path: str) -> bytes | None:
    """Return a file of the repository, ``None`` if there is no such file."""

    def attempt() -> bytes:
        return Path(hub.api.hf_hub_download(hub.repo_id, path, repo_type="dataset", revision=revision)).read_bytes()

    from huggingface_hub.errors import EntryNotFoundError

    try:
        return hub.patiently("downloading results", attempt)
    except EntryNotFoundError:
        return None


def change_results(
    hub: Submissions,
    change: Callable[[Results], bool],
    title: str,
    pictures: Mapping[str, bytes] | None = None,
) -> Results:
    """Change the table by one commit, whoever else does at the same time, and return it as it is then.

    Args:
        hub: the repository.
        change: changes a table as it just was read, and returns whether it did; called again if somebody else was
            faster, so it must depend on nothing else.
        title: of the commit.
        pictures: submission hash -> file with its pictures, sent in the same commit.

    Raises:
        InputError: others commit all the time.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    for attempt in range(ATTEMPTS):
        head = hub.head()
        listed = _listed(hub, head)
        results = _read(hub, head, listed)
        if not change(results):
            return results
        documents = results.document_files()
        files = {
            name: content
            for name, content in documents.items()
            if name not in listed or not _is_blob(content, listed[name])
        } | results.table_files()
        for own, content in (pictures or {}).items():
            if own in results.documents:
                files[f"{PICTURES}/{own}.json.gz"] = content
        gone = set(listed) - set(documents)
        gone |= {path for path in hub.children(head, PICTURES) if Path(path).name[:64] not in results.documents}
        operations: list[Any] = [CommitOperationAdd(name, content) for name, content in sorted(files.items())]
        operations += [CommitOperationDelete(name, is_folder=False) for name in sorted(gone)]
        try:
            hub.commit(operations, title, head)
        except Exception as error:
            overtaken = status_of(error) in (409, 412)
            if attempt == ATTEMPTS - 1 or not (overtaken or is_passing(error)):
                raise
            if not overtaken:  # its answer may be lost, and the commit made: the next round looks
                hub.patiently("waiting for the Hub", _once(error))
            continue
        return results
    raise InputError(
        f"{hub.repo_id} is changed by others all the time",
        found=f"{ATTEMPTS} attempts",
        remedy=f"look at {TABLE} there",
    )


def _once(error: Exception) -> Callable[[], None]:
    """Return what fails once with this error, so that ``patiently`` waits as it would."""
    errors = [error]

    def attempt() -> None:
        if errors:
            raise errors.pop()

    return attempt
