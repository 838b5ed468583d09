"""The six aggregation levels: how the same pixels become instances, and against which ids these are judged.

::

    level  instances are connected components of   and are judged in       against
    L0     a patch of a slice                      that patch              the reference's pieces in that patch
    L1     a patch of a slice                      that patch              the volume's ids
    L2     a whole slice                           that slice              the volume's ids
    L3     whole slices, linked through z          the volume              the volume's ids
    L4     a 3D block, blocks left apart           the volume              the volume's ids
    L5     the whole volume                        the volume              the volume's ids

Every level is made from one semantic map, and no level drops a voxel, so the semantic Dice of all of them is the same
number: whatever differs between levels is the aggregation. The rule is connected components throughout, with each
organelle's connectivity as ``lpa`` declares it (6 in 3D is 4 in a slice, 26 is 8), because it is the one rule that has
no parameters to tune to a level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from baselines.aggregation.aggregation_cuts import SLAB_VOXELS, Box, boxes, slabs
from baselines.aggregation.aggregation_scratch import Scratch, read_classes
from baselines.aggregation.aggregation_sides import Classes
from baselines.aggregation.link_slices import SliceLinker, SliceRule
from em_bench_eval.errors import InputError, unknown_name
from em_bench_eval.schema import Array3D
from lpa import DEFAULT_CONNECTIVITY
from lpa.label import label

Ids = npt.NDArray[np.uint32] | npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Cuts:
    """Sizes of the cuts in voxels, the rule that links slices, and the connectivity of each organelle.

    ``patch``: edge of the patches of L0 and L1; ``block``: edge of the blocks of L4. Sides are cut evenly, so patches
    and blocks may be smaller than asked for, but none is a sliver. ``connectivity``: 6, 18 or 26 in 3D; in a slice 6 is
    4, and 18 and 26 are 8. Default: as ``lpa`` declares it for each organelle.
    """

    patch: int = 512
    block: int = 128
    link: SliceRule = field(default_factory=SliceRule)
    connectivity: Mapping[str, int] = field(default_factory=lambda: dict(DEFAULT_CONNECTIVITY))

    def __post_init__(self) -> None:
        for name in ("patch", "block"):
            if getattr(self, name) < 8:
                raise InputError(f"{name} is too small", found=getattr(self, name), expected="8 voxels or more")


@dataclass(frozen=True)
class Tile:
    """A box of instances. An id that occurs in two tiles is one instance; classes are ``Organelle.label_id``."""

    box: Box
    labels: Ids  # (z, y, x)
    classes: Classes  # (z, y, x)


DEFAULT_CUTS = Cuts()
Instances = Callable[[Array3D, Cuts, Scratch], Iterator[Tile]]


def patches(semantic: Array3D, cuts: Cuts, scratch: Scratch) -> Iterator[Tile]:
    """Components of each patch of each slice."""
    return _planes(semantic, (cuts.patch, cuts.patch), cuts)


def slices(semantic: Array3D, cuts: Cuts, scratch: Scratch) -> Iterator[Tile]:
    """Components of each whole slice."""
    return _planes(semantic, (semantic.shape[1], semantic.shape[2]), cuts)


def linked(semantic: Array3D, cuts: Cuts, scratch: Scratch) -> Iterator[Tile]:
    """Components of whole slices, linked through z; slices are labelled twice instead of being kept."""
    linker = SliceLinker(cuts.link)
    whole = (semantic.shape[1], semantic.shape[2])
    for tile in _planes(semantic, whole, cuts):
        local = _from_one(tile.labels[0])
        classes = np.zeros(int(local.max(initial=0)) + 1, np.uint8)
        classes[local] = tile.classes[0]
        linker.add(local, classes)
    for tile, ids in zip(_planes(semantic, whole, cuts), linker.finish(), strict=True):
        yield Tile(tile.box, ids[_from_one(tile.labels)], tile.classes)


def blocks(semantic: Array3D, cuts: Cuts, scratch: Scratch) -> Iterator[Tile]:
    """Components of each 3D block; what crosses a face becomes two instances."""
    first = 0
    for box in boxes(semantic.shape, (cuts.block,) * 3):
        classes = read_classes(semantic, box)
        labels = _label(classes, first, cuts)
        first = max(first, int(labels.max(initial=0)))
        yield Tile(box, labels, classes)


def volume(semantic: Array3D, cuts: Cuts, scratch: Scratch) -> Iterator[Tile]:
    """Components of the whole volume, in slabs of whole slices."""
    labels = scratch.components(semantic, cuts.connectivity)
    for box in slabs(semantic.shape):
        yield Tile(box, np.asarray(labels[box]), read_classes(semantic, box))


def _planes(semantic: Array3D, patch: tuple[int, int], cuts: Cuts) -> Iterator[Tile]:
    """Label patches of single slices; several slices are read at a time."""
    first = 0
    depth = max(1, SLAB_VOXELS // (patch[0] * patch[1]) // 4)
    for z, y, x in boxes(semantic.shape, (depth, *patch)):
        stack = read_classes(semantic, (z, y, x))
        for offset in range(len(stack)):
            classes = stack[offset : offset + 1]
            labels = _label(classes, first, cuts)
            first = max(first, int(labels.max(initial=0)))
            yield Tile((slice(z.start + offset, z.start + offset + 1), y, x), labels, classes)


def _label(classes: Classes, first: int, cuts: Cuts) -> Ids:
    """Components with ids from ``first`` + 1; a box of one slice is labelled like an image."""
    labels: npt.NDArray[Any] = label(classes, cuts.connectivity, "compact")
    if first + int(labels.max(initial=0)) >= 2**32:
        labels = labels.astype(np.uint64)
    labels[labels > 0] += labels.dtype.type(first)
    return labels


def _from_one(labels: Ids) -> npt.NDArray[Any]:
    """Undo the offset of ids that are consecutive in this array."""
    inside = labels > 0
    lowest = int(labels[inside].min()) if inside.any() else 1
    return np.where(inside, labels - labels.dtype.type(lowest - 1), labels.dtype.type(0))


@dataclass(frozen=True)
class Level:
    """One aggregation.

    ``unit``: within what an id means one instance and pairs are matched: each image (a slice of a tile) for itself, or
    the volume. ``reference``: ids of the volume, or each connected piece of an id in the image as an instance.
    """

    title: str
    instances: Instances
    unit: Literal["image", "volume"]
    reference: Literal["volume", "pieces"] = "volume"


LEVELS: Mapping[str, Level] = {
    "L0": Level("patches against their own pieces", patches, "image", "pieces"),
    "L1": Level("patches against volume ids", patches, "image"),
    "L2": Level("whole slices against volume ids", slices, "image"),
    "L3": Level("slices linked through z", linked, "volume"),
    "L4": Level("3D blocks, not stitched", blocks, "volume"),
    "L5": Level("whole volume, stitched", volume, "volume"),
}
# the same instances seen in another way: what a level owes to the unit in which it is judged
VIEWS: Mapping[str, Level] = {
    "L2 pieces": Level("whole slices against their own pieces", slices, "image", "pieces"),
    "L3 in slices": Level("linked slices, judged slice by slice", linked, "image"),
    "L5 in slices": Level("whole volume, judged slice by slice", volume, "image"),
}
ALL: Mapping[str, Level] = {**LEVELS, **VIEWS}


def level_named(name: str) -> Level:
    """Return a level or view; a misspelt name answers "did you mean ..."."""
    if name not in ALL:
        raise unknown_name("aggregation level", name, ALL)
    return ALL[name]
