"""Downloads from a real HTTP server on this machine that misbehaves on request."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from dataset_builder import cli_fetch, fetch, fetch_http
from dataset_builder import source as source_module
from dataset_builder.fetch_archive import unpack_zip
from dataset_builder.fetch_http import PIECE, Patience, fetch_file
from dataset_builder.source import Download, Source, load_source, source_names
from em_bench_eval.alone import alone
from em_bench_eval.errors import InputError

BODY = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()
DIGEST = hashlib.sha256(BODY).hexdigest()


@dataclass
class Served:
    """One path of the server: its content, and how the next requests are to go wrong."""

    body: bytes
    etag: str | None = '"1"'
    ranges: bool = True
    lengths: bool = True
    kind: str = "application/octet-stream"
    faults: list[str] = field(default_factory=list)  # "cut:N", "status:N", "wait:N", "slow"


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, Served] = {}
        self.log: list[tuple[str, str, str | None, int]] = []  # method, path, Range, status

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        served = self.server.files.get(self.path)
        fault = served.faults.pop(0) if served and served.faults and with_body else ""
        kind, _, value = fault.partition(":")
        wanted = self.headers.get("Range")
        status = 404 if served is None else int(value) if kind == "status" else 429 if kind == "wait" else 200
        body, start = (b"", 0) if served is None or status != 200 else (served.body, 0)
        if served and status == 200 and wanted and served.ranges:
            condition = self.headers.get("If-Range")
            if condition is None or condition == served.etag:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                status = 206 if start < len(body) else 416
        self.server.log.append((self.command, self.path, wanted, status))
        self.send_response(status)
        if kind == "wait":
            self.send_header("Retry-After", value)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if served and served.etag and status in (200, 206):
            self.send_header("ETag", served.etag)
        if served:
            self.send_header("Content-Type", served.kind)
        body = body[start:] if status in (200, 206) else b""
        if served is None or served.lengths:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        if not with_body:
            return
        if kind == "cut":
            self.wfile.write(body[: int(value)])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif kind == "slow":
            for place in range(0, len(body), 20_000):
                self.wfile.write(body[place : place + 20_000])
                self.wfile.flush()
                time.sleep(0.05)
        else:
            self.wfile.write(body)
        if served and not served.lengths:
            self.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


class Waits(list[float]):
    """Takes the place of ``time.sleep`` and keeps what it was asked for."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def hasty(waits: Waits | None = None, attempts: int = 4) -> Patience:
    return Patience(attempts=attempts, timeout_s=5.0, sleep=waits if waits is not None else Waits())


def get(server: Server, target: Path, *paths: str, sha256: str | None = DIGEST, waits: Waits | None = None) -> str:
    download = Download(tuple(server.url(path) for path in paths), target.name)
    return fetch_file(download, target, hasty(waits), sha256=sha256)


def part_of(target: Path) -> Path:
    return target.with_name(target.name + ".part")


# one file


def test_a_file_arrives_with_its_digest_and_nothing_beside_it(server: Server, tmp_path: Path) -> None:
    server.files["/a"] = Served(BODY)
    seen: list[tuple[int, int | None]] = []
    download = Download((server.url("/a"),), "a")
    digest = fetch_file(download, tmp_path / "a", hasty(), progress=lambda done, total: seen.append((done, total)))
    assert digest == DIGEST
    assert (tmp_path / "a").read_bytes() == BODY
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert seen[0] == (0, len(BODY))
    assert seen[-1] == (len(BODY), len(BODY))


def test_a_cut_connection_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.files["/a"] = Served(BODY, faults=["cut:140000", "cut:70000"])
    waits = Waits()
    assert get(server, tmp_path / "a", "/a", waits=waits) == DIGEST
    assert [wanted for _, _, wanted, _ in server.log] == [
        None,
        f"bytes={2 * PIECE}-",
        f"bytes={3 * PIECE}-",
    ]
    assert len(waits) == 2


