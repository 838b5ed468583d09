"""Files to a Hugging Face repository, all or nothing.

The Hub can move a branch in one step only by merging a pull request, so that is how: the files go to a draft pull
request in several commits, are compared there with the local ones by content, and one merge shows them to the world.
The tag comes last. Killed at any moment, the same call continues: it finds its pull request by a fingerprint of the
content, asks the Hub what has arrived, and sends the rest.

What the Hub does not allow: merge, tag and visibility are three requests. A kill between them leaves a complete
revision without its tag, or a private one; the same call does the rest.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_bench_eval.errors import InputError
from em_bench_eval.hub_faults import WAITS_S, patiently, status_of

FILES_PER_COMMIT = 64  # the Hub advises 50 to 100
BYTES_PER_COMMIT = 4 * 2**30  # what a kill may cost at most is one file; smaller commits cost requests
KEPT = frozenset({".gitattributes"})  # the Hub's own, unless we send one
HASHING_THREADS = 4


@dataclass(frozen=True)
class LocalFile:
    """A file to upload and the hash of its content."""

    path: Path
    size: int
    sha256: str

    def equals(self, there: Any) -> bool:
        """Is it the file that a ``RepoFile`` of the Hub describes? Compares SHA-256, or SHA-1 of the git blob."""
        if self.size != there.size:
            return False
        if there.lfs is not None:
            return bool(there.lfs.sha256 == self.sha256)
        content = self.path.read_bytes()  # small: a regular git file
        return bool(there.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())


@dataclass(frozen=True)
class Repository:
    """Where to: ``repo_id`` is ``ORG/NAME``, ``repo_type`` is ``dataset``, ``model`` or ``space``."""

    repo_id: str
    repo_type: str
    public: bool = False
    space_sdk: str | None = None


@dataclass(frozen=True)
class Uploaded:
    """What is on the Hub now, after comparison with the local files."""

    commit: str
    url: str
    files: int
    lfs_files: int
    bytes: int
    sent_files: int  # of this call: fewer than ``files`` when a call continues or little has changed
    deleted_files: int


def hashed(files: Mapping[str, Path]) -> dict[str, LocalFile]:
    """Hash all files (path in the repository -> local path) with a progress bar."""
    from tqdm import tqdm

    sizes = {name: path.stat().st_size for name, path in files.items()}
    with (
        tqdm(total=sum(sizes.values()), desc="hashing", unit="B", unit_scale=True, file=sys.stderr) as bar,
        ThreadPoolExecutor(HASHING_THREADS) as pool,
    ):

        def digest(path: Path) -> str:
            found = hashlib.sha256()
            with path.open("rb") as content:
                while block := content.read(2**20):
                    found.update(block)
                    bar.update(len(block))
            return found.hexdigest()

        digests = list(pool.map(digest, files.values()))
    pairs = zip(files.items(), digests, strict=True)
    return {name: LocalFile(path, sizes[name], sha256) for (name, path), sha256 in pairs}


def fingerprint_of(files: Mapping[str, LocalFile]) -> str:
    """Hash names and contents of all files."""
    lines = "".join(f"{name} {files[name].sha256}\n" for name in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def upload(
    api: Any,
    to: Repository,
    files: Mapping[str, LocalFile],
    title: str,
    tag: str | None = None,
    waits_s: Sequence[float] = WAITS_S,
    *,
    delete_others: bool = True,
    initial: Collection[str] = (),
) -> Uploaded:
    """Make ``files`` the content of the repository's main branch, and tag it; other files there are deleted.

    Args:
        api: a ``huggingface_hub.HfApi``.
        to: the repository; created, private, if it is not there. It becomes public, if wanted, when all is done.
        files: path in the repository -> local file.
        title: of the pull request and the commit.
        tag: a new name for this content; it must not name other content.
        waits_s: seconds before each further attempt after a fault that passes.
        delete_others: False leaves files alone that are there and not in ``files``.
        initial: names in ``files`` that are sent only if there is no such file yet.

    Raises:
        InputError: the tag names other content, a public repository without ``to.public``, a conflict, a difference
            after the upload. The main branch is then as it was, unless the message says otherwise.
        Exception: those of the client; ``hub_faults.explained`` tells users what to do.
    """
    return Upload(api, to, files, title, tag, waits_s, delete_others, initial).run()


class Upload:
    """An upload at work; see ``upload``. ``leaderboard.sending`` sends submissions in steps of it."""

    def __init__(
        self,
        api: Any,
        to: Repository,
        files: Mapping[str, LocalFile],
        title: str,
        tag: str | None,
        waits_s: Sequence[float],
        delete_others: bool,
        initial: Collection[str],
    ):
        self.api, self.to, self.files, self.tag, self.waits_s = api, to, files, tag, waits_s
        self.delete_others, self.initial = delete_others, initial
        self.title = f"{title} [{fingerprint_of(files)}]"
        self.repo = {"repo_id": to.repo_id, "repo_type": to.repo_type}
        self.sent: set[str] = set()
        self.deleted: set[str] = set()

    def run(self) -> Uploaded:
        """Do what is left to do."""
        self.me = self._patiently("asking who we are", self.api.whoami)["name"]
        was_private = self._repository()
        if self._patiently("reading tags", self._tag_is_done):
            return self._finish(was_private)
        if self._patiently("listing files", lambda: self._todo("main")) != ([], []):
            number = self._patiently("opening a pull request", self._pull_request)
            self._fill(f"refs/pr/{number}")
            self._compare(f"refs/pr/{number}", f"nothing is visible yet: it is in pull request {number}")
            self._patiently("merging", lambda: self._merge(number))
        commit = self._patiently("reading the main branch", lambda: self._head("main"))
        self._compare(commit, f"the main branch is at {commit}")
        if self.tag is not None:
            self._patiently("tagging", lambda: self._tag(commit))
        return self._finish(was_private)

    def _patiently(self, what: str, attempt: Any) -> Any:
        return patiently(attempt, what, self.waits_s)

    def _repository(self) -> bool:
        """Create the repository, private, unless it is there; return whether it is private."""

        def create() -> Any:
            space = {"space_sdk": self.to.space_sdk} if self.to.space_sdk else {}
            self.api.create_repo(**self.repo, private=True, exist_ok=True, **space)
            return self.api.repo_info(**self.repo)

        private = bool(self._patiently("creating the repository", create).private)
        if not private and not self.to.public:
            raise InputError(
                f"{self.to.repo_id} is public",
                found="no --public",
                expected="a private repository, which is the default",
                remedy="say --public, or choose another name",
            )
        return private

    def _listing(self, revision: str) -> dict[str, Any]:
        from huggingface_hub.hf_api import RepoFile

        entries = self.api.list_repo_tree(**self.repo, revision=revision, recursive=True)
        kept = KEPT - set(self.files)
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile) and entry.path not in kept}

    def _todo(self, revision: str) -> tuple[list[str], list[str]]:
        """Return which files of a revision are to be sent, and which to be deleted."""
        there = self._listing(revision)
        send = [
            name
            for name, file in self.files.items()
            if name not in there or not (name in self.initial or file.equals(there[name]))
        ]
        return send, [name for name in there if name not in self.files and self.delete_others]

    def _tag_target(self) -> str | None:
        refs = self.api.list_repo_refs(**self.repo)
        return next((str(ref.target_commit) for ref in refs.tags if ref.name == self.tag), None)

    def _tag_is_done(self) -> bool:
        """Does the tag name this content? If it names other content, raise."""
        if self.tag is None or self._tag_target() is None:
            return False
        send, extra = self._todo(self.tag)
        if send or extra:
            raise InputError(
                f"{self.to.repo_id} has a revision {self.tag} with other content",
                found=f"{len(send)} files that differ, {len(extra)} that are not here",
                expected="a new name: whoever cites a revision relies on it",
                remedy="choose another --revision-tag",
            )
        return True

    def _pull_request(self) -> int:
        """Return the number of our open pull request for this content; open one if there is none."""
        for found in self.api.get_repo_discussions(**self.repo, discussion_type="pull_request"):
            if found.title == self.title and found.author == self.me and found.status in ("draft", "open"):
                return int(found.num)
        text = "Opened by em-bench; merged when every file has arrived and was compared."
        return int(self.api.create_pull_request(**self.repo, title=self.title, description=text).num)

    def _fill(self, revision: str) -> None:
        """Send what is missing in the pull request, and delete what is not ours to keep."""
        from tqdm import tqdm

        head = self._patiently("reading the pull request", lambda: self._head(revision))
        send, extra = self._patiently("listing files", lambda: self._todo(revision))
        total = sum(self.files[name].size for name in send)
        with tqdm(total=total, desc="uploading", unit="B", unit_scale=True, file=sys.stderr) as bar:
            for names in self._chunks(send):
                head = self._commit(revision, names, [], head)
                self.sent.update(names)
                bar.update(sum(self.files[name].size for name in names))
        for start in range(0, len(extra), FILES_PER_COMMIT):
            names = extra[start : start + FILES_PER_COMMIT]
            head = self._commit(revision, [], names, head)
            self.deleted.update(names)

    def _head(self, revision: str) -> str:
        return str(self.api.repo_info(**self.repo, revision=revision).sha)

    def _commit(self, revision: str, add: Sequence[str], delete: Sequence[str], parent: str) -> str:
        """Commit to the pull request and return its new head; raises if somebody else committed to it meanwhile."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        attempts = 0

        def attempt() -> str:
            nonlocal attempts, parent
            missing, wrong = set(add), set(delete)
            if attempts:  # its answer was lost, but it may have worked
                parent = self._head(revision)
                send, extra = self._todo(revision)
                missing, wrong = missing & set(send), wrong & set(extra)
                if not missing and not wrong:
                    return parent
            attempts += 1
            operations: list[Any] = [
                CommitOperationAdd(name, str(self.files[name].path)) for name in add if name in missing
            ]
            operations += [CommitOperationDelete(name, is_folder=False) for name in delete if name in wrong]
            info = self.api.create_commit(
                **self.repo,
                operations=operations,
                commit_message=self.title,
                revision=revision,
                parent_commit=parent,
            )
            return str(info.oid)

        return str(self._patiently("committing", attempt))

    def _chunks(self, names: Sequence[str]) -> Iterator[list[str]]:
        chunk: list[str] = []
        filled = 0
        for name in names:
            size = self.files[name].size
            if chunk and (len(chunk) == FILES_PER_COMMIT or filled + size > BYTES_PER_COMMIT):
                yield chunk
                chunk, filled = [], 0
            chunk.append(name)
            filled += size
        if chunk:
            yield chunk

    def _compare(self, revision: str, state: str) -> None:
        """Raise unless a revision holds exactly the local files, by content."""
        send, extra = self._patiently("comparing", lambda: self._todo(revision))
        if send or extra:
            raise InputError(
                f"what arrived on the Hub is not what was sent ({state})",
                found=f"missing or different: {', '.join(send[:5]) or '-'}; unknown: {', '.join(extra[:5]) or '-'}",
                expected=f"the {len(self.files)} local files",
                remedy="was the folder changed meanwhile? Run the same command again",
            )

    def _merge(self, number: int) -> None:
        details = self.api.get_discussion_details(discussion_num=number, **self.repo)
        if details.status == "merged":  # by an attempt whose answer was lost
            return
        if details.conflicting_files:
            self._give_up(number)
        if details.status == "draft":
            self.api.change_discussion_status(discussion_num=number, new_status="open", **self.repo)
        try:
            self.api.merge_pull_request(discussion_num=number, **self.repo)
        except Exception as error:
            if status_of(error) in (409, 412):
                self._give_up(number)
            raise

    def _give_up(self, number: int) -> None:
        """Close a pull request that the main branch has overtaken: the next call opens another one."""
        self.api.change_discussion_status(
            discussion_num=number, new_status="closed", comment="The main branch has changed meanwhile.", **self.repo
        )
        raise InputError(
            f"{self.to.repo_id} was changed by somebody else while we uploaded",
            found=f"pull request {number} cannot be merged, and is closed now; the main branch is as they left it",
            remedy="look at their change; the same command replaces it (large files are not sent again)",
        )

    def _tag(self, commit: str) -> None:
        if self._tag_target() is None:
            self.api.create_tag(**self.repo, tag=self.tag, revision=commit, tag_message=self.title, exist_ok=True)
        if not self._tag_is_done():
            raise InputError(f"the tag {self.tag} was not made", remedy="run the same command again")

    def _finish(self, was_private: bool) -> Uploaded:
        if self.to.public and was_private:
            self._patiently("making it public", lambda: self.api.update_repo_settings(**self.repo, private=False))
        revision = self.tag or "main"
        commit = self._patiently("reading the revision", lambda: self.api.repo_info(**self.repo, revision=revision)).sha
        there = self._patiently("listing files", lambda: self._listing(revision))
        prefix = "" if self.to.repo_type == "model" else f"{self.to.repo_type}s/"
        return Uploaded(
            commit=str(commit),
            url=f"{self.api.endpoint}/{prefix}{self.to.repo_id}/tree/{revision}",
            files=len(there),
            lfs_files=sum(entry.lfs is not None for entry in there.values()),
            bytes=sum(int(entry.size) for entry in there.values()),
            sent_files=len(self.sent),
            deleted_files=len(self.deleted),
        )
