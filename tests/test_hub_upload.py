"""Uploads to the Hub double: all or nothing, through faults, kills and other people's changes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hub_double import HubDouble, online
from hub_double_repos import MAIN, Entry

from em_bench_eval import hub_upload
from em_bench_eval.errors import InputError
from em_bench_eval.hub_faults import api_for, explained, read_token, status_of
from em_bench_eval.hub_upload import Repository, Uploaded, hashed, upload

NAME = "my-lab/set"
REPO = Repository(NAME, "dataset")
CONTENT = {
    "README.md": b"---\nlicense: other\n---\n# Set\n",
    "a.parquet": b"PAR1" * 50,
    "b/c.bin": b"\0\1\2" * 40,
    "b/d/e.parquet": b"another",
    "b/d/twin.parquet": b"another",
    "empty.txt": b"",
    "notes.txt": "µm and nm\n".encode(),
}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubDouble]:
    monkeypatch.setattr(hub_upload, "FILES_PER_COMMIT", 2)
    with HubDouble() as double, online(double, monkeypatch):
        yield double


def write(folder: Path, content: Mapping[str, bytes] = CONTENT) -> dict[str, Path]:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return {name: folder / name for name in content}


def send(
    hub: HubDouble,
    files: Mapping[str, Path],
    tag: str | None = "v1",
    to: Repository = REPO,
    token: str = "hf_writer",
    waits: tuple[float, ...] = (0, 0),
) -> Uploaded:
    import huggingface_hub

    return upload(huggingface_hub.HfApi(endpoint=hub.url, token=token), to, hashed(files), "set", tag, waits)


def pull_requests(hub: HubDouble) -> list[str]:
    return [discussion.status for discussion in hub.repo("dataset", NAME).discussions.values()]


def assert_nothing_visible(hub: HubDouble) -> None:
    if ("dataset", NAME) in hub.repos:
        assert hub.files("dataset", NAME) == {}
        assert not [ref for ref in hub.repo("dataset", NAME).refs if ref.startswith("refs/tags/")]


@pytest.mark.parametrize("kind", ["dataset", "model"])
def test_what_arrives_is_what_was_sent(hub: HubDouble, tmp_path: Path, kind: str) -> None:
    hub.page = 3  # listings come in pages
    done = send(hub, write(tmp_path), to=Repository(NAME, kind))
    assert hub.files(kind, NAME) == hub.files(kind, NAME, "v1") == CONTENT
    assert (done.files, done.sent_files, done.lfs_files) == (7, 7, 4)
    assert done.bytes == sum(map(len, CONTENT.values()))
    assert done.commit == hub.repo(kind, NAME).refs[MAIN] == hub.repo(kind, NAME).refs["refs/tags/v1"]
    assert hub.repo(kind, NAME).private
    assert hub.count("POST", "/commit/") == 4, "two files at a time"


def test_sending_again_sends_nothing_and_a_change_sends_the_change(hub: HubDouble, tmp_path: Path) -> None:
    files = write(tmp_path)
    first = send(hub, files)
    again = send(hub, files)
    assert (again.commit, again.sent_files, again.url) == (first.commit, 0, first.url)
    files["notes.txt"].write_bytes(b"nm")
    del files["b/c.bin"]
    with pytest.raises(InputError, match="v1 with other content"):
        send(hub, files)
    assert hub.files("dataset", NAME) == CONTENT
    second = send(hub, files, "v2")
    assert (second.sent_files, second.deleted_files) == (1, 1)
    changed = {**CONTENT, "notes.txt": b"nm"}
    del changed["b/c.bin"]
    assert hub.files("dataset", NAME, "v2") == hub.files("dataset", NAME) == changed
    assert hub.files("dataset", NAME, "v1") == CONTENT


REQUESTS = [
    ("GET", "whoami"),
    ("POST", "repos/create"),
    ("GET", "/refs"),
    ("GET", "/tree/main"),
    ("POST", "/discussions$"),
    ("POST", "/preupload/"),
    ("POST", "objects/batch"),
    ("PUT", "/lfs/"),
    ("POST", "/verify"),
    ("POST", "/commit/"),
    ("GET", r"/tree/refs%2Fpr"),
    ("GET", r"/discussions/1"),
    ("POST", "/status"),
    ("POST", "/merge"),
    ("POST", "/tag/"),
]


@pytest.fixture
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize("how", [{"status": 503}, {"cut": True}, {"cut": True, "after": True}], ids=str)
@pytest.mark.parametrize(("method", "pattern"), REQUESTS)
def test_a_fault_that_passes_costs_nothing(
    hub: HubDouble, tmp_path: Path, method: str, pattern: str, how: dict[str, Any]
) -> None:
    """Also when the request did its work and only the answer was lost."""
    fault = hub.fail(method, pattern, **how)
    send(hub, write(tmp_path))
    assert fault.seen.is_set()
    assert hub.files("dataset", NAME) == hub.files("dataset", NAME, "v1") == CONTENT
    assert pull_requests(hub) == ["merged"]


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize(("method", "pattern"), REQUESTS)
def test_a_fault_that_stays_leaves_nothing_visible_and_the_next_run_continues(
    hub: HubDouble, tmp_path: Path, method: str, pattern: str
) -> None:
    fault = hub.fail(method, pattern, status=500, times=1000)
    told = explained(_error_of(lambda: send(hub, write(tmp_path))), "publishing", "hf_writer")
    assert "fault of its own" in str(told)
    assert "500" in str(told)
    if pattern != "/tag/":
        assert_nothing_visible(hub)
    fault.times = 0
    send(hub, write(tmp_path))
    assert hub.files("dataset", NAME) == hub.files("dataset", NAME, "v1") == CONTENT
    assert pull_requests(hub) == ["merged"]


@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "refused the request"),
        (401, "hf auth login"),
        (402, "asks for payment"),
        (403, "role 'write'"),
        (404, "spelling of --to"),
        (409, "conflict"),
        (412, "committed meanwhile"),
        (413, "too large"),
        (418, "refused"),
        (429, "slow down"),
        (507, "fault of its own"),
    ],
)
@pytest.mark.parametrize(("method", "pattern"), [("POST", "/commit/"), ("PUT", "/lfs/")])
def test_refusals_are_explained_and_not_tried_for_ever(
    hub: HubDouble, tmp_path: Path, status: int, message: str, method: str, pattern: str
) -> None:
    hub.fail(method, pattern, status=status, times=1000)
    with pytest.raises(Exception) as caught:  # noqa: PT011 the client's errors have no common class
        send(hub, write(tmp_path))
    told = explained(caught.value, "publishing to my-lab/set")
    assert message in str(told)
    assert f"{status}" in str(told)
    if status not in (429,):
        assert hub.count(method, pattern) <= 6, "asked again although it does not help"
    assert_nothing_visible(hub)


def test_the_wait_that_the_server_asks_for_is_kept(
    hub: HubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("em_bench_eval.hub_faults.time.sleep", waited.append)
    hub.fail("POST", "/commit/", status=429, headers={"Retry-After": "7"})
    hub.fail("POST", "/merge", status=429, headers={"RateLimit": '"api";r=0;t=11'})
    send(hub, write(tmp_path))
    assert [seconds for seconds in waited if seconds] == [7, 11]


def test_users_see_what_they_may(hub: HubDouble, tmp_path: Path) -> None:
    files = write(tmp_path)
    for token, status in (("hf_stranger", 403), ("hf_reader", 403), ("hf_nobody", 401)):
        assert status_of(_error_of(lambda token=token: send(hub, files, token=token))) == status
    assert not hub.repos
    send(hub, files)
    assert status_of(_error_of(lambda: send(hub, files, "v2", token="hf_stranger"))) == 403
    assert status_of(_error_of(lambda: send(hub, files, "v2", token="hf_reader"))) == 403
    assert send(hub, files, token="hf_reader").sent_files == 0, "members may see that it is all there"


def _error_of(call: Any) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    return caught.value


def test_public_only_on_request_and_only_at_the_end(hub: HubDouble, tmp_path: Path) -> None:
    files = write(tmp_path)
    public = Repository(NAME, "dataset", public=True)
    hub.fail("POST", "/tag/", status=403)
    with pytest.raises(Exception, match="403"):
        send(hub, files, to=public)
    assert hub.repo("dataset", NAME).private
    send(hub, files, to=public)
    assert not hub.repo("dataset", NAME).private
    files["notes.txt"].write_bytes(b"secret")
    with pytest.raises(InputError, match="is public"):
        send(hub, files, "v2")
    assert hub.files("dataset", NAME) == CONTENT


def test_an_overtaken_pull_request_is_closed_and_the_next_run_replaces_the_change(
    hub: HubDouble, tmp_path: Path
) -> None:
    files = write(tmp_path)
    send(hub, files)
    files["notes.txt"].write_bytes(b"second version")
    meet = hub.fail("POST", "/merge", hold=True)
    failed: list[BaseException] = []
    thread = threading.Thread(target=lambda: failed.append(_error_of(lambda: send(hub, files, "v2"))))
    thread.start()
    assert meet.seen.wait(30)
    hub.repo("dataset", NAME).commit("main", {"notes.txt": Entry.of(b"by somebody else")}, "edit", None)
    meet.release.set()
    thread.join(30)
    assert "changed by somebody else" in str(failed[0])
    assert hub.files("dataset", NAME)["notes.txt"] == b"by somebody else"
    assert pull_requests(hub) == ["merged", "closed"]
    send(hub, files, "v2")
    assert hub.files("dataset", NAME, "v2")["notes.txt"] == b"second version"


@pytest.mark.parametrize("change", [{"a.parquet": None}, {"notes.txt": Entry.of(b"?")}, {"more.txt": Entry.of(b"!")}])
def test_what_arrived_is_compared_before_it_is_shown(
    hub: HubDouble, tmp_path: Path, change: dict[str, Entry | None]
) -> None:
    meet = hub.fail("GET", r"/tree/refs%2Fpr", hold=True, skip=1)
    failed: list[BaseException] = []
    files = write(tmp_path)
    thread = threading.Thread(target=lambda: failed.append(_error_of(lambda: send(hub, files))))
    thread.start()
    assert meet.seen.wait(30)
    hub.repo("dataset", NAME).commit("refs/pr/1", change, "somebody", None)
    meet.release.set()
    thread.join(30)
    assert isinstance(failed[0], InputError)
    assert next(iter(change)) in str(failed[0])
    assert_nothing_visible(hub)
    send(hub, files)
    assert hub.files("dataset", NAME, "v1") == CONTENT


def test_a_stranger_cannot_slip_a_pull_request_under_us(hub: HubDouble, tmp_path: Path) -> None:
    files = write(tmp_path)
    send(hub, files)
    files["notes.txt"].write_bytes(b"second version")
    title = f"set [{hub_upload.fingerprint_of(hashed(files))}]"
    repo = hub.repo("dataset", NAME)
    theirs = repo.discuss(title, "", "rosa", pull_request=True)
    send(hub, files, "v2")
    assert theirs.status == "draft"
    assert pull_requests(hub) == ["merged", "draft", "merged"]


CHILD = """
import json, sys
from pathlib import Path
from em_bench_eval import hub_upload
from em_bench_eval.hub_faults import api_for
hub_upload.FILES_PER_COMMIT = 2
files = {name: Path(path) for name, path in json.loads(sys.argv[1]).items()}
to = hub_upload.Repository("my-lab/set", "dataset")
print(hub_upload.upload(api_for("hf_writer"), to, hub_upload.hashed(files), "set", "v1", (0, 0)))
"""


@pytest.mark.parametrize(
    ("method", "pattern", "skip", "again"),
    [
        ("PUT", "/lfs/", 1, 7),  # between large files: none is committed, the first is not sent again
        ("POST", "/commit/", 2, 3),  # between commits: four files have arrived
        ("POST", "/merge", 0, 0),
        ("POST", "/tag/", 0, 0),
    ],
)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_kill_9_at_any_moment_and_the_same_command_continues(
    hub: HubDouble, tmp_path: Path, method: str, pattern: str, skip: int, again: int, after: bool
) -> None:
    files = {name: str(path) for name, path in write(tmp_path / "set").items()}
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    meet = hub.fail(method, pattern, hold=True, skip=skip, cut=True, after=after)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, json.dumps(files)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    assert meet.seen.wait(60)
    child.send_signal(signal.SIGKILL)
    child.wait(30)
    if pattern != "/tag/":
        assert_nothing_visible(hub)
    meet.release.set()
    assert meet.done.wait(30)
    done = send(hub, {name: Path(path) for name, path in files.items()})
    assert hub.files("dataset", NAME) == hub.files("dataset", NAME, "v1") == CONTENT
    assert pull_requests(hub) == ["merged"]
    assert done.sent_files <= again
    assert hub.count("PUT", "/lfs/") <= 5, "large files that had arrived are not sent again"


def test_no_network_and_switched_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with HubDouble() as gone:
        pass
    with online(gone, monkeypatch):
        told = explained(_error_of(lambda: send(gone, write(tmp_path), waits=(0,))), "publishing")
    assert "no connection to the Hub" in str(told)
    monkeypatch.undo()
    told = explained(_error_of(lambda: send(gone, write(tmp_path))), "publishing")
    assert "HF_HUB_OFFLINE" in str(told)


def test_a_card_that_the_hub_cannot_read(hub: HubDouble, tmp_path: Path) -> None:
    files = write(tmp_path, {"README.md": b"---\n[\n---\n"})
    told = explained(_error_of(lambda: send(hub, files)), "publishing")
    assert "Invalid metadata in README.md" in str(told)
    assert_nothing_visible(hub)


def test_secrets_are_not_repeated(tmp_path: Path) -> None:
    told = explained(ValueError("Illegal header value b'Bearer hf_secret'"), "publishing", "hf_secret")
    assert "hf_secret" not in str(told)
    assert "***" in str(told)
    path = tmp_path / "token"
    path.write_text("  hf_secret\n")
    assert read_token(path) == "hf_secret"
    assert "hf_secret" not in repr(api_for("hf_secret"))
    for text in ("", "hf_secret hf_secret", "hf_secret\nhf_other", "hf_secrét"):
        path.write_text(text)
        with pytest.raises(InputError, match="no access token") as caught:
            read_token(path)
        assert "hf_" not in str(caught.value).replace(str(path), "")
    with pytest.raises(InputError, match="cannot read"):
        read_token(tmp_path / "nowhere")
