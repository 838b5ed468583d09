"""Whether a pull request may be read at all, judged by listings: what it changes, whose it is, names and sizes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from em_bench_eval.leaderboard.fetching import Limits, check_listing, refusal
from em_bench_eval.leaderboard.pulls import DELETED, FOLDER, MOST_CHANGES, ROOT, Pull, Submissions, provenance_of
from em_bench_eval.leaderboard.results import Document, Results
from em_bench_eval.leaderboard.verdict import Verdict

TOLD = ("submission.yaml", "prediction.json", "README.md", "LICENSE")  # of a submission, but no predictions
OTHER_NAME = "submit under another name: em-bench submit --name TEAM/NAME"


def admit(hub: Submissions, pull: Pull, results: Results, limits: Limits) -> Verdict | dict[str, Any] | None:
    """Judge a pull request by what it changes.

    Returns where its submission is (``pull_request, author, path, commit, tree``) if it may be downloaded, a verdict if
    not, and ``None`` if it touches no submission: then it is something between people.
    """
    if pull.conflicts:
        fault = ("pull request", "conflicts with the main branch", "files that nobody else has changed")
        return refused_pull(fault, OTHER_NAME)
    changed = hub.changes(hub.base_of(pull), pull.head)
    if not any(f"{path}/".startswith(f"{ROOT}/") for path in changed):
        return None
    if len(changed) != 1 or not FOLDER.fullmatch(changed[0]):
        shown = ", ".join(changed[:5]) + (", ..." if len(changed) > 5 else "")
        count = f"more than {MOST_CHANGES}" if len(changed) > MOST_CHANGES else str(len(changed))
        fault = ("pull request", f"changes {count}: {shown}", "one folder, submissions/<team>/<name>")
        return refused_pull(fault, "em-bench submit opens a pull request that changes nothing else")
    path = changed[0]
    tree = hub.folder_id(pull.head, path)
    if not tree:
        fault = ("pull request", f"removes {path}", "a submission")
        return refused_pull(fault, "ask the maintainers to withdraw a submission")
    if hub.folder_id(hub.head(), path) and _owner(path, results) != pull.author:
        fault = (path, "is somebody else's, or was merged by hand", "a new folder, or one that you submitted")
        return refused_pull(fault, OTHER_NAME)
    files = hub.files(pull.head, path)
    verdict = check_listing({name: int(entry.size) for name, entry in files.items()}, limits)
    origin = {"pull_request": pull.number, "author": pull.author, "path": path, "commit": pull.head, "tree": tree}
    return origin if verdict is None else verdict


def refused_pull(fault: tuple[str, str, str], remedy: str) -> Verdict:
    """Return a verdict on a pull request for one fault: where, what was found, what was expected."""
    return refusal("pull-request", "the pull request", remedy, fault)


def _owner(path: str, results: Results) -> str | None:
    document = results.of_folder(path)
    owner = None if document is None else provenance_of(document).get("author")
    return None if owner == DELETED else owner


def content_of(files: Mapping[str, Any]) -> str:
    """Hash the predictions in a listing, without what is said about them."""
    lines = (f"{name} {entry.blob_id}\n" for name, entry in sorted(files.items()) if name not in TOLD)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def copied_from(document: Document, results: Results) -> Verdict | None:
    """Refuse predictions that were submitted before under another name: merged ones are public."""
    own = provenance_of(document)
    for other in results.documents.values():
        there = provenance_of(other)
        if there.get("content") == own["content"] and there.get("path") != own["path"]:
            found = f"the predictions of {there.get('path')} (pull request {there.get('pull_request')})"
            fault = (str(own["path"]), found, "predictions of your own, once")
            return refused_pull(fault, "to correct a submission, push to its own folder")
    return None
