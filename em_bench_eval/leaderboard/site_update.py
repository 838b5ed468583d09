"""The page from the results: rendered into a folder, uploaded to a static Space; not again while nothing changed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from em_bench_eval import __version__
from em_bench_eval.errors import InputError
from em_bench_eval.hub_faults import WAITS_S, patiently
from em_bench_eval.hub_upload import Repository, hashed, upload
from em_bench_eval.leaderboard.hub_results import PICTURES, download
from em_bench_eval.leaderboard.judge import unpack_pictures
from em_bench_eval.leaderboard.pulls import Submissions
from em_bench_eval.leaderboard.results import Results, write_file

STATE = "leaderboard.json"  # of the page: from which results it was made
ENDINGS = (".html", ".json", ".md")
Pictures = Mapping[str, list[dict[str, Any]]]


def state_of(results: Results, dataset: str) -> bytes:
    """Return the file that says from what a page was made."""
    return (json.dumps({"results": results.digest(), "dataset": dataset, "software": __version__}) + "\n").encode()


def write_site(results: Results, out: Path, dataset: str, pictures: Callable[[], Pictures]) -> Path:
    """Render the page unless the folder holds just this one; returns the path of its front page.

    ``pictures`` is called only if they are needed.
    """
    from em_bench_eval.leaderboard.site import render_site

    state = state_of(results, dataset)
    index = out / "index.html"
    if index.is_file() and (out / STATE).is_file() and (out / STATE).read_bytes() == state:
        return index
    (out / STATE).unlink(missing_ok=True)  # a run that is killed now is repeated
    render_site(list(results.documents.values()), out, dataset=dataset, pictures=pictures())
    write_file(out / STATE, state)
    return index


def pictures_of(hub: Submissions, results: Results, cache: Path) -> Pictures:
    """Return the pictures of all results: from ``cache``, else from the submissions repository."""
    from tqdm import tqdm

    head = hub.head()
    there = hub.children(head, PICTURES)
    found = {}
    for own in tqdm(sorted(results.documents), "pictures", unit="submission", disable=None, file=sys.stderr):
        name = f"{PICTURES}/{own}.json.gz"
        if name not in there:
            continue
        kept = cache / f"{own[:32]}-{there[name].blob_id[:16]}.json.gz"
        if not kept.is_file():
            write_file(kept, download(hub, head, name) or b"")
        found[own] = unpack_pictures(kept.read_bytes())
    return found


def publish_site(api: Any, space: str, out: Path, waits_s: Sequence[float] = WAITS_S) -> str | None:
    """Upload a page that ``write_site`` wrote, if the Space has another; returns its address, ``None`` if it has it.

    The Space is made, private, if it is not there. Its ``README.md`` is left alone.
    """
    state = (out / STATE).read_bytes()
    if _state_there(api, space, waits_s) == state:
        return None
    paths = {path.relative_to(out).as_posix(): path for path in sorted(out.rglob("*")) if path.is_file()}
    files = {name: path for name, path in paths.items() if name.endswith(ENDINGS) and not name.startswith(".")}
    to = Repository(space, "space", public=_is_public(api, space, waits_s), space_sdk="static")
    title = f"Leaderboard of {json.loads(state)['results'][:12]}"
    return upload(api, to, hashed(files), title, None, waits_s, initial=("README.md",)).url


def _state_there(api: Any, space: str, waits_s: Sequence[float]) -> bytes | None:
    def attempt() -> bytes:
        return Path(api.hf_hub_download(space, STATE, repo_type="space")).read_bytes()

    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError

    try:
        return patiently(attempt, "reading the Space", waits_s)
    except (EntryNotFoundError, RepositoryNotFoundError):
        return None


def _is_public(api: Any, space: str, waits_s: Sequence[float]) -> bool:
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        found = patiently(lambda: api.repo_info(space, repo_type="space"), "looking for the Space", waits_s)
    except RepositoryNotFoundError:
        return False
    return not found.private


def remake(
    hub: Submissions,
    api: Any,
    read: Callable[[], Results],
    out: Path,
    dataset: str,
    cache: Path,
    space: str | None,
    *,
    rounds: int = 3,
) -> str | None:
    """Render and upload the page of the newest results, again if another maintainer was faster."""
    for last in (*(False,) * (rounds - 1), True):
        results = read()
        write_site(results, out, dataset, lambda results=results: pictures_of(hub, results, cache))  # type: ignore[misc]
        if space is None:
            return None
        try:
            return publish_site(api, space, out, hub.waits_s)
        except InputError as error:
            if last:
                raise
            print(error, file=sys.stderr)
    return None
