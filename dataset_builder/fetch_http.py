"""One file over HTTP: resumed after a cut, from several mirrors, verified while it streams."""

from __future__ import annotations

import email.utils
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_bench_eval import __version__
from em_bench_eval.errors import InputError

if TYPE_CHECKING:
    import requests

    from dataset_builder.source import Download

BLOCK = 2**20  # bytes read from disk at a time
PIECE = 2**16  # bytes taken from the network at a time, which is what a cut may lose
WAIT_AND_RETRY = frozenset({408, 425, 429, 500, 502, 503, 504})
HEADERS = {
    "User-Agent": f"em-bench/{__version__}",
    "Accept-Encoding": "identity",  # ranges and lengths count the file's own bytes
}


@dataclass(frozen=True)
class Patience:
    """How long a mirror is given: attempts in a row that bring no new byte, with doubling waits between them."""

    attempts: int = 6
    first_wait_s: float = 1.0
    longest_wait_s: float = 120.0
    timeout_s: float = 60.0  # for a connection, and between two pieces of a body
    sleep: Callable[[float], None] = time.sleep


class MirrorFailed(Exception):
    """This mirror cannot give the file; the next one may."""


class _TryAgain(Exception):
    """A passing fault; ``wait_s`` is what the server asked for."""

    def __init__(self, reason: str, wait_s: float | None = None):
        super().__init__(reason)
        self.wait_s = wait_s


class PartFile:
    """``NAME.part`` and what is known of the file it belongs to, so that another process can go on with it.

    ``NAME.part.json`` holds the URL, the total size and the validators (ETag, Last-Modified) of the answer that the
    bytes came from. It is written before the first byte: bytes without it are never trusted.
    """

    def __init__(self, target: Path):
        self.path = target.with_name(target.name + ".part")
        self._facts_path = target.with_name(target.name + ".part.json")
        self.facts: dict[str, Any] = {}
        if self.path.is_file():
            try:
                self.facts = dict(json.loads(self._facts_path.read_text()))
            except (OSError, ValueError, TypeError):
                self.discard()
        self._digest = hashlib.sha256()
        self._digested = 0

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self.path.stat().st_size if self.path.is_file() else 0

    @property
    def validator(self) -> str | None:
        """What ``If-Range`` may carry: a strong ETag or a date."""
        etag = self.facts.get("etag")
        if etag and not str(etag).startswith("W/"):
            return str(etag)
        return self.facts.get("last_modified")

    def discard(self) -> None:
        """Forget everything."""
        self.path.unlink(missing_ok=True)
        self._facts_path.unlink(missing_ok=True)
        self.facts, self._digest, self._digested = {}, hashlib.sha256(), 0

    def begin(self, facts: Mapping[str, Any]) -> None:
        """Start at byte 0 with a new answer's facts."""
        self.discard()
        self.facts = dict(facts)
        temporary = self._facts_path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.facts))
        os.replace(temporary, self._facts_path)
        self.path.touch()

    def append(self, pieces: Any, advance: Callable[[int], None]) -> None:
        """Write and hash what arrives; what an earlier attempt or process wrote is hashed from disk first."""
        self._catch_up()
        with self.path.open("ab") as file:
            for piece in pieces:
                file.write(piece)
                self._digest.update(piece)
                self._digested += len(piece)
                advance(len(piece))

    def sha256(self) -> str:
        """Digest of all bytes."""
        self._catch_up()
        return self._digest.hexdigest()

    def complete(self, target: Path) -> None:
        """Give the file its name."""
        os.replace(self.path, target)
        self._facts_path.unlink(missing_ok=True)

    def _catch_up(self) -> None:
        if self._digested == self.size:
            return
        self._digest, self._digested = hashlib.sha256(), 0
        with self.path.open("rb") as file:
            while block := file.read(BLOCK):
                self._digest.update(block)
                self._digested += len(block)


