"""The hidden folder in which a dataset is made, and what is finished in it: all that a run after ``kill -9`` needs.

::

    .NAME.partial/          beside the dataset folder NAME
        manifest.json       the settings; a run with others does not touch the folder
        lock                held by the run that is at work
        journal.jsonl       one line for everything that is finished
        work/<volume_id>/   rows, tables and drafts of a volume
        dataset/            takes the name NAME at the end
        dataset.old/        the earlier dataset NAME, while the two change places

Files get their names when they are complete, and the journal names only files that have theirs. Both survive the end of
the process in any form; after a power failure, start again (``--restart``).
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from em_bench_eval.alone import alone
from em_bench_eval.errors import InputError
from em_bench_eval.whole_file import write_whole
from lpa.plan import replace_folder

FORMAT = 1


class Journal:
    """Finished things by name, each with a result that is JSON. Results stay on disk until they are asked for."""

    def __init__(self, path: Path):
        self._path = path
        self._place: dict[str, int] = {}
        self._end = 0
        if path.exists():
            with path.open("rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):  # torn by a kill: that thing is done again
                        break
                    self._place[json.loads(line)[0]] = self._end
                    self._end += len(line)
            os.truncate(path, self._end)

    def __contains__(self, name: str) -> bool:
        return name in self._place

    def __len__(self) -> int:
        return len(self._place)

    def __getitem__(self, name: str) -> Any:
        with self._path.open("rb") as file:
            file.seek(self._place[name])
            return json.loads(file.readline())[1]

    def add(self, name: str, result: object) -> None:
        """Note that ``name`` is finished; its files must be complete."""
        line = (json.dumps([name, result], separators=(",", ":")) + "\n").encode()
        with self._path.open("ab") as file:
            file.write(line)
        self._place[name] = self._end
        self._end += len(line)


class Partial:
    """The hidden folder of one dataset, held by this process."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.dataset, self.work = folder / "dataset", folder / "work"
        self.journal = Journal(folder / "journal.jsonl")
        for path in (self.dataset, self.work):
            path.mkdir(exist_ok=True)


@contextmanager
def partial_folder(
    out: Path, settings: Mapping[str, object], check: Callable[[], None], *, restart: bool
) -> Iterator[Partial]:
    """Give the hidden folder of ``out``, as an interrupted run left it; it becomes ``out`` if the block ends well.

    ``check`` raises if ``out`` must not be replaced; it is called while no other run can be at work.

    After a fault or an interruption the folder stays, so that the same command continues, unless nothing in it is
    finished.

    Raises:
        InputError: another run is at work there; an interrupted run had other settings and ``restart`` is not given; no
            space is left.
    """
    target = Path(os.path.abspath(out))
    folder = target.with_name(f".{target.name}.partial")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    with alone(folder / "lock", f"building {out}"):
        _restore(folder, target)
        try:
            check()
            _take_up(folder, out, settings, restart)
        except BaseException:
            if not (folder / "manifest.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
            raise
        partial = Partial(folder)
        try:
            yield partial
            for stale in partial.dataset.rglob("*.__lock"):  # tensorstore's, of a process that was killed
                stale.unlink()
            replace_folder(partial.dataset, target)
        except BaseException as error:
            if not len(partial.journal) or isinstance(error, UnusableDataset):
                shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise InputError(
                    f"no space left while building {out}",
                    found=f"{shutil.disk_usage(target.parent).free / 1e6:.0f} MB free in {target.parent} with the "
                    "unfinished build",
                    remedy=f"free space, then run the same command again, which continues; or delete {folder} and "
                    "choose --out on another disk",
                ) from error
            raise
        _empty(folder)
        shutil.rmtree(folder, ignore_errors=True)  # Windows keeps a lock that is held


class UnusableDataset(InputError):
    """All is built, and the whole cannot be published: other settings are needed, so nothing is worth continuing."""


def _restore(folder: Path, target: Path) -> None:
    """Clear up after a run that was killed while it replaced an earlier dataset by the new one."""
    old = folder / "dataset.old"
    if not target.exists() and old.exists():  # between the two renames: give the earlier dataset its name back
        old.rename(target)
    if target.exists() and not (folder / "dataset").exists() and (folder / "manifest.json").exists():
        _empty(folder)  # the new one was in its place: nothing here is needed


def _take_up(folder: Path, out: Path, settings: Mapping[str, object], restart: bool) -> None:
    manifest = folder / "manifest.json"
    wanted = json.loads(json.dumps({"format": FORMAT, **settings}))
    found = json.loads(manifest.read_text()) if manifest.exists() else None
    if found == wanted and not restart:
        return
    if found not in (None, wanted) and not restart:
        changed = [key for key in sorted({*wanted, *found}) if found.get(key) != wanted.get(key)]
        raise InputError(
            f"an unfinished build of {out} had other settings",
            found="; ".join(f"{key} {json.dumps(found.get(key))}" for key in changed),
            expected="; ".join(f"{key} {json.dumps(wanted.get(key))}" for key in changed),
            remedy=f"repeat its settings to continue it, or discard it with --restart (it lies in {folder})",
        )
    manifest.unlink(missing_ok=True)  # first: without it, what is left is no unfinished build
    _empty(folder)
    write_whole(manifest, lambda path: path.write_text(json.dumps(wanted, indent=2) + "\n"))


def _empty(folder: Path) -> None:
    for child in folder.iterdir():
        if child.is_dir():
            shutil.rmtree(child)
        elif child.name != "lock":
            child.unlink()
