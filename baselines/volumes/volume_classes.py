"""From maps to one class per voxel of a whole volume, and its connected components, block by block on disk.

::

    WORK/semantic.zarr      most probable class of each voxel (the rule of ``baselines.decode``)
    WORK/background.zarr    1 where that is background; its components are the holes, and what is outside
    WORK/filled.zarr        the classes with holes filled
    WORK/components.zarr    components 1..N, in the order of their first voxels (``lpa.label_zarr``)

Each of them appears under its name when it is complete, so an interrupted run goes on with the step that it was at.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from baselines.volumes.map_store import Box, MapStore, Shape
from em_bench_eval.opened import Opened
from em_bench_eval.schema import Organelle
from em_bench_eval.volume_io import open_volume
from lpa.blockwise import chunk_edge, label_zarr
from lpa.extents import extents
from lpa.ome_zarr import create_labels, full_disk_is_os_error

BLOCK = (64, 256, 256)  # voxels; also the shards of what is written
SHOWN_BLOCKS = 8
BORDER = np.uint8(1)  # bit of the outside among the bits 1 << Organelle.label_id


@dataclass(frozen=True)
class Components:
    """The components of a volume; entry ``i`` is component ``i + 1``."""

    label_id: npt.NDArray[np.uint8]  # its class
    voxels: npt.NDArray[np.int64]
    probability: npt.NDArray[np.float64]  # sum over its voxels
    start: npt.NDArray[np.int64]  # (N, 3) bounding box
    stop: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Work:
    """The folder of one run, and how much is shown of it."""

    folder: Path
    shape: Shape
    progress: bool = True

    @property
    def shown(self) -> bool:
        """False also where the work is done before anybody could read how far it is."""
        return self.progress and len(list(boxes(self.shape))) >= SHOWN_BLOCKS

    def path(self, name: str) -> Path:
        """Where a step's result lies."""
        return self.folder / f"{name}.zarr"

    def open(self, name: str) -> Opened:
        """Open a step's result."""
        return open_volume(self.path(name))

    def boxes(self, what: str, shape: Shape | None = None) -> Iterator[Box]:
        """Yield the boxes of a volume, with a bar."""
        parts = list(boxes(shape or self.shape))
        yield from tqdm(parts, desc=what, unit="block", disable=not self.shown, leave=False, file=sys.stderr)

    def write(self, name: str, dtype: npt.DTypeLike, what: str, values: Callable[[Box], npt.NDArray[Any]]) -> Opened:
        """Make a volume of ``values`` by box, unless it is there."""
        path = self.path(name)
        if not path.exists():
            partial = path.with_name(f".{path.name}.partial")
            if partial.exists():
                shutil.rmtree(partial)
            target = create_volume(partial, self.shape, dtype)
            for box in self.boxes(what):
                with full_disk_is_os_error():
                    target[box].write(values(box)).result()
            os.replace(partial, path)
        return self.open(name)


def create_volume(
    path: Path, shape: Shape, dtype: npt.DTypeLike, voxel_size_nm: Sequence[float] | None = None, **more: Any
) -> Any:
    """Create an OME-Zarr label group in shards of ``BLOCK``; returns the tensorstore array of ``path/s0``."""
    z, y, x = (min(edge, size) for edge, size in zip(BLOCK, shape, strict=True))
    chunk = (chunk_edge(z), chunk_edge(y), chunk_edge(x))
    return create_labels(path, shape, dtype, voxel_size_nm, chunk, (z, y, x), **more)


def boxes(shape: Sequence[int]) -> Iterator[Box]:
    """The boxes of work of a volume, in raster order."""
    starts = [range(0, size, edge) for size, edge in zip(shape, BLOCK, strict=True)]
    for corner in itertools.product(*starts):
        z, y, x = (
            slice(first, min(first + edge, size)) for first, edge, size in zip(corner, BLOCK, shape, strict=True)
        )
        yield z, y, x


def moved(part: Box, by: Sequence[int]) -> Box:
    """The box ``by`` voxels further along (z, y, x)."""
    z, y, x = (slice(side.start + step, side.stop + step) for side, step in zip(part, by, strict=True))
    return z, y, x


