"""What the Hub double remembers: repositories as git would have them, large files, discussions and pull requests."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

MAIN = "refs/heads/main"
POINTER_BYTES = 134  # of an LFS pointer file, about
CLOCK = datetime(2026, 1, 1, tzinfo=timezone.utc)  # moves by a second with every event: no test depends on the hour


class Refused(Exception):
    """An answer that is an HTTP error."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass(frozen=True)
class Entry:
    """A file of a revision: its bytes, or the SHA-256 of a large file."""

    size: int
    blob: str  # SHA-1 as git names it
    content: bytes | None = None
    sha256: str | None = None

    @classmethod
    def of(cls, content: bytes) -> Entry:
        return cls(len(content), git_sha1(content), content)

    @classmethod
    def large(cls, sha256: str, size: int) -> Entry:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return cls(size, git_sha1(pointer), None, sha256)

    def as_json(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "file", "path": path, "size": self.size, "oid": self.blob}
        if self.sha256 is not None:
            found["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": POINTER_BYTES}
        return found


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


Tree = Mapping[str, Entry]


@dataclass(frozen=True)
class Commit:
    oid: str
    tree: Tree
    parent: str | None
    title: str
    date: str


@dataclass
class Discussion:
    num: int
    title: str
    author: str
    created: str
    is_pull_request: bool
    base: str  # commit of main at which a pull request was opened
    status: str = "open"
    merge_commit: str | None = None
    events: list[dict[str, Any]] = field(default_factory=list)


