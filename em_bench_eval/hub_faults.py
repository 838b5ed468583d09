"""What can go wrong between us and the Hugging Face Hub: tried again where that helps, explained where it does not.

``huggingface_hub`` repeats some requests itself (uploads of files) and others not at all (commits, tags, pull
requests); ``patiently`` covers the others. What is repeated must first look whether an earlier attempt had worked.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from em_bench_eval.errors import InputError

T = TypeVar("T")

PASSING = frozenset({408, 429, 500, 502, 503, 504})  # HTTP states that may be over in a moment
WAITS_S: tuple[float, ...] = (1, 2, 4, 8, 16)  # before each further attempt
MESSAGE_CHARACTERS = 400
LONGEST_WAIT_S = 300.0  # of what a server asks for with Retry-After


@dataclass(frozen=True)
class Explanation:
    """What an HTTP state means to somebody who publishes."""

    problem: str
    expected: str
    remedy: str


AGAIN = "run the same command again: what has arrived is not sent again"
EXPLANATIONS = {
    400: Explanation("refused the request", "names, texts and files that the Hub accepts", "read what it found"),
    401: Explanation(
        "does not know who you are",
        "a valid access token",
        "`hf auth login`, or name a file that holds a token with --token-file (huggingface.co/settings/tokens)",
    ),
    402: Explanation("asks for payment", "space for private data", "free space, subscribe, or publish with --public"),
    403: Explanation(
        "does not let you write there",
        "a token with write access to this namespace",
        "ask an admin of the organisation for the role 'write', and check the permissions of the token",
    ),
    404: Explanation(
        "has no such repository, or hides it from you",
        "an organisation or user that exists, and access to the repository",
        "check the spelling of --to; a private repository needs a token of a member",
    ),
    409: Explanation("met a conflict", "nobody else who changes the same repository", "wait for them; then " + AGAIN),
    412: Explanation(
        "says that somebody else has committed meanwhile", "one publisher at a time", "wait for them; then " + AGAIN
    ),
    413: Explanation("finds this too large", "files and commits within the Hub's limits", "write to its support"),
    429: Explanation("asks us to slow down", "fewer requests", "wait a few minutes; then " + AGAIN),
}


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what caused it: the client wraps faults of single files."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def status_of(error: BaseException) -> int | None:
    """Return the HTTP state behind an error, if it was one."""
    for cause in chain(error):
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
    return None


def lost_connection(error: BaseException) -> bool:
    """Is this a fault of the network, whatever HTTP library the client uses?"""
    names = {"TransportError", "ConnectionError", "Timeout"}  # of httpx, httpx2, requests
    reset = (ConnectionResetError, BrokenPipeError, TimeoutError)
    return any(
        isinstance(cause, reset)
        or any(kind.__name__ in names and kind.__module__ != "builtins" for kind in type(cause).__mro__)
        for cause in chain(error)
    )


def is_passing(error: BaseException) -> bool:
    """May the same request work in a moment?"""
    status = status_of(error)
    return lost_connection(error) if status is None else status in PASSING


def patiently(attempt: Callable[[], T], what: str, waits_s: Sequence[float] = WAITS_S) -> T:
    """Call ``attempt`` again after faults that pass, up to ``len(waits_s)`` times more; other faults are raised.

    ``attempt`` must be safe to repeat when its answer was lost: it looks first, then acts.
    """
    for wait in waits_s:
        try:
            return attempt()
        except Exception as error:
            if not is_passing(error):
                raise
            pause = max(wait, _asked_wait(error))
            found = status_of(error) or "connection lost"
            print(f"{what}: {found}; again in {pause:g} s", file=sys.stderr)
            time.sleep(pause)
    return attempt()


def _asked_wait(error: BaseException) -> float:
    """Return the seconds that the server asks for with ``Retry-After`` or ``RateLimit`` (``t=``), or 0."""
    for cause in chain(error):
        headers = getattr(getattr(cause, "response", None), "headers", None)
        if headers is None:
            continue
        limits = dict(part.strip().split("=", 1) for part in headers.get("ratelimit", "").split(";") if "=" in part)
        remaining = limits.get("r", "1")
        for text in (headers.get("retry-after", ""), limits.get("t", "") if remaining == "0" else ""):
            if text.isdigit():
                return min(float(text), LONGEST_WAIT_S)
    return 0.0


def explained(error: BaseException, doing: str, secret: str | None = None) -> InputError | None:
    """Return what a user can do about a fault of the Hub, or ``None`` if it is none. ``secret`` is never repeated."""
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    def told(problem: str, expected: str, remedy: str) -> InputError:
        return InputError(f"{problem} ({doing})", found=_found(error, secret), expected=expected, remedy=remedy)

    causes = list(chain(error))
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        return told("the Hub client is switched offline", "network access", "unset HF_HUB_OFFLINE")
    if any(isinstance(cause, LocalTokenNotFoundError) for cause in causes):
        return told("the Hub does not know who you are", EXPLANATIONS[401].expected, EXPLANATIONS[401].remedy)
    if any(isinstance(cause, HFValidationError) for cause in causes):
        return told("this is no name of a repository", "ORG/NAME", "letters, digits, '-', '_' and '.' only")
    status = status_of(error)
    if status is not None and status >= 500:
        return told("the Hub has a fault of its own", "an answer", f"see status.huggingface.co; then {AGAIN}")
    if status in EXPLANATIONS:
        known = EXPLANATIONS[status]
        return told(f"the Hub {known.problem}", known.expected, known.remedy)
    if status is not None:
        return told("the Hub refused", "an answer that this version understands", f"later, {AGAIN}")
    if any(type(cause) is ValueError for cause in causes):  # card metadata, or an answer that makes no sense
        return told("the Hub refused the files", EXPLANATIONS[400].expected, EXPLANATIONS[400].remedy)
    if lost_connection(error):
        return told("no connection to the Hub", "network access", f"check network, proxy and HF_ENDPOINT; then {AGAIN}")
    return None


def read_problem(error: BaseException, secret: str | None = None) -> tuple[str, str]:
    """Return what was found, and what to do, where something on the Hub could not be read; for ``InputError``."""
    from huggingface_hub import errors as hub
    from huggingface_hub import get_token

    causes = list(chain(error))
    known = (secret or get_token()) is not None
    login = "use the token of somebody who may read it" if known else "log in (hf auth login), or set HF_TOKEN"

    def is_a(kind: type[BaseException]) -> bool:
        return any(isinstance(cause, kind) for cause in causes)

    if is_a(hub.HFValidationError):
        return "it is no name on the Hub either", "check the spelling"
    if is_a(hub.GatedRepoError):
        return "on the Hub its owners ask for your consent first", f"open its page and accept the terms; {login}"
    if is_a(hub.RevisionNotFoundError):
        return "the Hub has it, but not this revision", "see the page for tags and branches"
    if status_of(error) == 401 and known:
        return "the Hub refuses the token", "log in again (hf auth login), or check HF_TOKEN"
    if is_a(hub.RepositoryNotFoundError) or status_of(error) in (401, 403, 404):
        return "not on the Hub, or private", f"check the spelling; if it is private, {login}"
    if is_a(hub.OfflineModeIsEnabled) or is_a(hub.LocalEntryNotFoundError) or lost_connection(error):
        return "the Hub could not be asked; nothing is cached", "check network, HF_ENDPOINT and HF_HUB_OFFLINE"
    return f"not on the Hub: {_found(error, secret or get_token())}", "check the spelling"


def _found(error: BaseException, secret: str | None) -> str:
    """Write what the client and the Hub said in one line, without secrets."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = " ".join(lines)[:MESSAGE_CHARACTERS]
    messages = (getattr(cause, "server_message", None) for cause in chain(error))
    said = next((message for message in messages if message), "")
    status = status_of(error)
    if status is not None and str(status) not in text:
        text = f"{status}: {text}"
    if str(said) not in text:
        text += f"; {said}"
    return text.replace(secret, "***") if secret else text


def read_token(path: Path) -> str:
    """Read an access token from a file; its text appears in no message.

    Raises:
        InputError: no file, or not one line of printable characters.
    """
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the token file {path}", found=type(error).__name__) from error
    if not text or not text.isascii() or not text.isprintable() or len(text.split()) != 1:
        raise InputError(
            f"{path} holds no access token",
            found=f"{len(text.split())} words in {len(text.splitlines())} lines",
            expected="one line with the token alone",
            remedy="copy it from huggingface.co/settings/tokens; keep the file to yourself (chmod 600)",
        )
    return text


def api_for(token: str | None) -> Any:
    """Return a ``huggingface_hub.HfApi``; without ``token`` it uses that of ``hf auth login`` or ``HF_TOKEN``."""
    from huggingface_hub import HfApi

    return HfApi(token=token, library_name="em-organelle-wild")
