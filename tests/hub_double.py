"""A double of the Hugging Face Hub: a real HTTP server that satisfies the real client libraries, offline.

::

    with HubDouble() as hub:
        hub.url                                     # as HF_ENDPOINT, or HfApi(endpoint=hub.url)
        hub.fail("POST", "/commit/", status=429)    # the next such request; also cuts, lost answers, and stops

Handlers are registered by ``route`` in ``hub_double_api`` and ``hub_double_more``; another file of handlers only has to
be imported. What is remembered is in ``hub_double_repos``. It knows model, dataset and Space repositories, private and
gated ones, uploads (regular, LFS, LFS in parts), listings, downloads with ranges of any revision (``refs/pr/N`` too),
tags, branches, pull requests with diff, comments, states and merges.

It was written from the source of ``huggingface_hub`` 2.4 and cannot show what only the real Hub knows:

* its rules: who may do what, rate limits, quotas, malware scans, limits of sizes, files and commits, reserved names,
  what makes a card, ``eval.yaml``, ``model-index`` or ``.eval_results`` valid, whether it shows such results at all,
  what exactly of a gated repository can be seen, how long and how often a pull request takes commits, whether a private
  repository of an organisation has pull requests at all;
* Spaces: here a Space is a repository with a kind of SDK; nothing is built, run or served as a page;
* which files it makes LFS: here by ``.gitattributes`` endings, size, or a NUL byte; the Hub has its own rule;
* Xet: the client must be told ``HF_HUB_DISABLE_XET=1``; with it off the Hub and client take other requests;
* its merges: here three-way by whole files into one commit; and its exact words and codes of refusal;
* the dataset viewer, parquet conversion, CDN, caches, eventual consistency, speed.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_double_repos import Refused, Repo

LARGE = 10 * 2**20
PREFIX = {"model": "", "dataset": "datasets/", "space": "spaces/"}


@dataclass(frozen=True)
class Answer:
    """What a handler returns."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
        return cls(json.dumps(content).encode(), status, {"Content-Type": "application/json", **(headers or {})})


@dataclass
class Request:
    """A request, read completely."""

    method: str
    path: str  # decoded only where handlers do
    query: dict[str, str]
    headers: Mapping[str, str]
    body: bytes
    user: dict[str, Any] | None

    def json(self) -> Any:
        return json.loads(self.body or b"null")


@dataclass
class Fault:
    """Something that goes wrong with matching requests."""

    method: str
    pattern: str
    status: int | None = None  # answer with this
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False  # close the connection without an answer
    after: bool = False  # but do what was asked first: the answer is lost
    hold: bool = False  # wait for ``release``: time to kill the client
    skip: int = 0  # matching requests that go well before
    times: int = 1
    seen: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)


Handler = Callable[["HubDouble", Request, Any], Answer]
ROUTES: list[tuple[str, re.Pattern[str], Handler]] = []


def route(method: str, pattern: str) -> Callable[[Handler], Handler]:
    """Register a handler for requests whose path matches; ``hub_double_api`` holds those of the Hub's API."""

    def register(handler: Handler) -> Handler:
        ROUTES.append((method, re.compile(pattern), handler))
        return handler

    return register


