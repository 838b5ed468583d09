"""The requests that the Hub double understands: repositories, uploads, listings, downloads, pull requests."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any
from urllib.parse import parse_qs, unquote

import yaml
from hub_double import LARGE, PREFIX, ROUTES, Answer, HubDouble, Request, route
from hub_double_repos import MAIN, Entry, Refused, Repo

__all__ = ["ROUTES"]

API = r"/api/(?P<kind>model|dataset|space)s/(?P<name>[^/]+/[^/]+)"
FILES = r"/(?P<prefix>datasets/|spaces/|)(?P<name>[^/]+/[^/]+)"
NUM = r"/discussions/(?P<num>\d+)"
SDKS = ("gradio", "docker", "static")


def _repo(hub: HubDouble, request: Request, match: re.Match[str], *, write: bool = False) -> Repo:
    return hub.allowed(request, match["kind"], match["name"], write=write)


# --- users and repositories ------------------------------------------------------------------------------------------


@route("GET", "/api/whoami-v2")
def whoami(hub: HubDouble, request: Request, match: Any) -> Answer:
    if request.user is None:
        raise Refused(401, "Invalid username or password.")
    orgs = [{"name": name, "roleInOrg": role} for name, role in request.user["orgs"].items()]
    return Answer.json({"type": "user", "name": request.user["name"], "orgs": orgs, "auth": {"type": "access_token"}})


@route("POST", "/api/repos/create")
def create(hub: HubDouble, request: Request, match: Any) -> Answer:
    wanted = request.json()
    if request.user is None:
        raise Refused(401, "Invalid username or password.")
    owner = wanted.get("organization") or request.user["name"]
    if hub.role(request, owner) != "write":
        raise Refused(403, f"You don't have the rights to create a repo under the namespace {owner}")
    kind, name = wanted.get("type") or "model", f"{owner}/{wanted['name']}"
    url = f"{hub.url}/{PREFIX[kind]}{name}"
    if (kind, name) in hub.repos:
        return Answer.json({"error": "You already created this repo", "url": url}, 409)
    if kind == "space" and wanted.get("sdk") not in SDKS:
        raise Refused(400, f"a Space needs an sdk: {', '.join(SDKS)}")
    private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
    hub.repos[kind, name] = Repo(kind, name, private, request.user["name"])
    hub.repos[kind, name].sdk = wanted.get("sdk")
    return Answer.json({"url": url, "name": name})


@route("PUT", API + "/settings")
def settings(hub: HubDouble, request: Request, match: re.Match[str]) -> Answer:
    repo, wanted = _repo(hub, request, match, write=True), request.json()
    repo.private = wanted.get("visibility", "private" if wanted.get("private") else "public") == "private"
    return Answer.json({"private": repo.private})


@route("POST", "/api/validate-yaml")
def validate_yaml(hub: HubDouble, request: Request, match: Any) -> Answer:
    parts = request.json()["content"].split("---\n", 2)
    try:
        yaml.safe_load(parts[1] if len(parts) == 3 else "")
    except yaml.YAMLError as error:
        return Answer.json({"errors": [{"message": str(error)}], "warnings": []}, 400)
    return Answer.json({"errors": [], "warnings": []})


@route("GET", API)
def info(hub: HubDouble, request: Request, match: re.Match[str]) -> Answer:
    return Answer.json(_repo(hub, request, match).info_json("main"))


@route("GET", API + r"/revision/(?P<revision>[^/]+)")
def revision_info(hub: HubDouble, request: Request, match: re.Match[str]) -> Answer:
    return Answer.json(_repo(hub, request, match).info_json(unquote(match["revision"])))


@route("GET", API + "/refs")
def refs(hub: HubDouble, request: Request, match: re.Match[str]) -> Answer:
    repo = _repo(hub, request, match)

    def those(start: str) -> list[dict[str, str]]:
        found = [(name, oid) for name, oid in repo.refs.items() if name.startswith(start)]
        return [{"name": name.removeprefix(start), "ref": name, "targetCommit": oid} for name, oid in found]

    listed = {"branches": those("refs/heads/"), "tags": those("refs/tags/"), "converts": []}
    return Answer.json({**listed, "pullRequests": those("refs/pr/")} if "include_prs" in request.query else listed)


@route("POST", API + r"/tag/(?P<revision>[^/]+)")
def tag(hub: HubDouble, request: Request, match: re.Match[str]) -> Answer:
    repo = _repo(hub, request, match, write=True)
    name = f"refs/tags/{request.json()['tag']}"
    if name in repo.refs:
        raise Refused(409, "this tag exists")
    repo.refs[name] = repo.commit_of(unquote(match["revision"])).oid
    return Answer.json({})


def _committable(hub: HubDouble, request: Request, match: re.Match[str]) -> Repo:
    """Return the repository if the user may commit: writers, and who sees it to a pull request of theirs."""
    repo, revision = _repo(hub, request, match), unquote(match["revision"])
    if request.user is None:
        raise Refused(401, "Invalid username or password.")
    number = re.fullmatch(r"refs/pr/(\d+)", revision)
    own = number is not None and int(number[1]) in repo.discussions
    if own and number is not None and repo.discussions[int(number[1])].author == request.user["name"]:
        return repo
    if request.query.get("create_pr") != "1":
        hub.allowed(request, match["kind"], match["name"], write=True)
    return repo


# --- uploads ---------------------------------------------------------------------------------------------------------


@route("POST", API + r"/preupload/(?P<revision>[^/]+)")
def preupload(hub: HubDouble, request: Request, match: re.Match[str]) -> Answer:
    repo = _committable(hub, request, match)
    tree = repo.commit_of(unquote(match["revision"])).tree
    endings = re.findall(r"^\*(\.\w+) filter=lfs", (tree[".gitattributes"].content or b"").decode(), re.MULTILINE)
    found = []
    for file in request.json()["files"]:
        binary = b"\0" in base64.b64decode(file["sample"])
        large = binary or file["size"] > LARGE or file["path"].endswith(tuple(endings))
        there = tree.get(file["path"])
        oid = None if there is None else there.sha256 or there.blob
        entry = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        found.append({**entry, **({"oid": oid} if oid else {})})
    return Answer.json({"files": found})


@route("POST", FILES + r"\.git/info/lfs/objects/batch")
def lfs_batch(hub: HubDouble, request: Request, match: re.Match[str]) -> Answer:
    kind = next(kind for kind, prefix in PREFIX.items() if prefix == match["prefix"])
    hub.allowed(request, kind, match["name"])  # who opens a pull request may bring large files
    if request.user is None:
        raise Refused(401, "Invalid username or password.")
    batch, objects = request.json(), []
    parts = hub.part_bytes if "multipart" in batch.get("transfers", ()) else None
    parts = parts if any(parts and wanted["size"] > parts for wanted in batch["objects"]) else None
    for wanted in batch["objects"]:
        entry: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in hub.large:
            place = f"{hub.url}/lfs/{wanted['oid']}"
            upload: dict[str, Any] = {"href": place}
            if parts is not None and wanted["size"] > parts:
                numbers = range(1, -(-wanted["size"] // parts) + 1)
                header = {f"{number:05d}": f"{place}/part/{number}" for number in numbers}
                upload = {"href": f"{place}/complete", "header": {"chunk_size": str(parts), **header}}
            entry["actions"] = {"upload": upload, "verify": {"href": f"{place}/verify"}}
        objects.append(entry)
    return Answer.json({"transfer": "basic" if parts is None else "multipart", "objects": objects})


@route("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})")
def lfs_put(hub: HubDouble, request: Request, match: re.Match[str]) -> Answer:
    if hashlib.sha256(request.body).hexdigest() != match["oid"]:
        raise Refused(400, "the content has another SHA-256")
    hub.unverified[match["oid"]] = request.body
    return Answer()


@route("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/verify")
def lfs_verify(hub: HubDouble, request: Request, match: re.Match[str]) -> Answer:
    content = hub.large.get(match["oid"], hub.unverified.pop(match["oid"], None))
    if content is None or len(content) != request.json()["size"]:
        raise Refused(404, "the object has not arrived")
    hub.large[match["oid"]] = content
    return Answer.json({})


@route("POST", API + r"/commit/(?P<revision>[^/]+)")
def commit(hub: HubDouble, request: Request, match: re.Match[str]) -> Answer:
    repo = _committable(hub, request, match)
    revision = unquote(match["revision"])
    wants_pr = request.query.get("create_pr") == "1"
    header: dict[str, Any] = {}
    changes: dict[str, Entry | None] = {}
    for line in request.body.splitlines():
        item = json.loads(line)
        value = item["value"]
        if item["key"] == "header":
            header = value
        elif item["key"] == "file":
            changes[value["path"]] = Entry.of(base64.b64decode(value["content"]))
        elif item["key"] == "lfsFile":
            if value["oid"] not in hub.large:
                raise Refused(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
            changes[value["path"]] = Entry.large(value["oid"], len(hub.large[value["oid"]]))
        elif item["key"] == "deletedFolder":
            tree = repo.commit_of(revision).tree
            changes |= dict.fromkeys(path for path in tree if path.startswith(value["path"].rstrip("/") + "/"))
        elif item["key"] == "deletedFile":
            changes[value["path"]] = None
    url = f"{hub.url}/{PREFIX[match['kind']]}{match['name']}"
    extra = {}
    if wants_pr:
        assert request.user is not None
        found = repo.discuss(header["summary"], header.get("description", ""), request.user["name"], pull_request=True)
        found.status = "open"
        revision, extra = f"refs/pr/{found.num}", {"pullRequestUrl": f"{url}/discussions/{found.num}"}
    made = repo.commit(revision, changes, header["summary"], header.get("parentCommit"))
    return Answer.json({"success": True, "commitOid": made.oid, "commitUrl": f"{url}/commit/{made.oid}", **extra})


# --- listings and downloads ------------------------------------------------------------------------------------------


def _entries(repo: Repo, revision: str, folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    tree = repo.commit_of(revision).tree
    start = f"{folder}/" if folder else ""
    inside = {path: entry for path, entry in tree.items() if path.startswith(start)}
    if not inside and folder:
        raise Refused(404, f"{folder} does not exist", "EntryNotFound")
    folders = {
        start + "/".join(parts[:depth])
        for path in inside
        for parts in [path.removeprefix(start).split("/")]
        for depth in range(1, len(parts))
    }
    listed = [{"type": "directory", "path": path, "size": 0, "oid": f"{len(path):040x}"} for path in folders]
    listed += [entry.as_json(path) for path, entry in inside.items()]
    return sorted(
        (item for item in listed if recursive or "/" not in item["path"].removeprefix(start)),
        key=lambda item: str(item["path"]),
    )


@route("GET", API + r"/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?")
def tree(hub: HubDouble, request: Request, match: re.Match[str]) -> Answer:
    repo = _repo(hub, request, match)
    recursive = request.query.get("recursive", "false").lower() in ("1", "true")
    listed = _entries(repo, unquote(match["revision"]), unquote(match["folder"] or ""), recursive=recursive)
    start = int(request.query.get("cursor", 0))
    headers = {}
    if start + hub.page < len(listed):
        more = f"{hub.url}{request.path}?recursive={recursive}&expand=False&cursor={start + hub.page}"
        headers = {"Link": f'<{more}>; rel="next"'}
    return Answer.json(listed[start : start + hub.page], headers=headers)


@route("POST", API + r"/paths-info/(?P<revision>[^/]+)")
def paths_info(hub: HubDouble, request: Request, match: re.Match[str]) -> Answer:
    repo = _repo(hub, request, match)
    if request.headers.get("Content-Type", request.headers.get("content-type", "")).startswith("application/json"):
        paths = request.json()["paths"]
    else:
        paths = parse_qs(request.body.decode())["paths"]
    listed = _entries(repo, unquote(match["revision"]), "", recursive=True)
    return Answer.json([item for item in listed if item["path"] in paths])


@route("ANY", FILES + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(hub: HubDouble, request: Request, match: re.Match[str]) -> Answer:
    kind = next(kind for kind, prefix in PREFIX.items() if prefix == match["prefix"])
    repo = hub.allowed(request, kind, match["name"])
    if repo.gated and hub.role(request, repo.name.split("/")[0]) is None:
        who = None if request.user is None else request.user["name"]
        if who not in repo.accepted:
            raise Refused(401 if who is None else 403, f"Access to {repo.name} is restricted", "GatedRepo")
    revision = unquote(match["revision"])
    headers = {"X-Repo-Commit": repo.commit_of(revision).oid}
    entry = repo.entry(revision, unquote(match["path"]))
    if entry.sha256 is None:
        return _content(request, entry.content or b"", {**headers, "ETag": f'"{entry.blob}"'})
    linked = {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
    # the Hub sends readers of large files to a CDN: another host, which must not see the token
    return Answer(b"", 302, {**headers, **linked, "Location": f"{hub.cdn}/cdn/{entry.sha256}"})


@route("ANY", r"/cdn/(?P<oid>[0-9a-f]{64})")
def cdn(hub: HubDouble, request: Request, match: re.Match[str]) -> Answer:
    if request.user is not None:
        raise Refused(400, "a token was sent to the CDN")
    return _content(request, hub.large[match["oid"]], {"ETag": f'"{match["oid"]}"'})


def _content(request: Request, content: bytes, headers: dict[str, str]) -> Answer:
    headers = {**headers, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", {k.lower(): v for k, v in request.headers.items()}.get("range", ""))
    if wanted is None:
        return Answer(content, 200, {**headers, "Content-Length": str(len(content))})
    if wanted[1]:
        start, stop = int(wanted[1]), min(int(wanted[2] or len(content)) + 1, len(content))
    else:
        start, stop = max(0, len(content) - int(wanted[2])), len(content)
    if start >= len(content):
        raise Refused(416, "no such range")
    part = content[start:stop]
    headers |= {
        "Content-Range": f"bytes {start}-{start + len(part) - 1}/{len(content)}",
        "Content-Length": str(len(part)),
    }
    return Answer(part, 206, headers)


# --- discussions and pull requests -----------------------------------------------------------------------------------


@route("GET", API + "/discussions")
def discussions(hub: HubDouble, request: Request, match: re.Match[str]) -> Answer:
    repo = _repo(hub, request, match)
    found = list(reversed(repo.discussions.values()))
    if request.query.get("type") in ("pull_request", "discussion"):
        found = [entry for entry in found if entry.is_pull_request == (request.query["type"] == "pull_request")]
    if request.query.get("status") in ("open", "closed"):
        is_open = request.query["status"] == "open"
        found = [entry for entry in found if (entry.status in ("open", "draft")) == is_open]
    if "author" in request.query:
        found = [entry for entry in found if entry.author == request.query["author"]]
    start = 10 * int(request.query.get("p", 0))
    page = [repo.discussion_json(entry, details=False) for entry in found[start : start + 10]]
    return Answer.json({"discussions": page, "count": len(found), "start": start})


@route("POST", API + "/discussions")
def open_discussion(hub: HubDouble, request: Request, match: re.Match[str]) -> Answer:
    repo, wanted = _repo(hub, request, match), request.json()
    if request.user is None:
        raise Refused(401, "Invalid username or password.")
    opened = repo.discuss(
        wanted["title"], wanted["description"], request.user["name"], pull_request=bool(wanted["pullRequest"])
    )
    return Answer.json({"num": opened.num, "pullRequest": opened.is_pull_request})


@route("GET", API + NUM)
def discussion(hub: HubDouble, request: Request, match: re.Match[str]) -> Answer:
    repo = _repo(hub, request, match)
    if int(match["num"]) not in repo.discussions:
        raise Refused(404, "no such discussion")
    return Answer.json(repo.discussion_json(repo.discussions[int(match["num"])], details=True))


@route("POST", API + NUM + "/(?P<action>comment|status|merge|title)")
def change_discussion(hub: HubDouble, request: Request, match: re.Match[str]) -> Answer:
    repo, wanted = _repo(hub, request, match), request.json() or {}
    if request.user is None:
        raise Refused(401, "Invalid username or password.")
    found, author = repo.discussions[int(match["num"])], request.user["name"]
    if match["action"] == "comment":
        return Answer.json({"newMessage": repo.comment(found, author, wanted["comment"])})
    if author != found.author or match["action"] == "merge":
        hub.allowed(request, match["kind"], match["name"], write=True)
    if wanted.get("comment"):
        repo.comment(found, author, wanted["comment"])
    if match["action"] == "status":
        return Answer.json({"newStatus": repo.set_status(found, wanted["status"], author)})
    if match["action"] == "title":
        old, found.title = found.title, wanted["title"]
        return Answer.json({"newTitle": repo.event(found, "title-change", author, {"from": old, "to": found.title})})
    repo.merge(found, author)
    return Answer.json({"merged": True, "commit": repo.refs[MAIN]})
