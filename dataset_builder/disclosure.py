"""Labels that are to be private must not be readable in the repository that hides them: looked up before uploading.

A repository keeps every revision, and a pull request stays readable after it is closed. Each push looks at the main
branch and at the pull requests that were not merged; as every earlier push did the same, that covers the history that
was made with this program.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dataset_builder.private_labels import KEY
from em_bench_eval.errors import InputError
from em_bench_eval.hub_faults import WAITS_S, patiently, status_of
from em_bench_eval.hub_upload import Repository

STATS = "stats.json"


def check_history(api: Any, to: Repository, private: Collection[str], waits_s: Sequence[float] = WAITS_S) -> None:
    """Raise ``InputError`` if the repository shows labels that are to be private, or hides ones that would be shown."""
    repo = {"repo_id": to.repo_id, "repo_type": to.repo_type}
    patiently(api.whoami, "asking who we are", waits_s)
    if not patiently(lambda: api.repo_exists(**repo), "looking for the repository", waits_s):
        return
    was_private = set(_private_in(api, to, "main", waits_s))
    if was_private - set(private):
        raise InputError(
            f"{to.repo_id} keeps labels of {', '.join(sorted(was_private))} private, and this would show them",
            expected=f"--private-labels {' '.join(sorted(was_private))}",
            remedy="say so again, or publish under another name",
        )
    if not private:
        return
    shown = re.compile(rf"data/[^/]+/({'|'.join(map(re.escape, private))})-.*\.parquet")

    def unmerged() -> list[str]:
        found = api.get_repo_discussions(**repo, discussion_type="pull_request")
        return [f"refs/pr/{pull.num}" for pull in found if pull.status != "merged"]

    for revision in ["main", *patiently(unmerged, "listing pull requests", waits_s)]:
        names = patiently(partial(api.list_repo_files, **repo, revision=revision), "listing files", waits_s)
        has_rows = any(shown.fullmatch(name) for name in names)
        if has_rows and set(private) - set(_private_in(api, to, revision, waits_s)):
            where = "its main branch" if revision == "main" else f"pull request {revision.rpartition('/')[2]}"
            raise InputError(
                f"labels of {', '.join(private)} are in {to.repo_id} already, and would stay readable in its history",
                found=f"rows with labels in {where}",
                expected="a repository that never held them",
                remedy="publish under another name, or delete that repository first",
            )


def _private_in(api: Any, to: Repository, revision: str, waits_s: Sequence[float]) -> list[str]:
    """Return the folds whose labels a revision says are private; none if it does not say."""

    def read() -> list[str]:
        try:
            path = api.hf_hub_download(to.repo_id, STATS, repo_type=to.repo_type, revision=revision)
        except Exception as error:
            if status_of(error) == 404:
                return []
            raise
        try:
            return [str(fold) for fold in json.loads(Path(path).read_text(encoding="utf-8")).get(KEY, [])]
        except (ValueError, AttributeError):
            return []

    return patiently(read, "reading what is private", waits_s)
