"""Volume to instances: published ids are kept, semantic labels go through label propagation.

Volumes that fit in memory are labelled there, larger ones box by box (``lpa.DeferredLabels``); the ids are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

import lpa
from dataset_builder.layout import Box, Layout
from dataset_builder.numbering import IdTable
from dataset_builder.records import class_table
from em_bench_eval.errors import InputError
from em_bench_eval.schema import ORGANELLES, Array3D, Organelle, Volume

CLASSES = "classes"  # in a volume's work folder: its semantic labels, for boxes that are labelled when they are read
NAMES = "names.npz"  # and which ids stay, under which names; only with a smallest size


class Labels(Protocol):
    """The instances of a volume, read box by box."""

    def read(self, box: Box) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
        """Return the instance ids and the classes of a box."""
        ...


@dataclass(frozen=True)
class Labelled:
    """Instances that are labelled: the ids, and the classes that they were made from."""

    ids: Array3D
    classes: Array3D

    def read(self, box: Box) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
        """Read any box; views, if the arrays are in memory."""
        return np.asarray(self.ids[box]), np.asarray(self.classes[box])


@dataclass(frozen=True)
class Deferred:
    """Instances that are labelled when they are read; ``classes`` is read as it was when they were found."""

    ids: lpa.DeferredLabels
    classes: Array3D

    def read(self, box: Box) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
        """Label a box, which is one of those that components were found in."""
        classes = np.asarray(self.classes[box])
        return self.ids.read(box, classes), classes


@dataclass(frozen=True)
class Published:
    """Ids that the source publishes, and the class of each."""

    ids: Array3D
    class_of: IdTable
    where: str

    def read(self, box: Box) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
        """Read a box. Raises ``InputError`` for an id without an organelle."""
        ids = np.asarray(self.ids[box])
        classes = self.class_of[ids]
        orphans = (ids > 0) & (classes == 0)
        if orphans.any():
            found = np.unique(ids[orphans])
            raise InputError(
                f"{self.where}: instances without an organelle",
                found=f"{len(found)} ids, first {found[:5].tolist()}",
                expected="an organelle for every id",
                remedy="complete organelle_of where the volume is declared",
            )
        return ids, classes


@dataclass(frozen=True)
class Renamed:
    """Other labels with other ids; 0 drops an instance."""

    labels: Labels
    name_of: IdTable

    def read(self, box: Box) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint8]]:
        """Read a box and rename its ids."""
        old, classes = self.labels.read(box)
        ids = self.name_of[old].astype(old.dtype)
        return ids, np.where(ids > 0, classes, 0).astype(np.uint8)


def checked_classes(semantic: npt.NDArray[Any], where: str) -> npt.NDArray[np.uint8]:
    """Return class numbers as uint8; a class that is no organelle is an ``InputError``."""
    if semantic.size and (int(semantic.max()) > len(ORGANELLES) or int(semantic.min()) < 0):
        raise InputError(
            f"{where}: unknown semantic classes",
            found=sorted(set(np.unique(semantic).tolist()) - set(range(len(ORGANELLES) + 1))),
            expected=f"0 to {len(ORGANELLES)}: background, {', '.join(ORGANELLES)}",
            remedy="map the source's classes to organelles where the volume is declared",
        )
    return semantic.astype(np.uint8, copy=False)


def labels_in_memory(volume: Volume) -> Labels:
    """Label a volume in memory: compact ids in the order of their first voxel; published ids are left as they are."""
    if volume.semantic is None:
        return _published(volume)
    semantic = checked_classes(np.asarray(volume.semantic[:]), volume.volume_id)
    return Labelled(lpa.label(semantic, lpa.DEFAULT_CONNECTIVITY, relabel="compact"), semantic)


def labels_on_disk(volume: Volume, work: Path, layout: Layout) -> Labels:
    """Open what the stages of labelling left in ``work``; cheap, for use in any process."""
    from dataset_builder.volumes import open_array  # imports tensorstore

    labels: Labels
    if volume.semantic is None:
        labels = _published(volume)
    else:
        labels = Deferred(deferred_ids(work, layout), Stored(open_array(work / CLASSES)))
    names = work / NAMES
    if not names.exists():
        return labels
    with np.load(names) as table:
        return Renamed(labels, IdTable(table["ids"], table["names"]))


def deferred_ids(work: Path, layout: Layout) -> lpa.DeferredLabels:
    """Return the labels of a volume whose boxes are those of ``layout``."""
    return lpa.DeferredLabels(work, layout.shape, layout.shard, dict(lpa.DEFAULT_CONNECTIVITY))


def _published(volume: Volume) -> Labels:
    assert volume.instances is not None, "Volume holds one of the two"
    return Published(volume.instances, class_table(volume.organelle_of), volume.volume_id)


class Stored:
    """A tensorstore array that is read when it is indexed, as numpy."""

    def __init__(self, array: Any):
        self._array = array
        self.shape: tuple[int, ...] = tuple(array.shape)
        self.dtype: np.dtype[Any] = array.dtype.numpy_dtype

    def __getitem__(self, index: Any, /) -> npt.NDArray[Any]:
        return np.asarray(self._array[index].read().result())


def count_voxels(ids: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """Return the ids of a box, ascending and without background, and their number of voxels."""
    flat = ids.ravel()
    # runs first: ids repeat, so far fewer values are sorted
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]])) if flat.size else np.zeros(0, np.intp)
    values, which = np.unique(flat[starts], return_inverse=True)
    counts = np.bincount(which, np.diff(starts, append=flat.size), len(values)).astype(np.int64)
    kept = values != 0
    return values[kept].astype(np.uint64), counts[kept]


def names_without_specks(
    counted: Iterable[tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]], smallest_voxels: float, compact: bool
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Return all ids and their new names: 0 below ``smallest_voxels``; else 1..N in order if ``compact``, or the same.

    ``counted`` holds ``count_voxels`` of every box of the volume.
    """
    parts = list(counted)
    ids, which = np.unique(np.concatenate([part for part, _ in parts]), return_inverse=True)
    voxels = np.bincount(which, np.concatenate([part for _, part in parts]), len(ids))
    kept = voxels >= smallest_voxels
    names = np.where(kept, np.cumsum(kept).astype(np.uint64) if compact else ids, np.uint64(0))
    return ids, names