def test_a_server_that_ignores_ranges_is_read_from_the_start(server: Server, tmp_path: Path) -> None:
    server.files["/a"] = Served(BODY, ranges=False, faults=["cut:100000"])
    assert get(server, tmp_path / "a", "/a") == DIGEST
    assert [status for *_, status in server.log] == [200, 200]


def test_a_server_that_states_no_length_is_trusted_only_with_a_digest(server: Server, tmp_path: Path) -> None:
    server.files["/a"] = Served(BODY, lengths=False, etag=None)
    assert get(server, tmp_path / "a", "/a") == DIGEST
    server.files["/b"] = Served(BODY, lengths=False, etag=None, faults=["cut:100000", "cut:100000"])
    with pytest.raises(InputError, match=r"\d+ bytes instead of"):
        get(server, tmp_path / "b", "/b")


def test_a_file_that_changes_between_attempts_starts_over(server: Server, tmp_path: Path) -> None:
    other = bytes(reversed(BODY))
    server.files["/a"] = Served(BODY, etag='"old"', faults=["cut:100000", "status:503"])

    def change(seconds: float) -> None:
        server.files["/a"].body, server.files["/a"].etag = other, '"new"'

    download = Download((server.url("/a"),), "a")
    digest = fetch_file(download, tmp_path / "a", Patience(attempts=4, timeout_s=5, sleep=change))
    assert digest == hashlib.sha256(other).hexdigest()
    assert (tmp_path / "a").read_bytes() == other


def test_a_file_that_becomes_shorter_or_changes_behind_a_weak_tag_starts_over(server: Server, tmp_path: Path) -> None:
    for name, tag in (("a", 'W/"1"'), ("b", '"1"')):
        path, target = f"/{name}", tmp_path / name
        server.files[path] = Served(BODY, etag=tag, faults=["cut:200000"])

        def shrink(seconds: float, path: str = path) -> None:
            server.files[path].body = BODY[:1000]

        download = Download((server.url(path),), name)
        digest = fetch_file(download, target, Patience(attempts=4, timeout_s=5, sleep=shrink), sha256=None)
        assert digest == hashlib.sha256(BODY[:1000]).hexdigest()


def test_bytes_without_a_tag_or_a_digest_are_never_continued(server: Server, tmp_path: Path) -> None:
    server.files["/a"] = Served(BODY, etag=None, faults=["cut:100000"])
    assert get(server, tmp_path / "a", "/a", sha256=None) == DIGEST
    assert [wanted for _, _, wanted, _ in server.log] == [None, None]


def test_a_part_file_of_unknown_origin_is_not_used(server: Server, tmp_path: Path) -> None:
    server.files["/a"] = Served(BODY)
    part_of(tmp_path / "a").write_bytes(b"x" * 5000)
    assert get(server, tmp_path / "a", "/a", sha256=None) == DIGEST


def test_busy_servers_are_waited_for_as_they_ask(server: Server, tmp_path: Path) -> None:
    server.files["/a"] = Served(BODY, faults=["wait:7", "status:503", "status:502", "wait:100000"])
    waits = Waits()
    download = Download((server.url("/a"),), "a")
    fetch_file(download, tmp_path / "a", Patience(attempts=5, first_wait_s=1, longest_wait_s=60, sleep=waits))
    assert waits == [7, 2, 4, 60]


def test_a_server_that_stays_busy_is_given_up(server: Server, tmp_path: Path) -> None:
    server.files["/a"] = Served(BODY, faults=["status:503"] * 99)
    with pytest.raises(InputError, match=r"HTTP 503 .* given up after 4 attempts"):
        get(server, tmp_path / "a", "/a")


