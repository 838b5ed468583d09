"""What is done to a volume, box by box. Every function may run in any process, and twice: it writes the same files.

::

    find_instances   semantic labels    source -> work/classes, faces
    join_instances   ids                faces -> names
    count_specks     sizes              -> work/names.npz                only with a smallest size
    store_box        image, labels      -> <volume>.zarr level 0 (extras too), rows along z, instance table
    reduce_box       pyramid            level n - 1 -> level n
    cross_box        rows along y and x <volume>.zarr -> rows

A small volume goes through all of them at once (``whole_volume``); one that fits in memory, and is not shared among
processes, is labelled there.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dataset_builder.blueprint import DRAFTS, Blueprint, Task, boxes_of, cross_tasks
from dataset_builder.fingerprint import perceptual_hash
from dataset_builder.instances import (
    CLASSES,
    NAMES,
    InstanceTable,
    Labelled,
    Labels,
    Renamed,
    Stored,
    checked_classes,
    count_voxels,
    deferred_ids,
    labels_in_memory,
    labels_on_disk,
    names_without_specks,
)
from dataset_builder.layout import Box
from dataset_builder.numbering import IdTable, Plane
from dataset_builder.records import Slice, Voxels, image_of, planes_of, rows_of, slice_of
from dataset_builder.shards import write_part
from dataset_builder.volumes import IMAGE, create_array, extra_group, open_array, stored_dtype, write_box
from em_bench_eval.schema import ORGANELLES, Fold
from em_bench_eval.whole_file import write_whole


def whole_volume(blueprint: Blueprint) -> dict[str, Any]:
    """Do everything for a small volume; return ``volume_result`` of it."""
    labels = labels_without_specks(blueprint)
    boxes = boxes_of(blueprint)
    blueprint.work.mkdir(parents=True, exist_ok=True)
    blueprint.pyramids.create(blueprint.id_dtype)
    parts = [store_box(Task(blueprint, box), labels) for box in boxes]
    for stage in reduce_stages(blueprint):
        for task in stage:
            reduce_box(task)
    parts += [cross_box(task) for task in cross_tasks(blueprint)]
    return volume_result(blueprint, parts)


def labels_without_specks(blueprint: Blueprint) -> Labels:
    """Label a volume in memory, and drop the instances that are too small."""
    labels = labels_in_memory(blueprint.volume)
    if not blueprint.limits.min_size_nm3:
        return labels
    counted = (count_voxels(labels.read(box)[0]) for box in boxes_of(blueprint))
    compact = blueprint.volume.semantic is not None
    return Renamed(labels, IdTable(*names_without_specks(counted, blueprint.smallest_voxels, compact)))


def create_classes(blueprint: Blueprint) -> None:
    """Make the empty array that ``find_instances`` fills."""
    create_array(blueprint.work / CLASSES, blueprint.layout, "uint8")


def find_instances(task: Task) -> dict[str, Any]:
    """Copy one box of the semantic labels to where any process can read them, and find its components."""
    blueprint = task.blueprint
    volume = blueprint.volume
    assert volume.semantic is not None, "published instances are not labelled"
    classes = checked_classes(np.asarray(volume.semantic[task.box]), volume.volume_id)
    write_box(blueprint.work / CLASSES, task.box, classes)
    deferred_ids(blueprint.work, blueprint.layout).find(task.box, classes)
    return {}


def join_instances(blueprint: Blueprint) -> None:
    """Join the components of all boxes to instances, and number them."""
    deferred_ids(blueprint.work, blueprint.layout).join()


def count_specks(task: Task) -> dict[str, Any]:
    """Count the voxels of every instance in one box."""
    ids, counts = count_voxels(_labels_on_disk(task.blueprint).read(task.box)[0])
    _save(task.blueprint.work / f"sizes-{task.name}.npz", ids=ids, counts=counts)
    return {}


def name_instances(blueprint: Blueprint) -> None:
    """Decide from all counted boxes which instances stay, and under which name."""
    files = [blueprint.work / f"sizes-{Task(blueprint, box).name}.npz" for box in boxes_of(blueprint)]
    tables = (np.load(path) for path in files)
    counted = ((table["ids"], table["counts"]) for table in tables)
    compact = blueprint.volume.semantic is not None
    ids, names = names_without_specks(counted, blueprint.smallest_voxels, compact)
    _save(blueprint.work / NAMES, ids=ids, names=names)


def _labels_on_disk(blueprint: Blueprint) -> Labels:
    return labels_on_disk(blueprint.volume, blueprint.work, blueprint.layout)


def store_box(task: Task, labels: Labels | None = None) -> dict[str, Any]:
    """Read one box of image and labels once; store it, its rows along z and its instance table."""
    blueprint = task.blueprint
    voxels = read_source(blueprint, labels or _labels_on_disk(blueprint), task.box)
    pyramids = blueprint.pyramids
    pyramids.store(IMAGE, task.box, voxels.image)
    pyramids.store("labels/instances", task.box, voxels.ids)
    pyramids.store("labels/semantic", task.box, voxels.classes)
    if voxels.ignore is not None:
        pyramids.store("labels/ignore", task.box, voxels.ignore.view(np.uint8))
    result = _write_rows(task, voxels, with_table=True)
    del voxels  # ids of an extra may take eight bytes a voxel
    _store_extras(task)
    return result


def _store_extras(task: Task) -> None:
    """Store one box of every structure outside the five, one after the other."""
    for name, array in task.blueprint.volume.extras.items():
        values = np.asarray(array[task.box])
        task.blueprint.pyramids.store(extra_group(name), task.box, values.astype(stored_dtype(array.dtype), copy=False))


def cross_box(task: Task) -> dict[str, Any]:
    """Read one box of the published volume and write its rows along y or x."""
    pyramids = task.blueprint.pyramids
    image, ids, classes, *ignore = (pyramids.read(group, 0, task.box) for group in pyramids.row_groups)
    return _write_rows(task, Voxels(image, ids, classes, ignore[0].astype(bool) if ignore else None))


def reduce_stages(blueprint: Blueprint) -> Iterator[list[Task]]:
    """Yield the boxes of each coarser level; a level needs the one before it."""
    pyramids = blueprint.pyramids
    for level, layout in enumerate(pyramids.layouts[1:], start=1):
        boxes = list(layout.boxes())
        yield [Task(blueprint, box, group=group, level=level) for group in pyramids.groups for box in boxes]


def reduce_box(task: Task) -> dict[str, Any]:
    """Fill one box of a coarser level."""
    task.blueprint.pyramids.reduce(task.group, task.level, task.box)
    return {}


def read_source(blueprint: Blueprint, labels: Labels, box: Box) -> Voxels:
    """Read one box from the source, harmonised."""
    volume = blueprint.volume
    ids, classes = labels.read(box)
    image = blueprint.window.apply(np.asarray(volume.image[box]))
    return Voxels(image, ids, classes, None if volume.ignore is None else np.asarray(volume.ignore[box]).astype(bool))


def slices_of(task: Task, voxels: Voxels) -> Iterator[tuple[int, Plane, Fold | None]]:
    """Yield the slices of one box in order: number, instances, and the fold; ``None`` for a slice that is in a gap."""
    volume = task.blueprint.volume
    slabs = task.blueprint.policy.slabs_of(volume)
    for number, plane in planes_of(voxels, task.box, task.axis, volume.volume_id):
        z = number if task.axis == "z" else task.box[0].start
        yield number, plane, next((slab.fold for slab in slabs if slab.start <= z < slab.stop), None)


def _rows(task: Task, slices: Sequence[Slice], fold: Fold) -> Any:
    volume, domain = task.blueprint.volume, task.blueprint.policy.domain_of(task.blueprint.volume)
    return rows_of(volume, task.blueprint.info, task.box, task.axis, slices, fold, domain)


def _write_rows(task: Task, voxels: Voxels, with_table: bool = False) -> dict[str, Any]:
    """Write the rows of a box, one file a fold; return what the build must know of them, as JSON."""
    blueprint = task.blueprint
    slices: dict[Fold, list[Slice]] = {}
    placed: list[list[object]] = []
    objects = np.zeros(len(ORGANELLES) + 1, np.int64)
    tables = []
    for number, plane, fold in slices_of(task, voxels):
        if with_table:
            tables.append(_table_of(plane, number, task.box))
        if fold is None:
            continue
        one = slice_of(voxels, task.box, task.axis, number, plane)
        slices.setdefault(fold, []).append(one)
        objects += np.bincount(plane.classes, minlength=len(objects))
        fingerprint = perceptual_hash(image_of(voxels, task.box, task.axis, number))
        covers = [number, number + 1] if task.axis == "z" else [task.box[0].start, task.box[0].stop]
        hashed = None if fingerprint is None else f"{fingerprint:x}"
        placed.append([fold, number, *covers, one.stored_bytes, hashed])
    folder = blueprint.work / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    for fold, of_fold in slices.items():
        write_part(folder / f"{task.name}-{fold}.arrow", _rows(task, of_fold, fold))
    if with_table:
        table = InstanceTable.merged(tables)
        _save(blueprint.work / f"table-{task.name}.npz", **vars(table))
    counts = {name: int(count) for name, count in zip(ORGANELLES, objects[1:], strict=True) if count}
    return {"name": task.name, "axis": task.axis, "rows": placed, "objects": counts}


def _table_of(plane: Plane, z: int, box: Box) -> InstanceTable:
    corner = np.array([box[1].start, box[2].start], np.int64)
    low, high = plane.boxes[:, :2] + corner, plane.boxes[:, 2:] + corner
    depth = np.full((len(low), 1), z, np.int64)
    boxes = np.concatenate([depth, low, depth + 1, high], axis=1)
    return InstanceTable(plane.instance_ids, plane.classes, plane.areas, boxes)


def volume_result(blueprint: Blueprint, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Finish a volume whose boxes are all stored: its instance table, its attributes; return its journal entry."""
    volume = blueprint.volume
    files = [blueprint.work / f"table-{part['name']}.npz" for part in parts if part["axis"] == "z"]
    table = InstanceTable.merged(_load_table(path) for path in files)
    described = replace(volume, provenance={**volume.provenance, **blueprint.window.provenance()})
    blueprint.pyramids.describe(described, blueprint.info, table.organelle_of())
    _save(blueprint.work / "table.npz", **vars(table))
    for path in files:
        path.unlink(missing_ok=True)
    return {"volume_id": volume.volume_id, "instances": dict(table.counts()), "parts": list(parts)}


