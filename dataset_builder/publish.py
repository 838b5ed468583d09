"""A dataset folder to a dataset repository of the Hugging Face Hub: what goes, what stays at home, and the upload."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from dataset_builder.publishable import Verdict, all_volumes, known_files, verdicts, write_publishable
from dataset_builder.recipes import row_fingerprints
from em_bench_eval.errors import InputError
from em_bench_eval.hub_faults import WAITS_S, api_for, explained, patiently
from em_bench_eval.hub_upload import Repository, Uploaded, hashed, upload

# what the Hub stores as LFS unless a repository says otherwise: its default .gitattributes, and any file that is large
LFS_ENDINGS = frozenset({".parquet", ".png", ".jpg", ".jpeg"})
REGULAR_BYTES = 10 * 10**6
# what the Hub advises (huggingface.co/docs/hub/storage-limits): more works worse, a larger file not at all
MOST_FILES, MOST_IN_FOLDER, LARGEST_FILE = 100_000, 10_000, 50 * 10**9


@dataclass(frozen=True)
class LeftOut:
    """Files of the folder that are not uploaded."""

    what: str
    files: int
    bytes: int
    why: str


@dataclass(frozen=True)
class Plan:
    """What an upload would be."""

    judged: Sequence[Verdict]
    files: Mapping[str, Path]  # path in the repository -> local file
    sizes: Mapping[str, int]  # bytes
    left_out: Sequence[LeftOut]
    fingerprints: Mapping[str, str]  # withheld source -> fingerprint of its rows

    @property
    def lfs(self) -> list[str]:
        """Files that the Hub will probably store as LFS; it decides when they arrive."""
        return [name for name in self.files if _is_lfs(name, self.files[name], self.sizes[name])]


@contextmanager
def planned(folder: Path, without: Collection[str] = (), *, only_quote: bool = False) -> Iterator[Plan]:
    """Judge the sources of a dataset folder and gather the files to upload.

    If something is withheld, the rest lies in a hidden folder beside ``folder`` for the time of the block.

    Raises:
        InputError: no dataset, an unclear licence, nothing left (unless ``only_quote``), another run at work.
    """
    from filelock import FileLock, Timeout

    folder = folder.absolute()
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}", expected="a folder that em-bench build wrote")
    judged = verdicts(folder, without)
    withheld = [verdict.source for verdict in judged if not verdict.as_pixels and not verdict.dropped]
    if all(verdict.as_pixels for verdict in judged):
        files = known_files(folder, all_volumes(folder))
        yield _plan(judged, folder, files, {})
        return
    if only_quote and not any(verdict.as_pixels for verdict in judged):
        prints = row_fingerprints(folder, withheld)
        yield _plan(judged, folder, {}, {name: found for name, (found, _) in prints.items()})
        return
    part = folder.with_name(f".{folder.name}.publishable")
    lock = FileLock(part.with_name(part.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"another run is publishing {folder}", remedy="wait for it, or stop it") from error
    except OSError as error:
        raise _no_room(part, error) from error
    try:
        shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
        try:
            write_publishable(folder, part, judged)
        except OSError as error:
            raise _no_room(part, error) from error
        files = known_files(part, all_volumes(part))
        recipes = {name: json.loads((part / f"recipes/{name}.json").read_text()) for name in withheld}
        yield _plan(judged, folder, files, {name: entry["rows_fingerprint"] for name, entry in recipes.items()})
    finally:
        shutil.rmtree(part, ignore_errors=True)
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def _no_room(part: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write {part}, which holds what remains without the withheld sources",
        found=f"{type(error).__name__}: {error.strerror}",
        expected="a writable folder with space for the rows that remain (volumes are hard links)",
        remedy="free space, or move the dataset folder to where you may write beside it",
    )


def publish(
    plan: Plan,
    to: Repository,
    tag: str | None = None,
    token: str | None = None,
    waits_s: Sequence[float] = WAITS_S,
) -> Uploaded:
    """Upload a plan; see ``hub_upload.upload``. Faults of the Hub are ``InputError`` with what to do about them."""
    from huggingface_hub import get_token

    for name, size in plan.sizes.items():
        if size > LARGEST_FILE:
            raise InputError(f"{name} is too large for the Hub", found=size, expected=f"at most {LARGEST_FILE} bytes")
    title = f"em-organelle-wild{'' if tag is None else f' {tag}'}"
    api = api_for(token)
    try:
        patiently(api.whoami, "asking who we are", waits_s)  # a wrong token shows before hours of hashing
        return upload(api, to, hashed(plan.files), title, tag, waits_s)
    except InputError:
        raise
    except Exception as error:
        known = explained(error, f"publishing to {to.repo_id}", token or get_token())
        if known is None:
            raise
        raise known from None  # the client's own traceback may quote request headers


def warnings(plan: Plan) -> list[str]:
    """Say where a plan goes beyond what the Hub advises."""
    folders = Counter(str(PurePosixPath(name).parent) for name in plan.files)
    crowded = [name for name, files in folders.items() if files > MOST_IN_FOLDER]
    found = [f"more than {MOST_IN_FOLDER} files in {name}: the Hub advises fewer" for name in crowded]
    if len(plan.files) > MOST_FILES:
        found.append(f"{len(plan.files)} files: the Hub advises at most {MOST_FILES} in a repository")
    return found


def _plan(judged: Sequence[Verdict], folder: Path, files: Mapping[str, Path], fingerprints: Mapping[str, str]) -> Plan:
    sizes = {name: path.stat().st_size for name, path in files.items()}
    return Plan(judged, files, sizes, _left_out(folder, files), fingerprints)


def _left_out(folder: Path, files: Mapping[str, Path]) -> list[LeftOut]:
    """Group the files of a folder that have no counterpart of the same name in the upload, or a smaller one."""
    ours = known_files(folder, all_volumes(folder))
    groups: dict[tuple[str, str], list[int]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name in files:
            continue
        top = "/".join(name.split("/")[:2]) if name.startswith(("data/", "volumes/")) else name.split("/")[0]
        why = "of withheld sources, or under another number" if name in ours else "em-bench build did not write it"
        if name.startswith("data/"):
            top = str(PurePosixPath(name).parent)
        groups.setdefault((top, why), []).append(path.stat().st_size)
    return [LeftOut(what, len(sizes), sum(sizes), why) for (what, why), sizes in groups.items()]


def _is_lfs(name: str, path: Path, size: int) -> bool:
    if PurePosixPath(name).suffix in LFS_ENDINGS or size > REGULAR_BYTES:
        return True
    with path.open("rb") as content:
        return b"\0" in content.read(512)  # binary, as git sees it
