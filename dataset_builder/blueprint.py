"""What is to be done to a volume: its settings, and the boxes of each stage. Plain data, for any process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataset_builder.harmonise import Window
from dataset_builder.layout import BOX_VOXELS, Box, Layout, layout_of
from dataset_builder.splits import SplitPolicy
from dataset_builder.volumes import IMAGE, Pyramids
from em_bench_eval.schema import Axis, SourceInfo, Volume

DRAFTS = "level1"  # in a volume's work folder


@dataclass(frozen=True)
class Limits:
    """How a build is cut up. Only ``max_side`` and ``min_size_nm3`` change what is published."""

    max_side: int = 2048  # pixels; larger slices are cut into tiles
    min_size_nm3: float = 0.0  # smaller instances are dropped
    in_memory_voxels: int = 2**27  # volumes up to this are labelled at once, at 5 bytes a voxel

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
    def layout(self) -> Layout:
        """The boxes that the volume is read, labelled and stored in."""
        return layout_of(self.volume.image.shape, self.limits.max_side)

    @property
    def id_dtype(self) -> np.dtype[Any]:
        """Type of the instance ids."""
        instances = self.volume.instances
        return np.dtype(np.uint32 if instances is None else instances.dtype)

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
    return list(blueprint.layout.boxes())


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
    chunk = blueprint.layout.chunk["zyx".index(axis)]
    step = max(1, min(chunk, BOX_VOXELS // (tile_z * tile_across)))
    for z in range(start, stop, tile_z):
        for place in range(0, across, tile_across):
            for first in range(0, length, step):
                along, other = slice(first, min(first + step, length)), slice(place, min(place + tile_across, across))
                depth = slice(z, min(z + tile_z, stop))
                yield (depth, along, other) if axis == "y" else (depth, other, along)