def test_mirrors_are_tried_in_turn(server: Server, tmp_path: Path) -> None:
    server.files["/page"] = Served(b"<html>log in</html>", kind="text/html; charset=utf-8")
    server.files["/wrong"] = Served(b"something else")
    server.files["/good"] = Served(BODY)
    assert get(server, tmp_path / "a", "/missing", "/page", "/wrong", "/good") == DIGEST
    with pytest.raises(InputError) as caught:
        get(server, tmp_path / "b", "/missing", "/page", "/wrong")
    for text in ("HTTP 404", "a web page instead of the file", "14 bytes instead of", "same command again"):
        assert text in str(caught.value)
    assert not part_of(tmp_path / "b").exists()


def test_another_mirror_continues_what_the_first_began_if_a_digest_vouches(server: Server, tmp_path: Path) -> None:
    server.files["/one"] = Served(BODY, faults=["cut:100000", *["status:500"] * 9])
    server.files["/two"] = Served(BODY, etag='"elsewhere"')
    assert get(server, tmp_path / "a", "/one", "/two") == DIGEST
    assert server.log[-1] == ("GET", "/two", f"bytes={PIECE}-", 206)


def test_a_mirror_with_other_content_does_not_spoil_what_the_first_began(server: Server, tmp_path: Path) -> None:
    server.files["/one"] = Served(bytes(reversed(BODY)), faults=["cut:100000", *["status:500"] * 9])
    server.files["/two"] = Served(BODY)
    assert get(server, tmp_path / "a", "/one", "/two") == DIGEST
    assert [wanted for _, path, wanted, _ in server.log if path == "/two"] == [f"bytes={PIECE}-", None]


def test_no_server_at_all(tmp_path: Path) -> None:
    waits = Waits()
    with pytest.raises(InputError, match="connection lost after 0 bytes"):
        fetch_file(Download(("http://127.0.0.1:9/a",), "a"), tmp_path / "a", hasty(waits))
    assert waits == [1, 2, 4]


def test_a_full_disk_keeps_what_arrived(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/a"] = Served(BODY, faults=["cut:100000"])
    append = fetch_http.PartFile.append

    def full(part: fetch_http.PartFile, pieces: object, advance: Callable[[int], None]) -> None:
        if part.size:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(part, pieces, advance)

    monkeypatch.setattr(fetch_http.PartFile, "append", full)
    with pytest.raises(OSError, match="No space left"):
        get(server, tmp_path / "a", "/a")
    monkeypatch.undo()
    assert part_of(tmp_path / "a").stat().st_size == PIECE
    assert get(server, tmp_path / "a", "/a") == DIGEST
    assert server.log[-1][2] == f"bytes={PIECE}-"


# archives


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def archive(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "archive.zip"
    path.write_bytes(content)
    return path


def test_an_archive_is_unpacked_without_its_top_folder_and_litter(tmp_path: Path) -> None:
    content = zipped(**{"top/a/x": b"1", "top/y": b"22", "__MACOSX/top/y": b"?", "top/.DS_Store": b"?", "top/": b""})
    digests = unpack_zip(archive(tmp_path, content), tmp_path / "out", strip="top", limit_bytes=100)
    assert digests == {"a/x": hashlib.sha256(b"1").hexdigest(), "y": hashlib.sha256(b"22").hexdigest()}
    assert sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()) == [
        "a/x",
        "y",
    ]


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "..\\x", "C:\\x", "C:x"])
def test_an_archive_cannot_write_outside_of_its_folder(name: str, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with pytest.raises(InputError, match="leads out of the folder"):
        unpack_zip(archive(tmp_path, zipped(**{"fine": b"1", name: b"2"})), out, limit_bytes=100)
    assert not out.exists()


def test_links_bombs_and_encrypted_members_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match="a link or a device"):
        unpack_zip(archive(tmp_path, buffer.getvalue()), tmp_path / "out", limit_bytes=100)
    with pytest.raises(InputError, match="too large to unpack") as caught:
        unpack_zip(archive(tmp_path, zipped(zeros=bytes(10**7))), tmp_path / "out", limit_bytes=10**6)
    assert "10,000,000 bytes" in str(caught.value)
    secret = bytearray(zipped(secret=b"1"))
    at = secret.index(b"PK\x01\x02") + 8
    secret[at] |= 1
    with pytest.raises(InputError, match="encrypted"):
        unpack_zip(archive(tmp_path, bytes(secret)), tmp_path / "out", limit_bytes=100)
    assert not (tmp_path / "out").exists()


