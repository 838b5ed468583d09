"""Sources to a dataset folder, all or nothing.

Everything is written into a hidden folder beside the target, which takes the target's name when it is complete and
checked. Until then, and after any fault, an earlier dataset of that name stays as it was.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dataset_builder import card
from dataset_builder.fingerprint import perceptual_hash
from dataset_builder.instances import instances_of
from dataset_builder.records import as_row, features, records_of
from dataset_builder.shards import ShardWriter
from dataset_builder.source import Source, load_source
from dataset_builder.splits import Placed, SplitPolicy, check_leaks, part_of
from dataset_builder.stats import FORMAT, Stats
from dataset_builder.volumes import volume_features, volume_row, write_volume
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Record, Volume
from lpa.plan import replace_folder


@dataclass(frozen=True)
class Job:
    """One source to build from: where its raw data is, and its options."""

    source: Source
    raw: Path | None
    options: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, raw: Path | None, options: Mapping[str, str]) -> Job:
        """Find the raw folder and check the options, so that faults show before any work."""
        source = load_source(name)
        return cls(source, source.find(raw), source.resolve_options(options))

    def volumes(self) -> Iterator[Volume]:
        """Yield the volumes of this source."""
        yield from self.source.volumes(self.raw, self.options)


def build(jobs: Sequence[Job], out: Path, policy: SplitPolicy, *, overwrite: bool = False) -> Stats:
    """Build the dataset folder ``out`` from all jobs and return what is in it.

    Raises ``InputError`` for unusable input, a split that leaks, a target that exists, a full disk; ``out`` is then
    untouched and nothing else is left behind.
    """
    _check_target(out, overwrite)
    stats = Stats(policy)
    with _complete_or_nothing(out) as partial:
        placed = _write_rows(jobs, partial, stats)
        if not stats.images:
            raise InputError("the sources hold no slices", remedy="check --raw")
        check_leaks(placed, policy.gap_nm)
        for name, text in card.texts(stats, _fingerprint(partial)).items():
            (partial / name).write_text(text)
        (partial / "stats.json").write_text(json.dumps(stats.as_json(), indent=2) + "\n")
    return stats


def _write_rows(jobs: Sequence[Job], folder: Path, stats: Stats) -> list[Placed]:
    """Write volumes and rows of all jobs below ``folder``; return where each row was placed."""
    writers: dict[tuple[str, str], ShardWriter] = {}
    listing = ShardWriter(folder, "volumes", volume_features())
    placed: list[Placed] = []
    columns = features()
    try:
        for job in jobs:
            info = job.source.info
            stats.sources[info.name] = info
            for volume in job.volumes():
                if volume.volume_id in stats.volumes:
                    raise InputError(f"two volumes are called {volume.volume_id}", remedy="rename one in its source")
                stats.volumes[volume.volume_id] = info.name
                instances, organelle_of = instances_of(volume)
                for organelle in volume.annotated:
                    stats.instances[info.name, str(organelle)] += sum(o is organelle for o in organelle_of.values())
                part = part_of(volume)
                rows = records_of(volume, info, stats.policy, instances, organelle_of)
                total = len(stats.policy.folds_of(volume))
                for record in tqdm(rows, volume.volume_id, total, unit="slice"):
                    key = (part, record.fold)
                    if key not in writers:
                        writers[key] = ShardWriter(folder / "data" / part, record.fold, columns)
                    writers[key].add(as_row(record))
                    stats.count(record, part)
                    placed.append(_place(record))
                write_volume(folder / "volumes" / f"{volume.volume_id}.zarr", volume, info, instances, organelle_of)
                listing.add(volume_row(volume, info, "volumes", stats.policy.domain_of(volume), organelle_of))
        for writer in writers.values():
            writer.close()
        for path in listing.close():
            path.rename(folder / "volumes.parquet")
    except BaseException:
        for writer in (*writers.values(), listing):
            writer.abandon()
        raise
    return placed


def _fingerprint(folder: Path) -> str:
    """Hash the names and contents of all parquet files below ``folder``."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.parquet")):
        digest.update(str(path.relative_to(folder)).encode())
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()[:16]


def _place(record: Record) -> Placed:
    return Placed(
        volume_id=record.volume_id,
        slice=record.slice,
        slice_nm=record.voxel_size_nm[0],
        specimen=record.specimen,
        fold=record.fold,
        domain=record.domain,
        fingerprint=perceptual_hash(record.image),
    )


def _check_target(out: Path, overwrite: bool) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if not overwrite:
        raise InputError(
            f"{out} exists",
            expected="a folder that does not exist yet",
            remedy="choose another --out, or replace it with --overwrite (it is kept until the new one is complete)",
        )
    try:
        ours = json.loads((out / "stats.json").read_text())["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise InputError(
            f"{out} is not a dataset that em-bench built",
            found="no stats.json of ours" if out.is_dir() else "a file",
            expected="a folder written by em-bench build",
            remedy="--overwrite replaces such folders only; choose another --out or remove it yourself",
        )


@contextmanager
def _complete_or_nothing(out: Path) -> Iterator[Path]:
    """Give a hidden folder that becomes ``out`` if the block ends well, and vanishes if it does not."""
    parent = out.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    for stale in parent.glob(f".{out.name}.partial-*"):
        if not _is_running(stale.name.rpartition("-")[2]):
            shutil.rmtree(stale, ignore_errors=True)  # left by a killed build
    partial = parent / f".{out.name}.partial-{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        replace_folder(partial, out)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"no space left while building {out}",
            found=f"{shutil.disk_usage(parent).free / 1e6:.0f} MB free in {parent} with the unfinished build",
            remedy="free space or choose --out on another disk, then run the same command again",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def rows(jobs: Sequence[Job], policy: SplitPolicy) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``(part, row)`` for every published row of all jobs, without writing anything."""
    for job in jobs:
        for volume in job.volumes():
            instances, organelle_of = instances_of(volume)
            for record in records_of(volume, job.source.info, policy, instances, organelle_of):
                yield part_of(volume), as_row(record)
