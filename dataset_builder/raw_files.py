"""Whether raw data is still the same, without reading it: names, sizes and times of its files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from dataset_builder.jobs import Job
from dataset_builder.spec import load_spec
from em_bench_eval.volume_files import split_location
from em_bench_eval.volume_io import is_remote


def raw_paths(job: Job) -> Iterator[Path]:
    """Yield the files and folders that a source reads; none of a server, nor of what is generated."""
    if job.raw is not None:
        yield job.raw
    yield from (Path(value) for value in job.options.values() if os.sep in value and Path(value).is_file())
    if job.spec is not None:
        for volume in load_spec(job.spec).volumes:
            files = [label.file for label in volume.labels] + [extra.file for extra in volume.extras]
            files += [volume.image] + ([volume.ignore.file] if volume.ignore else [])
            yield from (split_location(file.location)[0] for file in files if not is_remote(file.location))


def files_fingerprint(paths: Iterable[Path]) -> str:
    """Hash names, sizes and modification times of files, and of all files below folders; in any order."""
    lines: set[str] = set()
    seen: set[str] = set()  # a link may lead back to a folder above it
    for path in paths:
        lines.add(_line(path))
        for folder, folders, names in os.walk(path, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:
                folders.clear()
            else:
                seen.add(real)
                lines |= {_line(Path(folder) / name) for name in names}
    return hashlib.sha256("".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _line(path: Path) -> str:
    """Describe one file; of a folder its name says enough, as its own time changes with hidden files too."""
    try:
        state = path.stat()
    except OSError:
        return f"{path} missing\n"
    return f"{path}\n" if path.is_dir() else f"{path} {state.st_size} {state.st_mtime_ns}\n"