def test_members_that_overlap_are_refused(tmp_path: Path) -> None:
    content = zipped(a=os.urandom(1000), b=b"2")
    start = content.index(b"PK\x01\x02")
    entry = content[start : content.index(b"PK\x01\x02", start + 4)]
    end = bytearray(content[content.index(b"PK\x05\x06") :])
    copies = b"".join(entry[:46] + b"cdefg"[i : i + 1] for i in range(5))
    directory = content[start : start + len(entry)] + copies
    end[8:10] = end[10:12] = (6).to_bytes(2, "little")
    end[12:16] = len(directory).to_bytes(4, "little")
    bomb = archive(tmp_path, content[:start] + directory + bytes(end))
    with pytest.raises(InputError, match=r"overlap|not a complete ZIP"):
        unpack_zip(bomb, tmp_path / "out", limit_bytes=10**6)
    assert not (tmp_path / "out").exists()


def test_another_layout_a_truncated_and_a_damaged_archive(tmp_path: Path) -> None:
    content = zipped(**{"top/a": os.urandom(5000)})
    with pytest.raises(InputError, match="everything below other/"):
        unpack_zip(archive(tmp_path, content), tmp_path / "out", strip="other", limit_bytes=10**6)
    for broken in (content[:2000], content[:1000] + bytes([content[1000] ^ 1]) + content[1001:], b""):
        with pytest.raises(InputError, match="not a complete ZIP file"):
            unpack_zip(archive(tmp_path, broken), tmp_path / "out2", limit_bytes=10**6)


# whole sources

CONTENT = {"top/train/a": os.urandom(150_000), "top/b": b"label"}


def source_of(server: Server, *downloads: Download) -> Source:
    info = replace(load_source("lucchipp").info, name="toy", url="https://example.org")
    return Source(info, lambda raw, options: (), ("toy", "Toy++"), "  toy/train", downloads=downloads)


def toy(server: Server, sha256: str | None = None) -> Source:
    content = zipped(**CONTENT)
    server.files.setdefault("/toy.zip", Served(content))
    server.files.setdefault("/extra.txt", Served(b"extra"))
    first = Download((server.url("/toy.zip"),), "toy.zip", sha256, unpack=True, strip="top", into="data")
    return source_of(server, first, Download((server.url("/extra.txt"),), "notes/extra.txt"))


def test_a_source_appears_complete_with_its_record(server: Server, tmp_path: Path) -> None:
    source = toy(server)
    assert fetch.fetch(source, tmp_path, patience=hasty()) == tmp_path / "toy"
    assert (tmp_path / "toy" / "data" / "train" / "a").read_bytes() == CONTENT["top/train/a"]
    assert (tmp_path / "toy" / "notes" / "extra.txt").read_bytes() == b"extra"
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")) == ["toy", "toy.sha256"]
    digest = hashlib.sha256(server.files["/toy.zip"].body).hexdigest()
    assert fetch.recorded_digests(source, tmp_path)["toy.zip"] == digest
    assert fetch.verify(source, tmp_path) == []
    subprocess.run(["sha256sum", "--check", "--quiet", "toy.sha256"], cwd=tmp_path, check=True)
    requests = len(server.log)
    assert fetch.fetch(source, tmp_path) == tmp_path / "toy"
    assert len(server.log) == requests, "what is there is not downloaded again"


def test_verify_names_what_changed(server: Server, tmp_path: Path) -> None:
    source = toy(server)
    fetch.fetch(source, tmp_path, patience=hasty())
    (tmp_path / "toy" / "data" / "b").write_bytes(b"labem")
    (tmp_path / "toy" / "notes" / "extra.txt").unlink()
    assert fetch.verify(source, tmp_path) == [
        "toy/data/b: changed since it was fetched",
        "toy/notes/extra.txt: missing",
    ]
    (tmp_path / "toy.sha256").unlink()
    with pytest.raises(InputError, match=r"no toy\.sha256"):
        fetch.verify(source, tmp_path)


