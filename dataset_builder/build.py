"""Sources to a dataset folder, all or nothing.

Everything is written into a hidden folder beside the target, which takes the target's name when it is complete and
checked. Until then, and after any fault, an earlier dataset of that name stays as it was, and what is finished is kept:
the same command continues, also after ``kill -9`` (``journal``). What is written does not depend on the number of
workers, on how often the build was interrupted, or on whether a volume fitted in memory.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dataset_builder import assemble, stages
from dataset_builder.blueprint import Blueprint, Limits, Task, boxes_of, cross_tasks
from dataset_builder.harmonise import window_of
from dataset_builder.jobs import Job as Job  # callers of build make some
from dataset_builder.jobs import check_held_out, check_jobs
from dataset_builder.journal import Journal, Partial, UnusableDataset, partial_folder
from dataset_builder.leaks import Placed, Site, check_leaks
from dataset_builder.notes import Sliced, axes_note
from dataset_builder.source import source_names
from dataset_builder.splits import PARTS, Part, Slab, SplitPolicy, part_of
from dataset_builder.stats import FORMAT, Stats
from dataset_builder.volumes import volume_row
from dataset_builder.workers import Here, Workers, open_workers, sendable
from em_bench_eval import __version__
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Volume, VoxelSize


def build(
    jobs: Sequence[Job],
    out: Path,
    policy: SplitPolicy,
    limits: Limits | None = None,
    *,
    workers: int = 1,
    scheduler: str | None = None,
    overwrite: bool = False,
    restart: bool = False,
) -> Stats:
    """Build the dataset folder ``out`` from all jobs and return what is in it.

    Args:
        jobs: the sources, in the order of their rows.
        out: the folder to make.
        policy: how volumes are divided, or ``split_file.PublishedSplits``.
        limits: tile and smallest instance size, and what fits in memory.
        workers: processes; 1 is this one.
        scheduler: address of a ``dask.distributed`` scheduler that takes the place of ``workers``; its workers must see
            raw data and ``out`` under the same paths.
        overwrite: replace an earlier dataset ``out`` once the new one is complete.
        restart: discard what an interrupted build left, instead of continuing it.

    Raises:
        InputError: unusable input, a split that leaks, a target that exists, a full disk, an interrupted build with
            other settings. ``out`` is then untouched.
    """
    check_jobs(jobs)
    limits = limits or Limits()
    if not Path(os.path.abspath(out)).name:
        raise InputError(f"--out {out} is the whole disk", expected="a new folder for the dataset")
    settings = {
        "version": __version__,
        "jobs": [job.as_json() for job in jobs],
        "policy": policy.as_json(),
        "limits": asdict(limits),
    }
    with (
        partial_folder(out, settings, lambda: _check_target(out, overwrite), restart=restart) as partial,
        open_workers(scheduler, workers) as pool,
    ):
        names = _make_volumes(jobs, policy, limits, partial, pool)
        sources = {job.source.info.name: job.source.info for job in jobs}
        options = {job.source.info.name: job.options for job in jobs if job.source.info.name in source_names()}
        stats = Stats(policy, limits.published(), sources, options=options)
        _publish(stats, names, partial, pool)
        return stats


def _make_volumes(
    jobs: Sequence[Job], policy: SplitPolicy, limits: Limits, partial: Partial, pool: Workers
) -> list[str]:
    """Make rows and arrays of all volumes; return their names in the journal, in order."""
    names: dict[str, None] = {}  # in order
    if not len(partial.journal):  # one that is continued has passed this
        check_held_out(jobs, policy)

    def blueprints() -> Iterator[Blueprint]:
        for number, job in enumerate(jobs):
            if f"job {number}" in partial.journal and not job.source.folders:  # generated: costs time to make again
                names.update(dict.fromkeys(partial.journal[f"job {number}"]))
                continue
            first = len(names)
            for volume in job.volumes():
                name = f"volume {volume.volume_id}"
                if name in names:
                    raise InputError(f"two volumes are called {volume.volume_id}", remedy="rename one in its source")
                names[name] = None
                if name in partial.journal:
                    _check_unchanged(volume, partial.journal[name])
                    continue
                yield _blueprint(job, volume, policy, limits, partial.dataset, partial.work)
            finished.append((f"job {number}", list(names)[first:]))

    def finish(blueprint: Blueprint, result: dict[str, Any]) -> None:
        volume = blueprint.volume
        result |= _described(blueprint, result["instances"])
        partial.journal.add(f"volume {volume.volume_id}", result)
        stages.remove_drafts(blueprint)

    finished: list[tuple[str, list[str]]] = []
    todo = blueprints()
    todo = itertools.chain(list(itertools.islice(todo, 1)), todo)  # a fault of the first is told before there is a bar
    with tqdm(desc="building", unit="volume", file=sys.stderr) as bar:
        for small, group in itertools.groupby(todo, key=lambda blueprint: blueprint.is_one_task):
            first = list(itertools.islice(group, 2 * pool.workers if small and pool.workers > 1 else 0))
            if small and len(first) in (0, 2 * pool.workers):  # enough to keep all workers busy
                for blueprint, result in pool.run(_whole_volume, _sendable(itertools.chain(first, group), pool)):
                    finish(blueprint, result)
                    bar.update()
            else:
                for blueprint in itertools.chain(first, group):
                    finish(blueprint, _by_boxes(next(_sendable([blueprint], pool)), partial.journal, pool))
                    bar.update()
    for name, volumes in finished:
        if name not in partial.journal:
            partial.journal.add(name, volumes)
    return list(names)


def _blueprint(job: Job, volume: Volume, policy: SplitPolicy, limits: Limits, dataset: Path, work: Path) -> Blueprint:
    return Blueprint(
        volume=volume,
        info=job.source.info,
        policy=policy,
        limits=limits,
        window=window_of(volume),
        zarr=dataset / "volumes" / f"{volume.volume_id}.zarr",
        work=work / volume.volume_id,
    )


def _sendable(blueprints: Iterable[Blueprint], pool: Workers) -> Iterator[Blueprint]:
    for blueprint in blueprints:
        if isinstance(pool, Here):
            yield blueprint
        else:
            boxes = boxes_of(blueprint)
            yield replace(blueprint, volume=sendable(blueprint.volume, blueprint.work, boxes))


def _whole_volume(blueprint: Blueprint) -> tuple[Blueprint, dict[str, Any]]:
    return blueprint, stages.whole_volume(blueprint)


def _by_boxes(blueprint: Blueprint, journal: Journal, pool: Workers) -> dict[str, Any]:
    """Do all stages of one volume, box by box; finished boxes of an interrupted run are not done again."""
    volume = blueprint.volume
    boxes = [Task(blueprint, box) for box in boxes_of(blueprint)]
    blueprint.work.mkdir(parents=True, exist_ok=True)

    def each(stage: str, function: Callable[[Task], dict[str, Any]], tasks: Sequence[Task]) -> list[dict[str, Any]]:
        keys = [f"{stage} {volume.volume_id} {task.group} {task.level} {task.name}" for task in tasks]
        todo = [(key, function, task) for key, task in zip(keys, tasks, strict=True) if key not in journal]
        done = len(tasks) - len(todo)
        label = f"{volume.volume_id}: {stage}"
        for key, result in tqdm(
            pool.run(_named, todo), label, len(tasks), initial=done, unit="box", leave=False, file=sys.stderr
        ):
            journal.add(key, result)
        return [journal[key] for key in keys]

    joined = f"joining instances {volume.volume_id}"
    store_box = stages.store_box
    if blueprint.fits_in_memory and isinstance(pool, Here):  # a run that continues this one labels again: that is quick
        store_box = functools.partial(stages.store_box, labels=stages.labels_without_specks(blueprint))
    else:
        if volume.semantic is not None:
            stages.create_classes(blueprint)
            each("finding instances", stages.find_instances, boxes)
            if joined not in journal:
                stages.join_instances(blueprint)
                journal.add(joined, {})
        if blueprint.limits.min_size_nm3:
            each("measuring instances", stages.count_specks, boxes)
            stages.name_instances(blueprint)
    blueprint.pyramids.create(blueprint.id_dtype)
    parts = each("writing rows", store_box, boxes)
    for level in stages.reduce_stages(blueprint):
        each("reducing", stages.reduce_box, level)
    parts += each("writing rows along y and x", stages.cross_box, cross_tasks(blueprint))
    return stages.volume_result(blueprint, parts)


def _named(job: tuple[str, Callable[[Task], dict[str, Any]], Task]) -> tuple[str, dict[str, Any]]:
    key, function, task = job
    return key, function(task)


def _described(blueprint: Blueprint, counts: Mapping[str, int]) -> dict[str, Any]:
    """Return what the whole dataset must know of a finished volume, as JSON."""
    volume, info, policy = blueprint.volume, blueprint.info, blueprint.policy
    return {
        "source": info.name,
        "part": part_of(volume),
        "slice_nm": volume.voxel_size.z,
        "annotated": [str(organelle) for organelle in volume.annotated],
        "split": policy.entry_of(volume),
        "listing": volume_row(volume, info, "volumes", policy.domain_of(volume), counts),
        "identity": _identity(volume),
    }


def _identity(volume: Volume) -> str:
    """Hash what a source declares of a volume."""
    declared = [
        volume.volume_id, [int(size) for size in volume.image.shape], list(volume.voxel_size), volume.source,
        volume.specimen, sorted(map(str, volume.annotated)), volume.ignore is None, volume.semantic is None,
        volume.published_fold, sorted(volume.provenance.items()),
        *((name, np.dtype(array.dtype).name) for name, array in sorted(volume.extras.items())),
        *(() if volume.frame is None else (asdict(volume.frame), volume.origin_nm)),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(declared).encode()).hexdigest()[:16]


def _check_unchanged(volume: Volume, result: Mapping[str, Any]) -> None:
    if result["identity"] != _identity(volume):
        raise InputError(
            f"volume {volume.volume_id} has changed since the unfinished build began",
            expected="the raw data and options that it began with",
            remedy="discard the unfinished build with --restart",
        )


def _publish(stats: Stats, names: Sequence[str], partial: Partial, pool: Workers) -> None:
    """Count and check the whole, and write everything that is not of one volume."""
    policy = stats.policy
    placed: list[Placed] = []
    sites: dict[str, Site] = {}
    sliced: list[Sliced] = []
    for name in names:
        result = partial.journal[name]
        sliced.append(_sliced(result))
        stats.add(result)
        placed += assemble.placed(result)
        if site := assemble.site(result):
            sites[result["volume_id"]] = site
    try:
        label_only = [not result["listing"]["has_image"] for result in map(partial.journal.__getitem__, names)]
        if not stats.images and not any(label_only):
            raise InputError("the sources hold no slices", remedy="check --raw")
        policy.check_complete(result["listing"]["volume_id"] for result in map(partial.journal.__getitem__, names))
        check_leaks(placed, policy.gap_nm, sites, policy.leak_remedy)
    except InputError as error:
        raise UnusableDataset(error.problem, found=error.found, expected=error.expected, remedy=error.remedy) from error
    if note := axes_note(policy, sliced):
        print(note, file=sys.stderr)
    assemble.write_dataset(names, partial, pool, stats, policy)


def _sliced(result: Mapping[str, Any]) -> Sliced:
    slabs = [Slab(*slab) for slab in result["split"]["slabs"]]
    return Sliced(result["volume_id"], VoxelSize(*result["listing"]["voxel_size_nm"]), slabs)


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


def rows(
    jobs: Sequence[Job], policy: SplitPolicy, limits: Limits | None = None, parts: Sequence[Part] = PARTS
) -> Iterator[tuple[Part, dict[str, Any]]]:
    """Yield ``(part, row)`` for every published row of some parts, in the order of a dataset, without its folder.

    All homogeneous rows come first, as in the configuration ``wild``.
    """
    check_jobs(jobs)
    check_held_out(jobs, policy)
    with tempfile.TemporaryDirectory(prefix="em-bench-") as folder:
        for job, volume in _in_order(jobs, parts):
            blueprint = _blueprint(job, volume, policy, limits or Limits(), Path(folder), Path(folder))
            for row in stages.published_rows(blueprint):
                yield part_of(volume), row


def _in_order(jobs: Sequence[Job], parts: Sequence[Part]) -> Iterator[tuple[Job, Volume]]:
    """Yield the volumes of some parts, the homogeneous ones first; each is opened once."""
    later = []
    for job in jobs:
        for volume in job.volumes():
            if part_of(volume) not in parts:
                continue
            if part_of(volume) == PARTS[0]:
                yield job, volume
            else:
                later.append((job, volume))
    yield from later
