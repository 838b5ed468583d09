"""A dataset folder to a dataset repository of the Hugging Face Hub: what goes, what stays at home, and the upload."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from dataset_builder.disclosure import STATS, check_history
from dataset_builder.private_labels import KEY
from dataset_builder.publishable import Verdict, all_volumes, known_files, verdicts, write_labels, write_publishable
from dataset_builder.recipes import row_fingerprints
from em_bench_eval.alone import alone
from em_bench_eval.errors import InputError
from em_bench_eval.hub_faults import WAITS_S, api_for
from em_bench_eval.hub_push import advised, send
from em_bench_eval.hub_upload import Repository, Uploaded

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
    private: Sequence[str] = ()  # folds whose labels are not in ``files``
    labels: Mapping[str, Path] = field(default_factory=dict)  # the second, private repository: these folds with labels

    @property
    def lfs(self) -> list[str]:
        """Files that the Hub will probably store as LFS; it decides when they arrive."""
        return [name for name in self.files if _is_lfs(name, self.files[name], self.sizes[name])]


@contextmanager
def planned(
    folder: Path, without: Collection[str] = (), private: Sequence[str] = (), *, only_quote: bool = False
) -> Iterator[Plan]:
    """Judge the sources of a dataset folder and gather the files to upload; ``private``: folds without their labels.

    If something is withheld, the rest lies in hidden folders beside ``folder`` for the time of the block.

    Raises:
        InputError: no dataset, an unclear licence, nothing left (unless ``only_quote``), another run at work.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}", expected="a folder that em-bench build wrote")
    judged = verdicts(folder, without)
    if all(verdict.dropped for verdict in judged):
        raise InputError(
            f"--without leaves no source of {folder}",
            found=f"--without {', '.join(sorted(without))}",
            expected="at least one source to publish",
            remedy="leave out fewer sources",
        )
    withheld = [verdict.source for verdict in judged if not verdict.as_pixels and not verdict.dropped]
    _check_unchanged_privacy(folder, private)
    if all(verdict.as_pixels for verdict in judged) and not private:
        files = known_files(folder, all_volumes(folder))
        yield _plan(judged, folder, files, {})
        return
    if only_quote and not any(verdict.as_pixels for verdict in judged):
        found = row_fingerprints(folder, withheld)
        yield _plan(judged, folder, {}, {name: fingerprint for name, (fingerprint, _) in found.items()})
        return
    part, labels = (folder.with_name(f".{folder.name}.{kind}") for kind in ("publishable", "labels"))
    lock, held = part.with_name(part.name + ".lock"), ExitStack()
    try:
        held.enter_context(alone(lock, f"publishing {folder}"))
    except OSError as error:
        raise _no_room(part, error) from error
    try:
        for left in (part, labels):
            shutil.rmtree(left, ignore_errors=True)  # of a run that was killed
        try:
            write_publishable(folder, part, judged, private)
            if private:
                write_labels(folder, labels, judged, private)
        except OSError as error:
            raise _no_room(part, error) from error
        files = known_files(part, all_volumes(part))
        recipes = {name: json.loads((part / f"recipes/{name}.json").read_text()) for name in withheld}
        prints = {name: entry["rows_fingerprint"] for name, entry in recipes.items()}
        hidden = known_files(labels, all_volumes(labels)) if private else {}
        yield _plan(judged, folder, files, prints, private, hidden)
    finally:
        for left in (part, labels):
            shutil.rmtree(left, ignore_errors=True)
        held.close()
        lock.unlink(missing_ok=True)


def _no_room(part: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write {part}, which holds what remains without the withheld sources",
        found=f"{type(error).__name__}: {error.strerror}",
        expected="a writable folder with space for the rows that remain (volumes are hard links)",
        remedy="free space, or move the dataset folder to where you may write beside it",
    )


def _check_unchanged_privacy(folder: Path, private: Sequence[str]) -> None:
    """A folder whose labels were taken out already has none to keep private."""
    stats = folder / STATS
    gone = json.loads(stats.read_text(encoding="utf-8")).get(KEY, []) if stats.is_file() else []
    if set(gone) & set(private):
        raise InputError(
            f"{folder} has no labels of {', '.join(gone)} itself",
            expected="the dataset with all its labels, as em-bench build wrote it",
        )


def publish(
    plan: Plan,
    to: Repository,
    tag: str | None = None,
    token: str | None = None,
    waits_s: Sequence[float] = WAITS_S,
    labels_to: Repository | None = None,
) -> Uploaded:
    """Upload a plan; see ``hub_upload.upload``. Faults of the Hub are ``InputError`` with what to do about them.

    Private labels go first, to ``labels_to``, which stays private.

    Raises:
        InputError: also if labels that are to be private can be read in the repository's history, or if this would
            show labels that were private.
    """
    for name, size in plan.sizes.items():
        if size > LARGEST_FILE:
            raise InputError(f"{name} is too large for the Hub", found=size, expected=f"at most {LARGEST_FILE} bytes")
    with advised(f"looking at {to.repo_id}", token):
        check_history(api_for(token), to, plan.private, waits_s)
    title = f"em-organelle-wild{'' if tag is None else f' {tag}'}"
    if plan.private:
        if labels_to is None or labels_to.public:
            raise ValueError("private labels need a private repository")
        send(plan.labels, labels_to, f"labels of {title}", tag, token, waits_s)
    # the file that says whether labels are private goes first: see disclosure
    files = {STATS: plan.files[STATS], **plan.files} if STATS in plan.files else plan.files
    return send(files, to, title, tag, token, waits_s)


def warnings(plan: Plan) -> list[str]:
    """Say where a plan goes beyond what the Hub advises."""
    folders = Counter(str(PurePosixPath(name).parent) for name in plan.files)
    crowded = [name for name, files in folders.items() if files > MOST_IN_FOLDER]
    found = [f"more than {MOST_IN_FOLDER} files in {name}: the Hub advises fewer" for name in crowded]
    if len(plan.files) > MOST_FILES:
        found.append(f"{len(plan.files)} files: the Hub advises at most {MOST_FILES} in a repository")
    return found


def _plan(
    judged: Sequence[Verdict],
    folder: Path,
    files: Mapping[str, Path],
    fingerprints: Mapping[str, str],
    private: Sequence[str] = (),
    labels: Mapping[str, Path] = MappingProxyType({}),
) -> Plan:
    sizes = {name: path.stat().st_size for name, path in files.items()}
    withheld = "of withheld sources" if not private else "of withheld sources, or with private labels"
    return Plan(judged, files, sizes, _left_out(folder, files, withheld), fingerprints, private, labels)


def _left_out(folder: Path, files: Mapping[str, Path], withheld: str) -> list[LeftOut]:
    """Group the files of a folder that have no counterpart of the same name in the upload, or a smaller one."""
    ours = known_files(folder, all_volumes(folder))
    groups: dict[tuple[str, str], list[int]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name in files:
            continue
        top = "/".join(name.split("/")[:2]) if name.startswith(("data/", "volumes/")) else name.split("/")[0]
        why = f"{withheld}, or under another number" if name in ours else "em-bench build did not write it"
        if name.startswith("data/"):
            top = str(PurePosixPath(name).parent)
        groups.setdefault((top, why), []).append(path.stat().st_size)
    return [LeftOut(what, len(sizes), sum(sizes), why) for (what, why), sizes in groups.items()]


def _is_lfs(name: str, path: Path, size: int) -> bool:
    if PurePosixPath(name).suffix in LFS_ENDINGS or size > REGULAR_BYTES:
        return True
    with path.open("rb") as content:
        return b"\0" in content.read(512)  # binary, as git sees it