def test_a_later_download_has_to_agree_with_the_recorded_digest(server: Server, tmp_path: Path) -> None:
    source = toy(server)
    fetch.fetch(source, tmp_path, patience=hasty())
    (tmp_path / "toy").rename(tmp_path / "aside")
    server.files["/toy.zip"].body = zipped(**{"top/other": b"1"})
    with pytest.raises(InputError, match="could not be downloaded"):
        fetch.fetch(source, tmp_path, patience=hasty())
    assert not (tmp_path / "toy").exists()


def test_a_damaged_archive_without_digest_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    source = toy(server)
    whole = server.files["/toy.zip"].body
    server.files["/toy.zip"].body = whole[:1000]
    with pytest.raises(InputError, match="not a complete ZIP file"):
        fetch.fetch(source, tmp_path, patience=hasty())
    assert not (tmp_path / "toy").exists()
    server.files["/toy.zip"].body = whole
    assert fetch.fetch(source, tmp_path, patience=hasty()).is_dir()


def test_an_archive_that_would_escape_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.files["/toy.zip"] = Served(zipped(**{"top/a": b"1", "top/../../escaped": b"2"}))
    with pytest.raises(InputError, match="leads out"):
        fetch.fetch(toy(server), tmp_path / "raw", patience=hasty())
    assert not (tmp_path / "raw" / "toy").exists()
    assert not list(tmp_path.rglob("escaped"))


def test_too_little_space_is_noticed_before_the_start(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = toy(server)
    usage = fetch.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: usage._replace(free=fetch.RESERVE_BYTES + 200_000))
    with pytest.raises(InputError, match="not enough space"):
        fetch.fetch(source, tmp_path, patience=hasty())
    assert all(method == "HEAD" for method, *_ in server.log)