def instances_of(volume: Volume) -> tuple[npt.NDArray[Any], dict[int, Organelle]]:
    """Return the ``(z, y, x)`` instance ids of a whole volume in memory, and the organelle of each id.

    Raises ``InputError`` for a class that is no organelle and an id without an organelle.
    """
    everything = (slice(0, volume.image.shape[0]), slice(0, volume.image.shape[1]), slice(0, volume.image.shape[2]))
    ids, classes = labels_in_memory(volume).read(everything)
    values, first = np.unique(ids, return_index=True)
    of_value = classes.ravel()[first]
    known = list(Organelle)
    return ids, {int(id_): known[int(class_) - 1] for id_, class_ in zip(values, of_value, strict=True) if id_}


@dataclass(frozen=True)
class InstanceTable:
    """One row per instance: where it is and how large. Tables of boxes of one volume add up.

    ``ids`` ascending; ``voxels``; ``boxes (n, 6)``: z0, y0, x0, z1, y1, x1, half-open; ``classes``: Organelle.label_id.
    """

    ids: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    classes: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    voxels: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    boxes: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 6), np.int64))

    @classmethod
    def merged(cls, tables: Iterable[InstanceTable]) -> InstanceTable:
        """Add tables of disjoint boxes."""
        parts = [table for table in tables if len(table.ids)]
        if not parts:
            return cls()
        every = np.concatenate([table.ids for table in parts])
        order = np.argsort(every, kind="stable")
        ids, starts = np.unique(every[order], return_index=True)
        boxes = np.concatenate([table.boxes for table in parts])[order]
        return cls(
            ids,
            np.concatenate([table.classes for table in parts])[order][starts],
            np.add.reduceat(np.concatenate([table.voxels for table in parts])[order], starts),
            np.concatenate(
                [np.minimum.reduceat(boxes[:, :3], starts), np.maximum.reduceat(boxes[:, 3:], starts)], axis=1
            ),
        )

    def counts(self) -> Mapping[str, int]:
        """Return the number of instances of each organelle."""
        return {str(organelle): int((self.classes == organelle.label_id).sum()) for organelle in Organelle}

    def organelle_of(self) -> dict[int, Organelle]:
        """Return the organelle of each instance."""
        known = list(Organelle)
        return {id_: known[class_ - 1] for id_, class_ in zip(self.ids.tolist(), self.classes.tolist(), strict=True)}