def classes_of(probability: npt.NDArray[np.float32], label_ids: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Give each voxel its most probable class; background has what is missing from a sum of 1, and wins a tie.

    ``probability`` is ``(class, ...)``, ``label_ids`` the value of each class.
    """
    best: npt.NDArray[np.uint8] = np.array(label_ids, np.uint8)[probability.argmax(axis=0)]
    best[1.0 - probability.sum(axis=0) >= probability.max(axis=0)] = 0
    return best


def organelles_in(store: MapStore) -> list[Organelle]:
    """The organelles that a store holds a probability of."""
    return [organelle for organelle in Organelle if organelle.value in store.names]


def semantic(store: MapStore, work: Work) -> Opened:
    """Most probable class of every voxel."""
    organelles = organelles_in(store)
    names, ids = [o.value for o in organelles], [o.label_id for o in organelles]
    return work.write("semantic", np.uint8, "classes", lambda box: classes_of(store.read(box, names), ids))


def filled(classes: Opened, fillable: Sequence[Organelle], work: Work) -> Opened:
    """Fill holes: background that only one class touches, and that does not reach the border of the volume.

    Background is 6-connected. In a volume of one slice the border is the edge of the slice.
    """
    if not fillable:
        return classes
    if not work.path("filled").exists():
        work.write("background", np.uint8, "background", lambda box: (classes[box] == 0).astype(np.uint8))
        if not work.path("holes").exists():
            label_zarr(work.path("background"), work.path("holes"), None, 6, "compact", progress=work.shown)
        holes = work.open("holes")
        owner = _owners(classes, holes, [organelle.label_id for organelle in fillable], work)

        def fill(box: Box) -> npt.NDArray[np.uint8]:
            values = classes[box]
            return np.where(values == 0, owner[holes[box]], values)

        work.write("filled", np.uint8, "fill holes", fill)
        for name in ("background", "holes"):
            shutil.rmtree(work.path(name))
    return work.open("filled")


def _owners(classes: Opened, holes: Opened, fillable: Sequence[int], work: Work) -> npt.NDArray[np.uint8]:
    """Class that each component of the background becomes, 0 for those that stay."""
    touching: npt.NDArray[np.uint8] = np.zeros(1, np.uint8)  # bits: classes that touch a component, and BORDER
    for box in work.boxes("holes"):
        wider = tuple(slice(s.start, min(s.stop + 1, size)) for s, size in zip(box, work.shape, strict=True))
        hole, value = holes[wider], classes[wider]
        largest = int(hole.max(initial=0))
        if largest >= len(touching):
            touching = np.concatenate([touching, np.zeros(largest + 1 - len(touching), np.uint8)])
        for axis in range(3):
            front = tuple(slice(None, -1) if other == axis else slice(None) for other in range(3))
            back = tuple(slice(1, None) if other == axis else slice(None) for other in range(3))
            for here, there in ((front, back), (back, front)):
                pairs = np.unique(hole[here].astype(np.int64) * 8 + value[there])
                pairs = pairs[(pairs >= 8) & (pairs % 8 > 0)]
                np.bitwise_or.at(touching, pairs // 8, np.left_shift(1, pairs % 8).astype(np.uint8))
            if work.shape[axis] > 1:
                for side, at in ((0, box[axis].start), (-1, wider[axis].stop)):
                    if at in (0, work.shape[axis]):
                        touching[np.unique(np.take(hole, side, axis))] |= BORDER
    owner = np.zeros(len(touching), np.uint8)
    for label_id in fillable:
        owner[touching == 1 << label_id] = label_id
    owner[0] = 0
    return owner


def components(classes: Path, work: Work) -> Opened:
    """Connected components of one class each, numbered in the order of their first voxels."""
    if not work.path("components").exists():
        label_zarr(classes, work.path("components"), None, "default", "compact", progress=work.shown)
    return work.open("components")


def measure(labels: Opened, classes: Opened, store: MapStore, work: Work) -> Components:
    """Class, size, summed probability and bounding box of every component; memory follows their number."""
    organelles = organelles_in(store)
    channel_of = np.zeros(256, np.intp)
    channel_of[[organelle.label_id for organelle in organelles]] = range(len(organelles))
    columns: dict[str, npt.NDArray[Any]] = {
        "label_id": np.zeros(0, np.uint8),
        "voxels": np.zeros(0, np.int64),
        "probability": np.zeros(0, np.float64),
        "start": np.zeros((0, 3), np.int64),
        "stop": np.zeros((0, 3), np.int64),
    }
    for box in work.boxes("measure"):
        ids = labels[box]
        found = extents(np.ascontiguousarray(ids))
        if not len(found.ids):
            continue
        rows = found.ids.astype(np.int64) - 1
        missing = int(rows.max()) + 1 - len(columns["voxels"])
        if missing > 0:
            for name, column in columns.items():
                fill = np.iinfo(np.int64).max if name == "start" else 0
                columns[name] = np.concatenate([column, np.full((missing, *column.shape[1:]), fill, column.dtype)])
        values, inside = classes[box], ids > 0
        columns["label_id"][rows] = values.reshape(-1)[found.first]
        columns["voxels"][rows] += found.voxels
        probability = store.read(box, [organelle.value for organelle in organelles])
        own = np.take_along_axis(probability, channel_of[values][None], axis=0)[0][inside]
        place = np.searchsorted(found.ids, ids[inside])
        columns["probability"][rows] += np.bincount(place, own.astype(np.float64), len(rows))
        corner = [side.start for side in box]
        columns["start"][rows] = np.minimum(columns["start"][rows], found.start + corner)
        columns["stop"][rows] = np.maximum(columns["stop"][rows], found.stop + corner)
    return Components(**columns)