def remove_drafts(blueprint: Blueprint) -> None:
    """Remove what only the stages of a volume needed; its rows and its table stay."""
    for draft in (
        blueprint.work / CLASSES,
        blueprint.work / DRAFTS,
        deferred_ids(blueprint.work, blueprint.layout).folder,
    ):
        shutil.rmtree(draft, ignore_errors=True)
    for array in blueprint.work.glob("*.npy"):  # of workers.sendable
        array.unlink()


def _load_table(path: Path) -> InstanceTable:
    with np.load(path) as stored:
        return InstanceTable(**stored)


def _save(path: Path, **arrays: Any) -> None:
    write_whole(path, lambda temporary: np.savez(temporary, **arrays))


def published_rows(blueprint: Blueprint) -> Iterator[dict[str, object]]:
    """Yield the published rows of a volume, in order, without storing anything but its labels."""
    blueprint.work.mkdir(parents=True, exist_ok=True)
    tasks = [Task(blueprint, box) for box in boxes_of(blueprint)]
    if blueprint.fits_in_memory:
        labels = labels_without_specks(blueprint)
    else:
        if blueprint.volume.semantic is not None:
            create_classes(blueprint)
            for task in tasks:
                find_instances(task)
            join_instances(blueprint)
        if blueprint.limits.min_size_nm3:
            for task in tasks:
                count_specks(task)
            name_instances(blueprint)
        labels = _for_any_box(blueprint, _labels_on_disk(blueprint))
    for task in [*tasks, *cross_tasks(blueprint)]:
        voxels = read_source(blueprint, labels, task.box)
        for number, plane, fold in slices_of(task, voxels):
            if fold is not None:
                yield from _rows(task, [slice_of(voxels, task.box, task.axis, number, plane)], fold).to_pylist()


def _for_any_box(blueprint: Blueprint, labels: Labels) -> Labels:
    """Store labels, so that boxes of rows along y and x can be read, which cross those that are labelled."""
    if blueprint.volume.semantic is None:
        return labels
    paths = [blueprint.work / name for name in ("ids.zarr", "classes.zarr")]
    for path, dtype in zip(paths, (blueprint.id_dtype, np.dtype(np.uint8)), strict=True):
        create_array(path, blueprint.layout, dtype)
    for box in boxes_of(blueprint):
        for path, values in zip(paths, labels.read(box), strict=True):
            write_box(path, box, values)
    ids, classes = (Stored(open_array(path)) for path in paths)
    return Labelled(ids, classes)
