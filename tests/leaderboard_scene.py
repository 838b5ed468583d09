"""A submissions repository on the Hub double, people who submit to it, and a judge that scores by what files say."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import leaderboard_documents
import pytest
from hub_double import HubDouble
from hub_double_pulls import reading

from em_bench_eval.errors import InputError
from em_bench_eval.hub_upload import hashed
from em_bench_eval.leaderboard.comments import mark_of
from em_bench_eval.leaderboard.fetching import refusal
from em_bench_eval.leaderboard.judge import Judged
from em_bench_eval.leaderboard.pulls import Submissions
from em_bench_eval.leaderboard.results import TABLE
from em_bench_eval.leaderboard.sending import folder_of, submit
from em_bench_eval.leaderboard.submission import submission_hash
from em_bench_eval.leaderboard.update import Options, Update

NAME = "my-lab/em-organelle-submissions"
NO_WAITS = (0.0, 0.0)
STAMP = "0123456789ab"


class Killed(BaseException):
    """Stands for kill -9."""


class FakeJudge:
    """Scores by what ``predictions.parquet`` says: a number, or how to fail."""

    def __init__(self, fingerprint: str = "content 1"):
        self.fingerprint, self.calls = fingerprint, 0
        self.meanwhile: Any = None
        self.possible = True

    def __call__(self, folder: Path) -> Judged:
        self.calls += 1
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        said = (folder / "predictions.parquet").read_text()
        if said.startswith("refuse"):
            return Judged(refused=refusal("shape", "another shape", "resample", ("image @maria", said, "native size")))
        if said.startswith("disk"):
            raise InputError("no space left")
        if said.startswith("bug"):
            raise ZeroDivisionError("ours")
        value, _, prompts = said.partition(" ")
        document = leaderboard_documents.document(
            "U-Net", leaderboard_documents.scaled(float(value)), prompts=prompts or "none"
        )
        document["submission"]["hash"] = submission_hash(folder)
        document["dataset"]["fingerprint"] = self.fingerprint
        return Judged(result=document, pictures=[])

    def is_current(self, document: Mapping[str, Any]) -> bool:
        return bool(document["dataset"]["fingerprint"] == self.fingerprint)

    def can_be_current(self, document: Mapping[str, Any]) -> bool:
        return self.possible

    def stamp(self) -> str:
        return STAMP if self.fingerprint == "content 1" else STAMP[::-1]


class Dying:
    """An API that is killed before or after the nth request that changes something."""

    CHANGES = ("create_commit", "comment_discussion", "merge_pull_request", "change_discussion_status")

    def __init__(self, api: Any, at: int, *, after: bool):
        self.api, self.left, self.after = api, at, after

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.api, name)
        if name not in self.CHANGES:
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left == 0 and not self.after:
                raise Killed
            answer = found(*args, **kwargs)
            if self.left == 0:
                raise Killed
            return answer

        return call


def api(hub: HubDouble, token: str = "hf_writer") -> Any:
    import huggingface_hub

    return huggingface_hub.HfApi(endpoint=hub.url, token=token)


def send(hub: HubDouble, work: Path, predictions: str, name: str = "their-lab/unet", token: str = "hf_stranger") -> int:
    """Submit files; ``predictions`` is what the fake judge reads."""
    folder = work / "sent" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "predictions.parquet").write_text(predictions)
    (folder / "submission.yaml").write_text(f"model: {name}")
    files = hashed({path.name: path for path in folder.iterdir()})
    sent = submit(api(hub, token), NAME, folder_of("", "", name), files, NO_WAITS)
    assert sent.number is not None
    return sent.number


def update(
    hub: HubDouble, work: Path, judge: FakeJudge | None = None, token: str = "hf_writer", **options: Any
) -> Update:
    run = Update(Submissions(api(hub, token), NAME, NO_WAITS), judge or FakeJudge(), work / "work", Options(**options))
    run.run()
    return run


def pull(hub: HubDouble, number: int) -> Any:
    return hub.repo("dataset", NAME).discussions[number]


def comments(hub: HubDouble, number: int, *authors: str) -> list[str]:
    found = [event for event in pull(hub, number).events[1:] if event["type"] == "comment"]
    texts = [event["data"]["latest"]["raw"] for event in found if event["author"]["name"] in (authors or ("maria",))]
    return [text for text in texts if mark_of(text)] if not authors else texts


def table(hub: HubDouble) -> list[dict[str, Any]]:
    return list(json.loads(hub.files("dataset", NAME)[TABLE])["rows"])


def requests_that_change(hub: HubDouble) -> int:
    return hub.count("POST", "/commit/") + hub.count("POST", "/discussions/")


def state(hub: HubDouble) -> dict[str, Any]:
    """Everything that lasts, without commits and their dates."""
    files = hub.files("dataset", NAME)
    rows = [{**row, "provenance": {**row["provenance"], "commit": ""}} for row in table(hub)]
    kept = {name: content for name, content in files.items() if not name.startswith("results")}
    names = sorted(name for name in files if name.startswith("results"))
    pulls = [(one.status, comments(hub, one.num)) for one in hub.repo("dataset", NAME).discussions.values()]
    return {"rows": rows, "files": kept, "names": names, "pulls": pulls}


def raw_pull(hub: HubDouble, files: Mapping[str, bytes], token: str = "hf_stranger", title: str = "mine") -> int:
    from huggingface_hub import CommitOperationAdd

    done = api(hub, token).create_commit(
        NAME,
        [CommitOperationAdd(name, content) for name, content in files.items()],
        commit_message=title,
        repo_type="dataset",
        create_pr=True,
    )
    return int(done.pr_num)


def scene(hub: HubDouble, tmp_path: Path) -> None:
    send(hub, tmp_path, "1.0")
    send(hub, tmp_path, "refuse", "their-lab/bad")
    send(hub, tmp_path, "0.8", "other-lab/unet", "hf_other")


@contextmanager
def submissions_repository(patch: pytest.MonkeyPatch, cache: Path) -> Iterator[HubDouble]:
    """A Hub with an empty submissions repository of maria; downloads are kept in ``cache``."""
    from huggingface_hub import constants

    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    with HubDouble() as double, reading(double, patch):
        double.users["hf_second"] = {"name": "second", "orgs": {"my-lab": "write"}}
        double.users["hf_other"] = {"name": "olga", "orgs": {}}
        api(double).create_repo(NAME, repo_type="dataset")
        api(double).upload_file(path_or_fileobj=b"card", path_in_repo="README.md", repo_id=NAME, repo_type="dataset")
        yield double