def fetch_file(
    download: Download,
    target: Path,
    patience: Patience,
    *,
    sha256: str | None = None,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> str:
    """Download one file to ``target`` and return its sha256.

    Mirrors are tried in the order of ``download.urls``. A ``.part`` file beside the target is continued, by this or
    another mirror, as long as its size and validators show that it is the same file (or ``sha256`` will show it).

    Args:
        download: what to get.
        target: where it goes; its folder must exist.
        patience: retries and waits.
        sha256: the expected digest; ``None`` if it is not known.
        progress: called with the bytes so far and the total (``None`` if the server does not say).

    Raises:
        InputError: no mirror gave the file; names what each of them answered.
        OSError: the disk is full. The part file is kept.
    """
    import requests

    failures = []
    with requests.Session() as session:
        session.headers.update(HEADERS)
        for url in download.urls:
            try:
                return _from_mirror(session, url, target, patience, sha256, progress)
            except MirrorFailed as failure:
                failures.append(f"{url}: {failure}")
    raise InputError(
        f"{download.file} could not be downloaded",
        found="\n    ".join(["", *failures]),
        expected=f"the file with sha256 {sha256}" if sha256 else "the file",
        remedy="run the same command again later, it goes on where it stopped; or download it by hand "
        "(em-bench sources NAME shows where everything belongs)",
    )


def announced_size(download: Download, timeout_s: float = 20.0) -> int | None:
    """Ask the mirrors for the size in bytes, without downloading; the declared size if none of them says."""
    import requests

    with requests.Session() as session:
        session.headers.update(HEADERS)
        for url in download.urls:
            try:
                answer = session.head(url, allow_redirects=True, timeout=timeout_s)
            except requests.RequestException:
                continue
            length = answer.headers.get("Content-Length", "")
            if answer.status_code == 200 and length.isdigit() and not _is_web_page(answer, url):
                return int(length)
    return download.size_bytes


def _from_mirror(
    session: requests.Session,
    url: str,
    target: Path,
    patience: Patience,
    sha256: str | None,
    progress: Callable[[int, int | None], None],
) -> str:
    part = PartFile(target)
    in_vain = 0
    inherited = part.size > 0  # an earlier run or another mirror began it
    while True:
        before = part.size
        try:
            _transfer(session, url, part, patience, sha256, progress)
        except _TryAgain as fault:
            in_vain = 0 if part.size > before else in_vain + 1
            if in_vain >= patience.attempts:
                raise MirrorFailed(f"{fault}; given up after {in_vain} attempts") from fault
            doubling = patience.first_wait_s * 2 ** max(in_vain - 1, 0)
            patience.sleep(min(fault.wait_s if fault.wait_s is not None else doubling, patience.longest_wait_s))
            continue
        digest = part.sha256()
        if sha256 is None or digest == sha256:
            part.complete(target)
            return digest
        found = f"sha256 {digest} of {part.size} bytes instead of {sha256}"
        part.discard()
        if not inherited:
            raise MirrorFailed(found)
        inherited = False  # the first bytes may be the wrong ones: once more from the start


def _transfer(
    session: requests.Session,
    url: str,
    part: PartFile,
    patience: Patience,
    sha256: str | None,
    progress: Callable[[int, int | None], None],
) -> None:
    """Bring ``part`` to its full size in one request; raises ``_TryAgain`` or ``MirrorFailed``."""
    import requests

    same_mirror = part.facts.get("url") == url
    if part.size and not (sha256 or (same_mirror and part.validator)):
        part.discard()  # nothing could tell whether the rest belongs to the same file
    start = part.size
    if start and start == part.facts.get("total"):
        progress(start, start)
        return
    headers = {"Range": f"bytes={start}-"} if start else {}
    if start and same_mirror and part.validator:
        headers["If-Range"] = part.validator
    try:
        with session.get(url, headers=headers, stream=True, timeout=patience.timeout_s) as answer:
            total = _accept(answer, url, part, start)
            done = part.size
            progress(done, total)

            def advance(count: int) -> None:
                nonlocal done
                done += count
                progress(done, total)

            part.append(answer.iter_content(PIECE), advance)
    except requests.exceptions.SSLError as error:
        raise MirrorFailed(f"its certificate is not valid ({_short(error)})") from error
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, requests.TooManyRedirects) as error:
        raise MirrorFailed(_short(error)) from error
    except requests.RequestException as error:
        raise _TryAgain(f"connection lost after {part.size} bytes ({_short(error)})") from error
    if total is not None and part.size != total:
        if part.size > total:
            part.discard()
        raise _TryAgain(f"{part.size} of {total} bytes arrived")


def _accept(answer: requests.Response, url: str, part: PartFile, start: int) -> int | None:
    """Judge the head of an answer, make ``part`` ready for its body, and return the file's total size if known."""
    status = answer.status_code
    if status in WAIT_AND_RETRY:
        raise _TryAgain(f"HTTP {status} {answer.reason}", _retry_after(answer.headers.get("Retry-After")))
    if status == 416:  # the file is shorter now than what we have of it
        part.discard()
        raise _TryAgain("the file became shorter")
    if status not in (200, 206):
        raise MirrorFailed(f"HTTP {status} {answer.reason}")
    if _is_web_page(answer, url):
        raise MirrorFailed("a web page instead of the file (a login, a quota or an error page)")
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise MirrorFailed(f"sent as {answer.headers['Content-Encoding']} although that was declined")
    if status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        total = int(span[2]) if span and span[2] != "*" else None
        known = part.facts.get("total")
        other_tag = part.facts.get("url") == url and answer.headers.get("ETag") != part.facts.get("etag")
        if span is None or int(span[1]) != start or other_tag or (known is not None and total != known):
            part.discard()
            raise _TryAgain("the file changed since its first part was downloaded")
        return total
    length = answer.headers.get("Content-Length", "")
    total = int(length) if length.isdigit() else None
    facts = {"url": url, "total": total}
    facts |= {key: answer.headers.get(name) for key, name in (("etag", "ETag"), ("last_modified", "Last-Modified"))}
    part.begin(facts)  # also where a range was asked for: the server ignores ranges, or the file changed
    return total


def _is_web_page(answer: requests.Response, url: str) -> bool:
    kind = answer.headers.get("Content-Type", "")
    return kind.startswith("text/html") and not url.endswith((".html", ".htm"))


def _retry_after(text: str | None) -> float | None:
    """Read ``Retry-After``: seconds or a date."""
    if text is None:
        return None
    if text.strip().isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _short(error: Exception) -> str:
    text = str(error)
    reason = re.search(r"(?:Caused by )?\w+(?:Error|Exception)\((?:.*?: )?[\"']?([^\"')]+)", text)
    return (reason[1] if reason else text)[:160]