class Repo:
    """One repository: commits, references, discussions."""

    def __init__(self, kind: str, name: str, private: bool, creator: str):
        self.kind, self.name, self.private = kind, name, private
        self.gated = False  # readers must be in ``accepted``
        self.accepted: set[str] = set()
        self.sdk: str | None = None  # of a Space
        self.commits: dict[str, Commit] = {}
        self.refs: dict[str, str] = {}
        self.discussions: dict[int, Discussion] = {}
        self._ids = itertools.count(1)
        attributes = (
            b"*.parquet filter=lfs diff=lfs merge=lfs -text\n*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
        )
        self.refs[MAIN] = self._store({".gitattributes": Entry.of(attributes)}, None, "initial commit")
        self.creator = creator

    def now(self) -> str:
        return (CLOCK + timedelta(seconds=next(self._ids))).strftime("%Y-%m-%dT%H:%M:%S.000Z")

    def ref_of(self, revision: str) -> str | None:
        """Return the full name of a branch, tag or pull request."""
        names = (f"refs/heads/{revision}", f"refs/tags/{revision}", revision)
        return next((name for name in names if name in self.refs), None)

    def commit_of(self, revision: str) -> Commit:
        name = self.ref_of(revision)
        oid = self.refs[name] if name else revision
        if oid not in self.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def entry(self, revision: str, path: str) -> Entry:
        tree = self.commit_of(revision).tree
        if path not in tree:
            raise Refused(404, f'"{path}" does not exist on "{revision}"', "EntryNotFound")
        return tree[path]

    def commit(self, revision: str, changes: Mapping[str, Entry | None], title: str, parent: str | None) -> Commit:
        """Move a branch or open pull request by one commit; ``None`` deletes."""
        head = self.commit_of(revision)
        name = self.ref_of(revision)
        if name is None or name.startswith("refs/tags/"):
            raise Refused(400, "commits go to branches")
        if name.startswith("refs/pr/") and self.discussions[int(name.split("/")[2])].status not in ("draft", "open"):
            raise Refused(403, "this pull request is closed")
        if parent is not None and parent != head.oid:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(head.tree)
        for path, entry in changes.items():
            if entry is not None:
                tree[path] = entry
            elif tree.pop(path, None) is None:
                raise Refused(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        self.refs[name] = self._store(tree, head.oid, title)
        if name.startswith("refs/pr/"):
            data = {"subject": title, "oid": self.refs[name]}
            self.event(self.discussions[int(name.split("/")[2])], "commit", head.title, data)
        return self.commits[self.refs[name]]

    def _store(self, tree: Tree, parent: str | None, title: str) -> str:
        date = self.now()
        listing = "".join(f"{path} {entry.blob}\n" for path, entry in sorted(tree.items()))
        oid = hashlib.sha1(f"{parent} {title} {date}\n{listing}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, tree, parent, title, date)
        return oid

    def discuss(self, title: str, text: str, author: str, *, pull_request: bool) -> Discussion:
        num = len(self.discussions) + 1
        status = "draft" if pull_request else "open"
        found = Discussion(num, title, author, self.now(), pull_request, self.refs[MAIN], status)
        self.discussions[num] = found
        if pull_request:
            self.refs[f"refs/pr/{num}"] = self.refs[MAIN]
        self.comment(found, author, text)
        return found

    def event(self, discussion: Discussion, kind: str, author: str, data: Mapping[str, Any]) -> dict[str, Any]:
        number = f"{len(discussion.events):08x}"
        event = {"id": number, "type": kind, "createdAt": self.now(), "author": {"name": author}, "data": dict(data)}
        discussion.events.append(event)
        return event

    def comment(self, discussion: Discussion, author: str, text: str) -> dict[str, Any]:
        data = {"edited": False, "hidden": False, "latest": {"raw": text, "html": "", "updatedAt": discussion.created}}
        return self.event(discussion, "comment", author, data)

    def set_status(self, discussion: Discussion, status: str, author: str) -> dict[str, Any]:
        if discussion.status == "merged":
            raise Refused(409, "this pull request is merged")
        discussion.status = status
        return self.event(discussion, "status-change", author, {"status": status})

    def conflicts(self, discussion: Discussion) -> list[str]:
        """Paths that both main and the pull request have changed since it was opened, and differently."""
        base = self.commits[discussion.base].tree
        ours, theirs = self.commit_of("main").tree, self.commit_of(f"refs/pr/{discussion.num}").tree
        paths = {*base, *ours, *theirs}
        return sorted(path for path in paths if len({ours.get(path), theirs.get(path), base.get(path)}) == 3)

    def merge(self, discussion: Discussion, author: str) -> None:
        if not discussion.is_pull_request or discussion.status != "open":
            raise Refused(409 if discussion.status == "merged" else 403, f"a {discussion.status} one cannot be merged")
        if self.conflicts(discussion):
            raise Refused(409, "conflicts with the main branch")
        base = self.commits[discussion.base].tree
        main, theirs = self.commit_of("main"), self.commit_of(f"refs/pr/{discussion.num}").tree
        tree = dict(main.tree)
        for path in {*base, *theirs}:
            if base.get(path) != theirs.get(path):
                if path in theirs:
                    tree[path] = theirs[path]
                else:
                    tree.pop(path, None)
        self.refs[MAIN] = self._store(tree, main.oid, f"{discussion.title} (#{discussion.num})")
        discussion.merge_commit = self.refs[MAIN]
        discussion.status = "merged"
        self.event(discussion, "status-change", author, {"status": "merged"})

    def discussion_json(self, discussion: Discussion, *, details: bool) -> dict[str, Any]:
        found: dict[str, Any] = {
            "num": discussion.num,
            "title": discussion.title,
            "author": {"name": discussion.author},
            "createdAt": discussion.created,
            "status": discussion.status,
            "isPullRequest": discussion.is_pull_request,
            "repo": {"name": self.name, "type": self.kind},
        }
        if details:
            found["events"] = discussion.events
            if discussion.is_pull_request:
                conflicts = [] if discussion.status == "merged" else self.conflicts(discussion)
                found["changes"] = {"base": MAIN, "mergeCommitId": discussion.merge_commit}
                found |= {"filesWithConflicts": conflicts, "diff": self.diff(discussion)}
        return found

    def diff(self, discussion: Discussion) -> str:
        """What a pull request changes, as the head lines of a git diff; the Hub sends the changed lines as well."""
        base = self.commits[discussion.base].tree
        theirs = self.commit_of(f"refs/pr/{discussion.num}").tree
        lines = []
        for path in sorted({*base, *theirs}):
            if base.get(path) != theirs.get(path):
                kind = "new file mode 100644\n" if path not in base else ""
                kind = "deleted file mode 100644\n" if path not in theirs else kind
                lines.append(f"diff --git a/{path} b/{path}\n{kind}")
        return "".join(lines)

    def info_json(self, revision: str) -> dict[str, Any]:
        commit = self.commit_of(revision)
        return {
            "_id": self.name,
            "id": self.name,
            "author": self.name.split("/")[0],
            "sha": commit.oid,
            "private": self.private,
            "gated": "auto" if self.gated else False,
            **({"sdk": self.sdk} if self.kind == "space" else {}),
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "lastModified": commit.date,
            "createdAt": CLOCK.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            "siblings": [{"rfilename": path} for path in sorted(commit.tree)],
        }
