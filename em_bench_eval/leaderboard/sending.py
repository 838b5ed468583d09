"""Sending a submission: its files as one pull request of the submissions repository, continued by the same call.

A pull request is a draft until every file has arrived and was compared; only then do maintainers see it as open.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from em_bench_eval.errors import InputError
from em_bench_eval.hub_faults import WAITS_S
from em_bench_eval.hub_upload import LocalFile, Repository, Upload
from em_bench_eval.leaderboard.pulls import FOLDER, ROOT

TEXT = "Predictions for the leaderboard, opened by em-bench submit. To correct it, change the folder and submit again."


@dataclass(frozen=True)
class Sent:
    """A submission on the Hub; ``number`` is ``None`` if the main branch holds just these files."""

    number: int | None
    url: str
    sent_files: int
    deleted_files: int


def slug(text: str) -> str:
    """Return a name as folders of the repository have it: ``U-Net (ours)`` -> ``u-net-ours``."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9.]+", "-", plain.lower()).strip("-.")[:64].rstrip("-.")


def folder_of(team: str, model: str, name: str | None = None) -> str:
    """Return the folder of a submission in the repository; ``name`` is ``TEAM/NAME`` if it was given.

    Raises ``InputError`` if that makes no folder.
    """
    folder = f"{ROOT}/{name}" if name else f"{ROOT}/{slug(team)}/{slug(model)}"
    if not FOLDER.fullmatch(folder):
        raise InputError(
            "this makes no name of a folder",
            found=name or f"team {team!r}, model {model!r}",
            expected="TEAM/NAME of letters, digits, '-', '_' and '.'",
            remedy="name it: --name my-lab/my-model",
        )
    return folder


class _Submit(Upload):
    """An upload into one folder of one pull request, which stays open for maintainers to merge."""

    def __init__(self, api: Any, to: Repository, folder: str, files: Mapping[str, LocalFile], waits_s: Sequence[float]):
        placed = {f"{folder}/{name}": file for name, file in files.items()}
        super().__init__(api, to, placed, f"Submission {folder.partition('/')[2]}", None, waits_s, True, ())
        self.folder = folder
        self.title = f"Submission {folder.partition('/')[2]}"  # without a hash: new content continues the pull request

    def _listing(self, revision: str) -> dict[str, Any]:
        from huggingface_hub.errors import EntryNotFoundError
        from huggingface_hub.hf_api import RepoFile

        try:
            entries = list(
                self.api.list_repo_tree(**self.repo, path_in_repo=self.folder, revision=revision, recursive=True)
            )
        except EntryNotFoundError:
            return {}
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def send(self) -> Sent:
        """Send what is missing; see ``submit``."""
        self.me = self._patiently("asking who we are", self.api.whoami)["name"]
        if self._patiently("listing files", lambda: self._todo("main")) == ([], []):
            return Sent(None, f"{self.api.endpoint}/datasets/{self.to.repo_id}/tree/main/{self.folder}", 0, 0)
        number = self._patiently("opening a pull request", self._pull_request)
        self._fill(f"refs/pr/{number}")
        self._compare(f"refs/pr/{number}", f"it is in pull request {number}, a draft that nobody scores")
        self._patiently("marking it as ready", lambda: self._ready(number))
        url = f"{self.api.endpoint}/datasets/{self.to.repo_id}/discussions/{number}"
        return Sent(number, url, len(self.sent), len(self.deleted))

    def _pull_request(self) -> int:
        for found in self.api.get_repo_discussions(**self.repo, discussion_type="pull_request"):
            if found.title == self.title and found.author == self.me and found.status in ("draft", "open"):
                return int(found.num)
        return int(self.api.create_pull_request(**self.repo, title=self.title, description=TEXT).num)

    def _ready(self, number: int) -> None:
        if self.api.get_discussion_details(discussion_num=number, **self.repo).status == "draft":
            self.api.change_discussion_status(discussion_num=number, new_status="open", **self.repo)


def submit(
    api: Any, repo_id: str, folder: str, files: Mapping[str, LocalFile], waits_s: Sequence[float] = WAITS_S
) -> Sent:
    """Make ``files`` (path inside the submission -> local file) the content of ``folder`` in our pull request there.

    An open pull request of this account for the folder is continued, else one is opened. Files that it has and we have
    not are deleted. Raises ``InputError`` if what arrived is not what was sent, and the faults of the client.
    """
    return _Submit(api, Repository(repo_id, "dataset"), folder, files, waits_s).send()
