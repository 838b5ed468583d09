"""What the Hub double needs for strangers' pull requests: their authors may commit to them, and folders have git ids.

Import it, and its routes come before those of ``hub_double_api``. On the real Hub, too, whoever opens a pull request
may push to it; the id of a folder is git's there (here: a hash over what lies in it, which is as good to compare).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import unquote

import hub_double_api
from hub_double import PREFIX, ROUTES, Answer, Handler, HubDouble, Request, online
from hub_double_repos import Entry

PULL = re.compile(r"refs/pr/(\d+)")


def _as_author(handler: Handler) -> Handler:
    """Let the author of a pull request write to it; everybody may ask how files of a new one would be sent."""

    def handle(hub: HubDouble, request: Request, match: re.Match[str]) -> Answer:
        found = match.groupdict()
        kind = found.get("kind") or next(kind for kind, start in PREFIX.items() if start == found["prefix"])
        repo = hub.repos.get((kind, found["name"]))
        revision = unquote(found["revision"]) if "revision" in found else _ref(request)
        number = PULL.fullmatch(revision)
        if repo is not None and request.user is not None:
            pull = repo.discussions.get(int(number[1])) if number is not None else None
            opens = request.query.get("create_pr") == "1" or "prefix" in found  # large files are of no harm alone
            if opens or (pull is not None and pull.author == request.user["name"]):
                owner = found["name"].split("/")[0]
                user = {**request.user, "orgs": {**request.user["orgs"], owner: "write"}}
                return handler(hub, replace(request, user=user), match)
        return handler(hub, request, match)

    return handle


def _ref(request: Request) -> str:
    """Return the revision that a batch of large files is for."""
    return unquote(str(((request.json() or {}).get("ref") or {}).get("name", "")))


def _with_folder_ids(handler: Handler) -> Handler:
    def handle(hub: HubDouble, request: Request, match: re.Match[str]) -> Answer:
        answer = handler(hub, request, match)
        repo = hub.allowed(request, match["kind"], match["name"])
        tree = repo.commit_of(unquote(match["revision"])).tree
        listed = json.loads(answer.body)
        for item in listed:
            if item["type"] == "directory":
                item["oid"] = folder_id(tree, item["path"])
        return replace(answer, body=json.dumps(listed).encode())

    return handle


def folder_id(tree: Mapping[str, Entry], folder: str) -> str:
    inside = sorted((path, entry.blob) for path, entry in tree.items() if path.startswith(f"{folder}/"))
    lines = "".join(f"{path.removeprefix(folder)} {blob}\n" for path, blob in inside)
    return hashlib.sha1(lines.encode()).hexdigest()


def _wrap(handler: Handler, wrapped: Handler) -> None:
    place = next(place for place, route in enumerate(ROUTES) if route[2] is handler)
    ROUTES[place] = (*ROUTES[place][:2], wrapped)


_api: Any = hub_double_api
for _handler in (_api.preupload, _api.commit, _api.lfs_batch):
    _wrap(_handler, _as_author(_handler))
_wrap(_api.tree, _with_folder_ids(_api.tree))


@contextmanager
def reading(hub: HubDouble, monkeypatch: Any) -> Iterator[Any]:
    """As ``hub_double.online``, for downloads too: their address is put together when the client is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    with online(hub, monkeypatch) as api:
        yield api