def test_a_disk_that_fills_up_is_explained(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    source = toy(server)
    monkeypatch.setattr(fetch, "unpack_zip", full)
    with pytest.raises(InputError, match=r"no space left in .*\n.*free"):
        fetch.fetch(source, tmp_path, patience=hasty())
    monkeypatch.undo()
    fetch.fetch(source, tmp_path, patience=hasty())
    assert sum(path == "/toy.zip" and method == "GET" for method, path, *_ in server.log) == 1, "kept what had arrived"


def test_one_process_at_a_time(server: Server, tmp_path: Path) -> None:
    refusal = pytest.raises(InputError, match=r"another run is fetching toy into .*\n.*choose another --raw")
    with alone(tmp_path / ".fetch-toy.lock", "fetching toy"), refusal:
        fetch.fetch(toy(server), tmp_path, patience=hasty())
    assert fetch.fetch(toy(server), tmp_path, patience=hasty()).is_dir()


def test_archives_are_kept_on_request(server: Server, tmp_path: Path) -> None:
    fetch.fetch(toy(server), tmp_path, patience=hasty(), keep_archives=True)
    assert (tmp_path / "toy" / "toy.zip").read_bytes() == server.files["/toy.zip"].body


CHILD = """
import sys
from pathlib import Path
from dataset_builder import fetch
from dataset_builder.source import Download, Source, load_source
from dataclasses import replace
info = replace(load_source("lucchipp").info, name="toy")
download = Download((sys.argv[1],), "big", sys.argv[3])
fetch.fetch(Source(info, lambda raw, options: (), ("toy",), "", downloads=(download,)), Path(sys.argv[2]))
"""


def test_kill_9_and_resume_in_another_process(server: Server, tmp_path: Path) -> None:
    server.files["/big"] = Served(BODY, faults=["slow"])
    command = [sys.executable, "-c", CHILD, server.url("/big"), str(tmp_path), DIGEST]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    part = tmp_path / ".fetch-toy" / "big.part"
    deadline = time.monotonic() + 60
    while not (part.is_file() and part.stat().st_size > 0) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    arrived = part.stat().st_size
    assert 0 < arrived < len(BODY)
    assert not (tmp_path / "toy").exists()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert (tmp_path / "toy" / "big").read_bytes() == BODY
    assert server.log[-1] == ("GET", "/big", f"bytes={arrived}-", 206)


# the command


@pytest.fixture
def toy_source(server: Server, monkeypatch: pytest.MonkeyPatch) -> Source:
    source = toy(server)
    monkeypatch.setattr(cli_fetch, "source_names", lambda: [*source_module.source_names(), "toy"])
    monkeypatch.setattr(cli_fetch, "load_source", lambda name: source if name == "toy" else load_source(name))
    return source


def test_the_command_quotes_fetches_and_verifies(
    toy_source: Source, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = ["--raw", str(tmp_path)]
    assert cli_fetch.fetch(["toy", *raw, "--dry-run"]) == 0
    quoted = capsys.readouterr().out
    total = len(server.files["/toy.zip"].body) + len(b"extra")
    assert f"to download: {total / 1e3:.1f} kB" in quoted
    assert "licence: none stated" in quoted
    assert list(tmp_path.iterdir()) == []
    assert cli_fetch.fetch(["toy", *raw]) == 0
    digest = hashlib.sha256(server.files["/toy.zip"].body).hexdigest()
    assert f"toy.zip: sha256 {digest} (none was published; recorded)" in capsys.readouterr().out
    assert cli_fetch.fetch(["toy", *raw, "--verify"]) == 0
    (tmp_path / "toy" / "data" / "b").unlink()
    assert cli_fetch.fetch(["toy", *raw, "--verify"]) == 1
    assert "data/b: missing" in capsys.readouterr().err
    assert cli_fetch.fetch(["toy", *raw]) == 0
    assert "already in" in capsys.readouterr().out


def test_misspelt_and_unfetchable_sources(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'betaseg'"):
        cli_fetch.fetch(["betaseq", "--raw", str(tmp_path)])
    with pytest.raises(InputError, match=r"drive\.google\.com"):
        cli_fetch.fetch(["nucmm", "--raw", str(tmp_path)])
    with pytest.raises(InputError, match="reads piece by piece"):
        cli_fetch.fetch(["openorganelle", "--raw", str(tmp_path)])
    with pytest.raises(InputError, match="needs no download"):
        cli_fetch.fetch(["phantom", "--raw", str(tmp_path)])


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli_fetch.fetch(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for word in ("--dry-run", "--verify", "DIR/NAME.sha256", "examples:"):
        assert word in text


@pytest.mark.parametrize("name", source_names())
def test_downloads_of_every_source_are_declared_safely(name: str) -> None:
    source = load_source(name)
    files = [download.file for download in source.downloads]
    assert len(set(files)) == len(files)
    assert not source.downloads or name in source.folders, "fetch makes a folder that the source finds"
    assert set(source.extras).isdisjoint({"mito", "nucleus", "er", "endo", "golgi"})
    for download in source.downloads:
        assert download.urls
        assert download.urls[0].startswith("https://")
        assert all(
            url.startswith("https://") or (url.startswith("http://") and download.sha256) for url in download.urls
        )
        assert download.sha256 is None or (len(download.sha256) == 64 and int(download.sha256, 16))
        assert download.size_bytes is None or download.size_bytes > 0
        for path in (download.file, download.into, download.strip):
            assert not Path(path).is_absolute()
            assert ".." not in Path(path).parts
        assert download.unpack or not (download.into or download.strip)


def test_sizes_are_known_or_said_to_be_unknown() -> None:
    assert load_source("cremi").download_bytes == 492_000_000
    assert load_source("betaseg").download_bytes is None
    assert cli_fetch.size_text(492_000_000) == "492.0 MB"
    assert cli_fetch.size_text(None) == "unknown"
