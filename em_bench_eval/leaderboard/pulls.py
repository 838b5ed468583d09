"""The submissions repository on the Hub: its open pull requests, what each changes, and what can be done to them.

Everything here reads listings only; ``fetching`` downloads. Every call that changes something looks first whether it
was done already, so that it can be repeated after a kill or a lost answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from em_bench_eval.hub_faults import WAITS_S, patiently

T = TypeVar("T")

ROOT = "submissions"  # folder of the repository; below it <team>/<name>/
PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
FOLDER = re.compile(rf"{ROOT}/{PART}/{PART}")
MOST_CHANGES = 20  # listed of a pull request; one is what a submission has
DELETED = "deleted"  # the author of a pull request whose account is gone


@dataclass(frozen=True)
class Comment:
    """A comment under a pull request."""

    author: str
    text: str


@dataclass(frozen=True)
class Pull:
    """A pull request; ``head`` is the commit that ``refs/pr/<number>`` points to."""

    number: int
    author: str
    title: str
    status: str  # "open", "draft", "merged", "closed"
    head: str
    conflicts: bool
    comments: tuple[Comment, ...]
    merge_commit: str | None = None


class Submissions:
    """The dataset repository that takes submissions and holds the results."""

    def __init__(self, api: Any, repo_id: str, waits_s: Sequence[float] = WAITS_S):
        self.api, self.repo_id, self.waits_s = api, repo_id, waits_s
        self.repo = {"repo_id": repo_id, "repo_type": "dataset"}

    def patiently(self, what: str, attempt: Callable[[], T]) -> T:
        """Repeat after faults that pass; ``attempt`` looks before it acts."""
        return patiently(attempt, what, self.waits_s)

    def secret(self) -> str | None:
        """Return the token, to keep it out of what is printed."""
        from huggingface_hub import get_token

        return self.api.token if isinstance(self.api.token, str) else get_token()

    def me(self) -> str:
        """Return the name of the account whose token we use."""
        return str(self.patiently("asking who we are", self.api.whoami)["name"])

    def head(self, revision: str = "main") -> str:
        """Return the commit of a branch or of ``refs/pr/<number>``."""
        return str(self.patiently("reading a revision", lambda: self.api.repo_info(**self.repo, revision=revision)).sha)

    def open_pulls(self) -> list[int]:
        """Return the numbers of the open pull requests, oldest first; drafts are not ready and not listed."""

        def attempt() -> list[int]:
            found = self.api.get_repo_discussions(**self.repo, discussion_type="pull_request", discussion_status="open")
            return sorted(int(one.num) for one in found if one.is_pull_request and one.status == "open")

        return self.patiently("listing pull requests", attempt)

    def pull(self, number: int) -> Pull:
        """Read a pull request with its comments."""

        def attempt() -> Pull:
            found = self.api.get_discussion_details(discussion_num=number, **self.repo)
            comments = [event for event in found.events if event.type == "comment" and not event.hidden]
            return Pull(
                number=number,
                author=str(found.author),
                title=str(found.title),
                status=str(found.status),
                head=str(self.api.repo_info(**self.repo, revision=f"refs/pr/{number}").sha),
                conflicts=bool(found.conflicting_files) and found.status == "open",
                comments=tuple(Comment(str(event.author), str(event.content)) for event in comments),
                merge_commit=found.merge_commit_oid,
            )

        return self.patiently(f"reading pull request {number}", attempt)

    def children(self, revision: str, folder: str) -> dict[str, Any]:
        """Return what lies directly in a folder, by path; nothing if there is no such folder."""

        def attempt() -> dict[str, Any]:
            entries = self.api.list_repo_tree(**self.repo, path_in_repo=folder or None, revision=revision)
            return {str(entry.path): entry for entry in entries}

        from huggingface_hub.errors import EntryNotFoundError

        try:
            return self.patiently("listing a folder", attempt)
        except EntryNotFoundError:
            return {}

    def files(self, revision: str, folder: str) -> dict[str, Any]:
        """Return all files below a folder: path relative to it -> ``RepoFile``; nothing if there is no such folder."""

        def attempt() -> dict[str, Any]:
            entries = self.api.list_repo_tree(**self.repo, path_in_repo=folder, revision=revision, recursive=True)
            return {str(one.path).removeprefix(f"{folder}/"): one for one in entries if not is_folder(one)}

        from huggingface_hub.errors import EntryNotFoundError

        try:
            return self.patiently("listing files", attempt)
        except EntryNotFoundError:
            return {}

    def folders(self, revision: str) -> dict[str, str]:
        """Return the folders of all submissions of a revision: path -> git id of its content."""
        teams = [path for path, entry in self.children(revision, ROOT).items() if is_folder(entry)]
        return {
            path: content_id(entry)
            for team in teams
            for path, entry in self.children(revision, team).items()
            if is_folder(entry)
        }

    def folder_id(self, revision: str, folder: str) -> str:
        """Return the git id of a folder's content, "" if there is no such folder."""
        entry = self.children(revision, folder.rpartition("/")[0]).get(folder)
        return content_id(entry) if entry is not None and is_folder(entry) else ""

    def changes(self, base: str, head: str) -> list[str]:
        """Return which paths differ between two commits; of a submission its folder, not the files in it.

        Folders of equal git id are not listed, so the cost is that of the difference. The list ends after
        ``MOST_CHANGES``.
        """
        waiting, found = [""], list[str]()
        while waiting and len(found) <= MOST_CHANGES:
            folder = waiting.pop()
            before, after = self.children(base, folder), self.children(head, folder)
            for path in sorted({*before, *after}):
                entries = [entry for entry in (before.get(path), after.get(path)) if entry is not None]
                if len(entries) == 2 and content_id(entries[0]) == content_id(entries[1]):
                    continue
                is_submission = path.startswith(f"{ROOT}/") and path.count("/") == 2
                if is_submission or not all(map(is_folder, entries)):
                    found.append(path)
                if not is_submission and any(map(is_folder, entries)):
                    waiting.append(path)
        return sorted(found)[: MOST_CHANGES + 1]

    def base_of(self, pull: Pull) -> str:
        """Return the newest commit of the main branch that a pull request contains: git would merge from there."""
        ours = self._history("main")
        theirs = set(self._history(pull.head))
        return next((commit for commit in ours if commit in theirs), ours[-1])

    def is_same(self, one: str, other: str, path: str) -> bool:
        """Has a path the same content in two commits, or is in neither?"""
        found = [self._entry(revision, path) for revision in (one, other)]
        return len({None if entry is None else content_id(entry) for entry in found}) == 1

    def _history(self, revision: str) -> list[str]:
        def attempt() -> list[str]:
            return [str(one.commit_id) for one in self.api.list_repo_commits(**self.repo, revision=revision)]

        return self.patiently("reading the history", attempt)

    def comment(self, number: int, text: str, is_there: Callable[[Pull], bool]) -> bool:
        """Write a comment unless ``is_there`` finds it; returns whether it was written."""

        def attempt() -> bool:
            if is_there(self.pull(number)):
                return False
            self.api.comment_discussion(discussion_num=number, comment=text, **self.repo)
            return True

        return self.patiently("commenting", attempt)

    def set_status(self, number: int, status: str) -> None:
        """Open or close a pull request, unless it is so or merged."""

        def attempt() -> None:
            if self.pull(number).status not in (status, "merged"):
                self.api.change_discussion_status(discussion_num=number, new_status=status, **self.repo)

        self.patiently(f"setting a pull request to {status}", attempt)

    def merge(self, number: int) -> Pull:
        """Merge a pull request unless it is merged; returns it as it is then."""

        def attempt() -> Pull:
            if self.pull(number).status == "open":
                self.api.merge_pull_request(discussion_num=number, **self.repo)
            return self.pull(number)

        return self.patiently("merging", attempt)

    def commit(self, operations: Sequence[Any], title: str, parent: str) -> str:
        """Commit to the main branch as it was at ``parent``; raises 412 if it has moved on. Not repeated."""
        made = self.api.create_commit(
            **self.repo, operations=list(operations), commit_message=title, revision="main", parent_commit=parent
        )
        return str(made.oid)

    def restore(self, paths: Sequence[str], good: str) -> None:
        """Give files of the main branch the content that they had in the commit ``good``."""
        from huggingface_hub import CommitOperationCopy, CommitOperationDelete

        def attempt() -> None:
            head = str(self.api.repo_info(**self.repo, revision="main").sha)
            operations: list[Any] = []
            for path in paths:
                before, now = self._entry(good, path), self._entry(head, path)
                if before is None and now is not None:
                    operations.append(CommitOperationDelete(path, is_folder=is_folder(now)))
                elif before is not None and (now is None or content_id(now) != content_id(before)):
                    operations.append(CommitOperationCopy(path, path, src_revision=good))
            if operations:
                self.commit(operations, f"Restore what a merge has changed beside its submission ({good[:12]})", head)

        self.patiently("restoring files", attempt)

    def _entry(self, revision: str, path: str) -> Any:
        return next(iter(self.api.get_paths_info(**self.repo, paths=[path], revision=revision)), None)


def is_folder(entry: Any) -> bool:
    """Is this entry of a listing a folder?"""
    return hasattr(entry, "tree_id")


def content_id(entry: Any) -> str:
    """Return the git id of a file's or folder's content."""
    return str(entry.tree_id if is_folder(entry) else entry.blob_id)


def provenance_of(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return where a result's submission came from; empty for one that was scored without a Hub."""
    found = document.get("provenance")
    return found if isinstance(found, Mapping) else {}
