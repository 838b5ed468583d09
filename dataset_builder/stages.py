"""What is done to a volume, box by box. Every function may run in any process, and twice: it writes the same files.

::

    keep_labels      instances          source -> work/ids.npy, classes.npy     for what can be labelled in memory
    copy_classes     semantic labels    source -> work/classes                  for what cannot
    label_volume     instances          work/classes -> work/ids.zarr           (lpa.label_zarr resumes by itself)
    count_specks     sizes              -> work/names.npz                only with a smallest size
    store_box        image, labels      -> <volume>.zarr level 0 (extras too), rows along z, instance table
    reduce_box       pyramid            level n - 1 -> level n
    cross_box        rows along y and x <volume>.zarr -> rows

A small volume goes through all of them at once (``whole_volume``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import lpa
from dataset_builder.fingerprint import perceptual_hash
from dataset_builder.harmonise import Window
from dataset_builder.instances import (
    InstanceTable,
    Labels,
    checked_classes,
    count_voxels,
    labels_in_memory,
    labels_on_disk,
    names_without_specks,
)
from dataset_builder.layout import BOX_VOXELS, Box, layout_of
from dataset_builder.numbering import IdTable, Plane
from dataset_builder.records import Slice, Voxels, image_of, planes_of, rows_of, slice_of
from dataset_builder.shards import write_part
from dataset_builder.splits import SplitPolicy
from dataset_builder.volumes import IMAGE, Pyramids, create_array, extra_group, open_array, stored_dtype
from em_bench_eval.schema import ORGANELLES, Axis, Fold, SourceInfo, Volume
from lpa.plan import write_whole

DRAFTS = "level1"  # in a volume's work folder


@dataclass(frozen=True)
class Limits:
    """How a build is cut up. Only ``max_side`` and ``min_size_nm3`` change what is published."""

    max_side: int = 2048  # pixels; larger slices are cut into tiles
    min_size_nm3: float = 0.0  # smaller instances are dropped
    in_memory_voxels: int = 2**27  # volumes up to this are labelled at once, at 5 bytes a voxel
    label_block: int | None = None  # edge of the blocks in which larger ones are labelled; default: lpa's

    def published(self) -> dict[str, float]:
        """Return the settings that decide what is published."""
        return {"max_side": self.max_side, "min_size_nm3": self.min_size_nm3}


@dataclass(frozen=True)
class Blueprint:
    """Everything that a stage needs to know of one volume; it can be sent to another process."""

    volume: Volume
    info: SourceInfo
    policy: SplitPolicy
    limits: Limits
    window: Window
    zarr: Path  # the published volume
    work: Path  # this volume's rows, tables and drafts

    @property
    def pyramids(self) -> Pyramids:
        """The published arrays."""
        volume = self.volume
        shape, ignore = volume.image.shape, volume.ignore is not None
        extras = {name: array.dtype for name, array in volume.extras.items()}
        drafts, side = self.work / DRAFTS, self.limits.max_side
        return Pyramids(self.zarr, drafts, shape, tuple(volume.voxel_size), side, ignore, extras)

    @property
    def voxels(self) -> int:
        """Number of voxels."""
        z, y, x = self.volume.image.shape
        return int(z) * int(y) * int(x)

    @property
    def fits_in_memory(self) -> bool:
        """True if the volume is labelled at once."""
        return self.voxels <= self.limits.in_memory_voxels

    @property
    def is_one_task(self) -> bool:
        """True if one worker does all of the volume where there are enough such volumes."""
        return self.fits_in_memory and self.voxels <= BOX_VOXELS

    @property
    def smallest_voxels(self) -> float:
        """Voxels that an instance needs to stay."""
        z, y, x = self.volume.voxel_size
        return self.limits.min_size_nm3 / (z * y * x)


@dataclass(frozen=True)
class Task:
    """One box of one stage."""

    blueprint: Blueprint
    box: Box
    axis: Axis = "z"
    group: str = IMAGE  # of a reduce_box
    level: int = 0

    @property
    def name(self) -> str:
        """Name the box among those of its stage and volume."""
        return f"{self.axis}-" + "-".join(str(side.start) for side in self.box)


def boxes_of(blueprint: Blueprint) -> list[Box]:
    """Return the boxes that a volume is read and stored in."""
    return list(layout_of(blueprint.volume.image.shape, blueprint.limits.max_side).boxes())


def cross_tasks(blueprint: Blueprint) -> list[Task]:
    """Return the boxes of rows along y and x: each within one slab of z, so that no image leaves its fold."""
    policy, volume = blueprint.policy, blueprint.volume
    tasks = []
    for axis in policy.axes_of(volume)[1:]:
        for slab in policy.slabs_of(volume):
            if slab.stop - slab.start >= policy.smallest_cut:
                tasks += [Task(blueprint, box, axis) for box in _cross_boxes(blueprint, axis, slab.start, slab.stop)]
    return tasks


def _cross_boxes(blueprint: Blueprint, axis: Axis, start: int, stop: int) -> Iterator[Box]:
    _, height, width = blueprint.volume.image.shape
    length, across = (height, width) if axis == "y" else (width, height)
    tiles = layout_of((1, stop - start, across), blueprint.limits.max_side)
    _, tile_z, tile_across = tiles.shard
    chunk = layout_of(blueprint.volume.image.shape, blueprint.limits.max_side).chunk["zyx".index(axis)]
    step = max(1, min(chunk, BOX_VOXELS // (tile_z * tile_across)))
    for z in range(start, stop, tile_z):
        for place in range(0, across, tile_across):
            for first in range(0, length, step):
                along, other = slice(first, min(first + step, length)), slice(place, min(place + tile_across, across))
                depth = slice(z, min(z + tile_z, stop))
                yield (depth, along, other) if axis == "y" else (depth, other, along)


def whole_volume(blueprint: Blueprint) -> dict[str, Any]:
    """Do everything for a small volume; return ``volume_result`` of it."""
    labels = labels_without_specks(blueprint)
    boxes = boxes_of(blueprint)
    blueprint.work.mkdir(parents=True, exist_ok=True)
    blueprint.pyramids.create(labels.ids.dtype)
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
    return replace(labels, name_of=IdTable(*names_without_specks(counted, blueprint.smallest_voxels, compact)))


def keep_labels(blueprint: Blueprint) -> None:
    """Label a volume in memory and leave its instances and classes where any process can map them."""
    labels = labels_in_memory(blueprint.volume)
    for name, array in (("ids", labels.ids), ("classes", labels.classes)):
        write_whole(blueprint.work / f"{name}.npy", lambda path, array=array: np.save(path, array))  # type: ignore[misc]


def copy_classes(task: Task) -> dict[str, Any]:
    """Copy one box of the semantic labels to where any process can read them."""
    volume = task.blueprint.volume
    assert volume.semantic is not None, "published instances are not labelled"
    classes = checked_classes(np.asarray(volume.semantic[task.box]), volume.volume_id)
    open_array(task.blueprint.work / "classes")[task.box].write(classes).result()
    return {}


def label_volume(blueprint: Blueprint, workers: int) -> None:
    """Label block by block with threads (the labeller releases the GIL); takes up its own interrupted run."""
    block = blueprint.limits.label_block
    lpa.label_zarr(
        blueprint.work / "classes",
        blueprint.work / "ids.zarr",
        block_shape=None if block is None else (block, block, block),
        connectivity=dict(lpa.DEFAULT_CONNECTIVITY),
        relabel="compact",
        workers=workers,
        overwrite=True,
        progress=False,
    )


def create_classes(blueprint: Blueprint) -> None:
    """Make the empty array that ``copy_classes`` fills."""
    create_array(
        blueprint.work / "classes", layout_of(blueprint.volume.image.shape, blueprint.limits.max_side), "uint8"
    )


def count_specks(task: Task) -> dict[str, Any]:
    """Count the voxels of every instance in one box."""
    ids, counts = count_voxels(labels_on_disk(task.blueprint.volume, task.blueprint.work).read(task.box)[0])
    _save(task.blueprint.work / f"sizes-{task.name}.npz", ids=ids, counts=counts)
    return {}


def name_instances(blueprint: Blueprint) -> None:
    """Decide from all counted boxes which instances stay, and under which name."""
    files = [blueprint.work / f"sizes-{Task(blueprint, box).name}.npz" for box in boxes_of(blueprint)]
    tables = (np.load(path) for path in files)
    counted = ((table["ids"], table["counts"]) for table in tables)
    compact = blueprint.volume.semantic is not None
    ids, names = names_without_specks(counted, blueprint.smallest_voxels, compact)
    _save(blueprint.work / "names.npz", ids=ids, names=names)


def store_box(task: Task, labels: Labels | None = None) -> dict[str, Any]:
    """Read one box of image and labels once; store it, its rows along z and its instance table."""
    blueprint = task.blueprint
    voxels = read_source(blueprint, labels or labels_on_disk(blueprint.volume, blueprint.work), task.box)
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


def _load_table(path: Path) -> InstanceTable:
    with np.load(path) as stored:
        return InstanceTable(**stored)


def _save(path: Path, **arrays: Any) -> None:
    write_whole(path, lambda temporary: np.savez(temporary, **arrays))


def published_rows(blueprint: Blueprint) -> Iterator[dict[str, object]]:
    """Yield the published rows of a volume, in order, without storing anything but drafts of its labels."""
    blueprint.work.mkdir(parents=True, exist_ok=True)
    tasks = [Task(blueprint, box) for box in boxes_of(blueprint)]
    if blueprint.fits_in_memory:
        labels = labels_without_specks(blueprint)
    else:
        if blueprint.volume.semantic is not None:
            create_classes(blueprint)
            for task in tasks:
                copy_classes(task)
            label_volume(blueprint, 1)
        if blueprint.limits.min_size_nm3:
            for task in tasks:
                count_specks(task)
            name_instances(blueprint)
        labels = labels_on_disk(blueprint.volume, blueprint.work)
    for task in [*tasks, *cross_tasks(blueprint)]:
        voxels = read_source(blueprint, labels, task.box)
        for number, plane, fold in slices_of(task, voxels):
            if fold is not None:
                yield from _rows(task, [slice_of(voxels, task.box, task.axis, number, plane)], fold).to_pylist()
