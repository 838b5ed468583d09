"""Downloading a submission: judged by its listing before a byte is read, compared by content when it is here."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from em_bench_eval.errors import InputError
from em_bench_eval.hub_faults import patiently
from em_bench_eval.hub_upload import hashed
from em_bench_eval.leaderboard.forms import belonging, recognise
from em_bench_eval.leaderboard.pulls import Submissions
from em_bench_eval.leaderboard.safe_read import MAX_DEPTH, MAX_NAME
from em_bench_eval.leaderboard.verdict import EXAMPLES, Faults, Verdict, printable

DOWNLOADS_AT_ONCE = 8


@dataclass(frozen=True)
class Limits:
    """What is downloaded of one submission at most."""

    files: int = 50_000
    bytes: int = 20 * 2**30


def refusal(kind: str, title: str, remedy: str, *faults: tuple[str, str, str]) -> Verdict:
    """Return a verdict with one kind of fault; ``faults`` are (where, found, expected)."""
    examples = [
        {name: printable(text) for name, text in zip(("where", "found", "expected"), fault, strict=True) if text}
        for fault in faults[:EXAMPLES]
    ]
    return Verdict([{"kind": kind, "title": title, "count": len(faults), "examples": examples, "remedy": remedy}])


def check_listing(files: Mapping[str, int], limits: Limits = Limits()) -> Verdict | None:
    """Judge the names and sizes of a submission's files (path inside it -> bytes); ``None``: it can be downloaded."""
    total = sum(files.values())
    if len(files) > limits.files or total > limits.bytes:
        return refusal(
            "resources",
            "more than a submission may have",
            "use fewer and larger files, as predictions.parquet; or ask the maintainers",
            (
                "pull request",
                f"{len(files):,} files, {total / 2**30:.1f} GiB",
                f"at most {limits.files:,} files and {limits.bytes / 2**30:g} GiB",
            ),
        )
    unsafe = [name for name in files if not _is_plain(name)]
    folded: dict[str, str] = {}
    for name in files:
        if folded.setdefault(name.casefold(), name) != name:
            unsafe.append(name)
    if unsafe:
        faults = [(name, "a name that is refused", "letters, digits, and . _ - @ + = in folders") for name in unsafe]
        return refusal("unsafe", "file names", "rename these files", *faults)
    if "submission.yaml" not in files:
        remedy = "em-bench submit makes the right layout"
        return refusal("manifest", "submission.yaml", remedy, ("submission.yaml", "no such file", "who submits what"))
    noted = Faults()
    form = recognise(files, noted)
    strange = sorted(set(files) - set(belonging(files, form)))
    if form is None:
        return Verdict(noted.as_list())
    if strange:
        faults = [(name, f"{files[name]:,} bytes", "predictions, README.md, LICENSE") for name in strange]
        return refusal("unsafe", "files that are no part of a submission", "remove them", *faults)
    return None


def _is_plain(name: str) -> bool:
    parts = name.split("/")
    return (
        len(name) <= MAX_NAME
        and len(parts) <= MAX_DEPTH
        and name.isascii()
        and name.isprintable()
        and not set(name) & set('\\:*?"<>|')
        and all(part.strip(" .") and part == part.strip() and not part.endswith(".") for part in parts)
    )


def fetch(hub: Submissions, revision: str, folder: str, files: Mapping[str, Any], into: Path) -> Path:
    """Download a submission that ``check_listing`` accepted, and return its folder.

    Args:
        hub: the repository.
        revision: a commit, not a branch, so that all files are of one state.
        folder: of the submission in the repository.
        files: its listing, path inside the folder -> ``RepoFile``.
        into: an empty folder.

    Raises:
        InputError: no space on the disk, or what arrived is not what the listing says.
    """
    total = sum(int(entry.size) for entry in files.values())
    into.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(into).free
    if total * 1.1 > free:
        raise InputError(
            "no space to download a submission",
            found=f"{free / 2**30:.1f} GiB free in {into}",
            expected=f"{total / 2**30:.1f} GiB",
            remedy="free space, or name another folder with --work",
        )
    from tqdm import tqdm

    with (
        tqdm(total=total, desc="downloading", unit="B", unit_scale=True, file=sys.stderr) as bar,
        ThreadPoolExecutor(DOWNLOADS_AT_ONCE) as pool,
    ):

        def download(name: str) -> None:
            def attempt() -> None:
                hub.api.hf_hub_download(
                    hub.repo_id, f"{folder}/{name}", repo_type="dataset", revision=revision, local_dir=into
                )

            patiently(attempt, "downloading", hub.waits_s)
            bar.update(int(files[name].size))

        list(pool.map(download, files))
    here = into / folder
    found = hashed({name: here / name for name in files})
    wrong = [name for name, file in found.items() if not file.equals(files[name])]
    if wrong:
        raise InputError("what was downloaded is not what the Hub listed", found=", ".join(sorted(wrong)[:5]))
    return here