class HubDouble:
    """The server and its state. Users are known by their tokens."""

    def __init__(self) -> None:
        import hub_double_api  # these two register their routes
        import hub_double_more

        assert hub_double_api.ROUTES is hub_double_more.ROUTES is ROUTES
        self.repos: dict[tuple[str, str], Repo] = {}
        self.large: dict[str, bytes] = {}  # SHA-256 -> content
        self.unverified: dict[str, bytes] = {}  # the same, until the client has asked whether it arrived
        self.users = {
            "hf_writer": {"name": "maria", "orgs": {"my-lab": "write"}},
            "hf_reader": {"name": "rosa", "orgs": {"my-lab": "read"}},
            "hf_stranger": {"name": "igor", "orgs": {}},
        }
        self.page = 1000  # entries of a listing
        self.part_bytes: int | None = None  # LFS files that are larger arrive in parts of this size
        self.parts: dict[tuple[str, int], bytes] = {}  # SHA-256 and number of a part -> its bytes
        self.faults: list[Fault] = []
        self.log: list[tuple[str, str, int]] = []  # method, path, state
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self._server.daemon_threads = True
        port = self._server.server_address[1]
        self.url, self.cdn = f"http://127.0.0.1:{port}", f"http://localhost:{port}"

    def __enter__(self) -> HubDouble:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        for fault in self.faults:
            fault.release.set()
        self._server.shutdown()
        self._server.server_close()

    def fail(self, method: str, pattern: str, **how: Any) -> Fault:
        """Let the next ``times`` requests that match fail as told; see ``Fault``."""
        fault = Fault(method, pattern, **how)
        self.faults.append(fault)
        return fault

    def count(self, method: str, pattern: str) -> int:
        """Return how many requests of a kind were answered."""
        return sum(method == done and re.search(pattern, path) is not None for done, path, _ in self.log)

    def repo(self, kind: str, name: str) -> Repo:
        """Return a repository; for tests."""
        return self.repos[kind, name]

    def files(self, kind: str, name: str, revision: str = "main") -> dict[str, bytes]:
        """Return the content of a revision without ``.gitattributes``; for tests."""
        tree = self.repo(kind, name).commit_of(revision).tree
        return {
            path: self.large[entry.sha256] if entry.sha256 else entry.content or b""
            for path, entry in tree.items()
            if path != ".gitattributes"
        }

    def allowed(self, request: Request, kind: str, name: str, *, write: bool = False) -> Repo:
        """Return a repository if the user may see it, and change it if ``write``; hide private ones as the Hub does."""
        repo = self.repos.get((kind, name))
        role = self.role(request, name.split("/")[0])
        if repo is None or (repo.private and role is None):
            raise Refused(401 if request.user is None else 404, "Repository not found", "RepoNotFound")
        if write and request.user is None:
            raise Refused(401, "Invalid username or password.")
        if write and role != "write":
            raise Refused(403, "You don't have the required permissions to perform this action")
        return repo

    def role(self, request: Request, namespace: str) -> str | None:
        """Return "write", "read" or ``None``."""
        if request.user is None:
            return None
        if request.user["name"] == namespace:
            return "write"
        role: str | None = request.user["orgs"].get(namespace)
        return role

    def answer(self, request: Request) -> Answer:
        """Find the handler and call it; one request at a time changes the state."""
        if "authorization" in {name.lower() for name in request.headers} and request.user is None:
            return _refusal(Refused(401, "Invalid credentials in Authorization header"))
        for method, pattern, handler in ROUTES:
            if method in (request.method, "ANY") and (match := pattern.fullmatch(request.path)):
                try:
                    with self.lock:
                        return handler(self, request, match)
                except Refused as refused:
                    return _refusal(refused)
        return _refusal(Refused(404, f"the double knows no {request.method} {request.path}"))

    def fault_for(self, method: str, path: str) -> Fault | None:
        """Return the fault that this request meets, and count it."""
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.pattern, path):
                    if fault.skip > 0:
                        fault.skip -= 1
                        return None
                    fault.times -= 1
                    return fault
        return None


def _refusal(refused: Refused) -> Answer:
    headers = {"X-Error-Message": refused.message}
    if refused.code:
        headers["X-Error-Code"] = refused.code
    return Answer.json({"error": refused.message}, refused.status, headers)


def _handler_of(hub: HubDouble) -> type[BaseHTTPRequestHandler]:
    class OneRequest(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize, disable_nagle_algorithm = -1, True  # one packet an answer: 40 ms faster each

        def log_message(self, *arguments: object) -> None:
            """Stay silent."""

        def _serve(self) -> None:
            body = self._body()
            fault = hub.fault_for(self.command, self.path)
            try:
                self._respond(body, fault)
            except (BrokenPipeError, ConnectionResetError):  # the client was killed
                self.close_connection = True
            finally:
                if fault is not None:
                    fault.done.set()

        def _respond(self, body: bytes, fault: Fault | None) -> None:
            if fault is not None:
                fault.seen.set()
                if fault.hold:
                    fault.release.wait(60)
                if fault.status is not None:
                    self._send(Answer.json({"error": "injected"}, fault.status, fault.headers))
                    return
                if fault.cut and not fault.after:
                    self._cut()
                    return
            parts = urlsplit(self.path)
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
            user = hub.users.get(token)
            answer = hub.answer(Request(self.command, parts.path, query, dict(self.headers.items()), body, user))
            if fault is not None and fault.cut:
                self._cut()
                return
            self._send(answer)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                return b"".join(self._chunks())
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _chunks(self) -> Iterator[bytes]:
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

        def _send(self, answer: Answer) -> None:
            hub.log.append((self.command, unquote(self.path), answer.status))
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            if "Content-Length" not in answer.headers:
                self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer.body)

        def _cut(self) -> None:
            hub.log.append((self.command, unquote(self.path), 0))
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

        do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    return OneRequest


@contextmanager
def online(hub: HubDouble, monkeypatch: Any, token: str | None = "hf_writer") -> Iterator[Any]:
    """Give an ``HfApi`` of this process that talks to the double, although the tests are offline otherwise."""
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    downloads = f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", downloads)
    yield huggingface_hub.HfApi(endpoint=hub.url, token=token)


def main() -> None:
    """Serve until interrupted, for trying commands by hand: ``python tests/hub_double.py``."""
    import sys

    sys.modules["hub_double"] = sys.modules["__main__"]  # the files of handlers import it under its name
    with HubDouble() as hub:
        print(f"export HF_ENDPOINT={hub.url} HF_HUB_DISABLE_XET=1 HF_TOKEN=hf_writer", flush=True)
        print("# my-lab/... belongs to hf_writer; hf_reader may read it; hf_stranger is nobody's", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
