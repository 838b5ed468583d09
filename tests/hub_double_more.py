"""More requests that the Hub double understands: uploads in parts, branches, histories, listings of repositories."""

from __future__ import annotations

import hashlib
import re
from typing import Any
from urllib.parse import unquote

from hub_double import PREFIX, ROUTES, Answer, HubDouble, Request, route
from hub_double_api import API, NUM
from hub_double_repos import MAIN, Refused, Repo

__all__ = ["ROUTES"]

OID = r"/lfs/(?P<oid>[0-9a-f]{64})"
COMMITS_A_PAGE = 50


def _repo(hub: HubDouble, request: Request, match: re.Match[str], *, write: bool = False) -> Repo:
    return hub.allowed(request, match["kind"], match["name"], write=write)


# --- LFS in parts ----------------------------------------------------------------------------------------------------


@route("PUT", OID + r"/part/(?P<number>\d+)")
def put_part(hub: HubDouble, request: Request, match: re.Match[str]) -> Answer:
    assert hub.part_bytes is not None
    if len(request.body) > hub.part_bytes:
        raise Refused(400, "a part is too large")
    hub.parts[match["oid"], int(match["number"])] = request.body
    return Answer(headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})


@route("POST", OID + "/complete")
def complete(hub: HubDouble, request: Request, match: re.Match[str]) -> Answer:
    oid, wanted = match["oid"], request.json()
    parts = []
    for part in wanted["parts"]:
        content = hub.parts.get((oid, part["partNumber"]))
        if content is None or part["etag"].strip('"') != hashlib.md5(content).hexdigest():
            raise Refused(400, f"part {part['partNumber']} has not arrived")
        parts.append(content)
    content = b"".join(parts)
    if wanted["oid"] != oid or hashlib.sha256(content).hexdigest() != oid:
        raise Refused(400, "the content has another SHA-256")
    hub.unverified[oid] = content
    return Answer.json({"success": True})


# --- branches, histories, repositories -------------------------------------------------------------------------------


@route("POST", API + r"/branch/(?P<branch>[^/]+)")
def make_branch(hub: HubDouble, request: Request, match: re.Match[str]) -> Answer:
    repo, name = _repo(hub, request, match, write=True), f"refs/heads/{unquote(match['branch'])}"
    if name in repo.refs:
        raise Refused(409, "Reference already exists")
    start = (request.json() or {}).get("startingPoint") or "main"
    repo.refs[name] = repo.commit_of(start).oid
    return Answer.json({})


@route("DELETE", API + r"/(?P<kind_of>branch|tag)/(?P<ref>[^/]+)")
def delete_ref(hub: HubDouble, request: Request, match: re.Match[str]) -> Answer:
    repo = _repo(hub, request, match, write=True)
    name = f"refs/{'heads' if match['kind_of'] == 'branch' else 'tags'}/{unquote(match['ref'])}"
    if name == MAIN:
        raise Refused(403, "the main branch cannot be deleted")
    if repo.refs.pop(name, None) is None:
        raise Refused(404, f"Invalid rev id: {match['ref']}", "RevisionNotFound")
    return Answer.json({})


@route("GET", API + r"/commits/(?P<revision>[^/]+)")
def commits(hub: HubDouble, request: Request, match: re.Match[str]) -> Answer:
    repo = _repo(hub, request, match)
    found, oid = [], repo.commit_of(unquote(match["revision"])).oid
    while oid is not None:
        commit = repo.commits[oid]
        author = {"user": repo.creator, "avatar": ""}
        found.append({"id": oid, "title": commit.title, "message": "", "date": commit.date, "authors": [author]})
        oid = commit.parent
    start = COMMITS_A_PAGE * int(request.query.get("p", 0))
    headers = {}
    if start + COMMITS_A_PAGE < len(found):
        more = f"{hub.url}{request.path}?p={start // COMMITS_A_PAGE + 1}"
        headers = {"Link": f'<{more}>; rel="next"'}
    return Answer.json(found[start : start + COMMITS_A_PAGE], headers=headers)


@route("GET", "/api/(?P<kind>model|dataset|space)s")
def repositories(hub: HubDouble, request: Request, match: re.Match[str]) -> Answer:
    author, wanted = request.query.get("author"), request.query.get("search", "").lower()
    listed = []
    for (kind, name), repo in sorted(hub.repos.items()):
        owner = name.split("/")[0]
        visible = not repo.private or hub.role(request, owner) is not None
        if kind == match["kind"] and visible and author in (None, owner) and wanted in name.lower():
            listed.append(repo.info_json("main"))
    return Answer.json(listed)


@route("DELETE", "/api/repos/delete")
def delete_repository(hub: HubDouble, request: Request, match: Any) -> Answer:
    wanted = request.json()
    kind = wanted.get("type") or "model"
    name = f"{wanted.get('organization') or (request.user or {}).get('name')}/{wanted['name']}"
    hub.allowed(request, kind, name, write=True)
    del hub.repos[kind, name]
    return Answer.json({"url": f"{hub.url}/{PREFIX[kind]}{name}"})


# --- comments --------------------------------------------------------------------------------------------------------


@route("POST", API + NUM + "/comment/(?P<comment>[0-9a-f]+)/(?P<action>edit|hide)")
def change_comment(hub: HubDouble, request: Request, match: re.Match[str]) -> Answer:
    repo = _repo(hub, request, match)
    if request.user is None:
        raise Refused(401, "Invalid username or password.")
    events = repo.discussions[int(match["num"])].events
    found = next((e for e in events if e["id"] == match["comment"] and e["type"] == "comment"), None)
    if found is None:
        raise Refused(404, "no such comment")
    if found["author"]["name"] != request.user["name"]:
        hub.allowed(request, match["kind"], match["name"], write=True)
    if match["action"] == "hide":
        found["data"]["hidden"] = True
    else:
        found["data"]["edited"] = True
        found["data"]["latest"] = {**found["data"]["latest"], "raw": request.json()["content"]}
    return Answer.json({"updatedComment": found})


# --- names without an owner ------------------------------------------------------------------------------------------


@route("ANY", r"/api/(?:model|dataset|space)s/[^/]+(?:/revision/[^/]+)?|/(?:datasets/|spaces/)?[^/]+/resolve/.+")
def no_owner(hub: HubDouble, request: Request, match: Any) -> Answer:
    raise Refused(401 if request.user is None else 404, "Repository not found", "RepoNotFound")
