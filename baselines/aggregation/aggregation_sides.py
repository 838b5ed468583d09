"""The two sides of the measurement: one semantic map from one probability volume, and the reference it is held against.

Both are read box by box, so a volume need not fit into memory.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from baselines.aggregation.aggregation_cuts import Box, Shape
from em_bench_eval.errors import InputError
from em_bench_eval.label_maps import organelle_name
from em_bench_eval.opened import Mapped, Opened, whole_numbers
from em_bench_eval.schema import ORGANELLES, Organelle, VoxelSize
from em_bench_eval.score_volumes import SAME_SIZE, Ends, LabelVolume, open_labels

Classes = npt.NDArray[np.uint8]  # 0 = background, 1 to 5 = Organelle.label_id
LABEL_ID = {organelle.value: organelle.label_id for organelle in Organelle}
LARGEST_TABLE = 1 << 24  # ids up to here are looked up in one array


class Maps(Protocol):
    """Probability maps by name: ``baselines.volumes.map_store.MapStore``, or ``ArrayMaps``."""

    @property
    def names(self) -> tuple[str, ...]:
        """Channels; those called like an organelle are its probability."""
        ...

    @property
    def shape(self) -> Shape:
        """Size in voxels, ``(z, y, x)``."""
        ...

    def read(self, box: Sequence[slice], names: Sequence[str] | None = None) -> npt.NDArray[np.float32]:
        """Read a box of the named channels, ``(channel, z, y, x)``."""
        ...


@dataclass(frozen=True)
class ArrayMaps:
    """Maps in memory: ``values`` is ``(channel, z, y, x)``, parallel to ``names``."""

    names: tuple[str, ...]
    values: npt.NDArray[np.floating[Any]]

    @property
    def shape(self) -> Shape:
        """Size in voxels, ``(z, y, x)``."""
        z, y, x = self.values.shape[1:]
        return z, y, x

    def read(self, box: Sequence[slice], names: Sequence[str] | None = None) -> npt.NDArray[np.float32]:
        """Read a box of the named channels, ``(channel, z, y, x)``."""
        channels = [self.names.index(name) for name in names or self.names]
        return np.stack([self.values[channel][tuple(box)] for channel in channels]).astype(np.float32)


def mapped_organelles(maps: Maps) -> tuple[str, ...]:
    """Return the organelles that the maps hold a probability of."""
    found = tuple(name for name in ORGANELLES if name in maps.names)
    if not found:
        raise InputError("the maps hold no organelle", found=", ".join(maps.names), expected=", ".join(ORGANELLES))
    return found


@dataclass(frozen=True)
class ReferenceBox:
    """What the reference says about a box; all arrays ``(z, y, x)``."""

    ids: npt.NDArray[Any]  # instances of the whole volume, 0 = none
    classes: Classes
    ignore: npt.NDArray[np.bool_] | None  # True where nobody annotated


@dataclass(frozen=True)
class Reference:
    """The annotated instances of one volume; ``open_reference`` and ``reference_of_arrays`` make one."""

    labels: LabelVolume
    voxel_size_nm: VoxelSize
    organelles: tuple[str, ...]  # that are annotated; the others are not judged

    @property
    def shape(self) -> Shape:
        """Size in voxels, ``(z, y, x)``."""
        return self.labels.shape

    def read(self, box: Box) -> ReferenceBox:
        """Read a box; raises ``InputError`` for an id of which nothing says what it is."""
        ignore = None if self.labels.ignore is None else np.asarray(self.labels.ignore[box]) != 0
        if self.labels.organelle_of is None:
            ids, classes = self._joined(box)
        else:
            ids = whole_numbers(self.labels.maps[""][box], self.labels.location)
            classes = self._classes(ids)
        return ReferenceBox(ids, classes, ignore)

    def classes(self, box: Box) -> Classes:
        """Read the semantic map alone: perfect pixels."""
        return self.read(box).classes

    def _joined(self, box: Box) -> tuple[npt.NDArray[np.uint64], Classes]:
        """Join a label map per organelle; where two claim a voxel, the organelle that comes first has it."""
        ids = np.zeros([side.stop - side.start for side in box], np.uint64)
        classes = np.zeros(ids.shape, np.uint8)
        for name in self.organelles:
            if name in self.labels.maps:
                own = whole_numbers(self.labels.maps[name][box], name).astype(np.uint64)
                here = (own > 0) & (ids == 0)
                ids[here] = own[here] * np.uint64(8) + np.uint64(LABEL_ID[name])
                classes[here] = LABEL_ID[name]
        return ids, classes

    def _classes(self, ids: npt.NDArray[Any]) -> Classes:
        known, values, table = self._table
        if table is not None and ids.dtype.kind == "u" and int(ids.max(initial=0)) < len(table):
            classes: Classes = table[ids]
        else:
            place = np.searchsorted(known, ids.astype(np.uint64)).clip(max=len(known) - 1)
            classes = np.where(known[place] == ids, values[place], np.uint8(255)).astype(np.uint8)
            classes[ids == 0] = 0
        if (classes == 255).any():
            raise InputError(
                f"{self.labels.location} has instances without an organelle",
                found=f"the id {ids[classes == 255][0]}",
                expected="an entry {id: organelle} for every id in the label map",
            )
        return classes

    @cached_property
    def _table(self) -> tuple[npt.NDArray[np.uint64], Classes, Classes | None]:
        """Ids ascending with their classes, and the same as one array by id if ids are small; 255 = unknown."""
        pairs = sorted((int(id_), LABEL_ID[name]) for id_, name in (self.labels.organelle_of or {}).items())
        pairs = [(0, 0), *(pair for pair in pairs if pair[0])]
        known = np.array([id_ for id_, _ in pairs], np.uint64)
        values = np.array([value for _, value in pairs], np.uint8)
        if int(known[-1]) >= LARGEST_TABLE:
            return known, values, None
        table = np.full(int(known[-1]) + 1, 255, np.uint8)
        table[known] = values
        return known, values, table


def open_reference(
    location: str | os.PathLike[str],
    organelle: str | None = None,
    voxel_size_nm: Sequence[float] | None = None,
    box: Ends | None = None,
) -> Reference:
    """Open whatever ``em-bench score`` takes as a reference volume, or a part of it; raises ``InputError``."""
    labels = open_labels(location, organelle)
    return _reference(labels if box is None else labels.crop(box), voxel_size_nm)


def reference_of_arrays(
    instances: npt.NDArray[Any],
    organelle_of: Mapping[int, str],
    voxel_size_nm: Sequence[float],
    *,
    annotated: Sequence[str] | None = None,
    ignore: npt.NDArray[Any] | None = None,
    name: str = "reference",
) -> Reference:
    """Make a reference of arrays ``(z, y, x)``: ids, and optionally a mask of what nobody annotated."""

    def opened(array: npt.NDArray[Any]) -> Opened:
        return Opened(name, "array", Mapped(array), VoxelSize(*voxel_size_nm), None)

    labels = LabelVolume(
        name,
        {"": opened(instances)},
        {int(id_): organelle_name(organelle) for id_, organelle in organelle_of.items()},
        None if annotated is None else tuple(map(organelle_name, annotated)),
        None if ignore is None else opened(ignore),
    )
    return _reference(labels, None)


def _reference(labels: LabelVolume, voxel_size_nm: Sequence[float] | None) -> Reference:
    size = VoxelSize(*voxel_size_nm) if voxel_size_nm is not None else labels.voxel_size_nm
    if size is None:
        raise InputError(
            f"{labels.location} states no voxel size",
            expected="the edge lengths of a voxel in nm",
            remedy="give --voxel-size-nm Z,Y,X (in Python: voxel_size_nm=(z, y, x))",
        )
    named = labels.annotated
    if named is None:
        named = tuple(labels.maps if labels.organelle_of is None else labels.organelle_of.values())
    return Reference(labels, size, tuple(name for name in ORGANELLES if name in named))


def check_grid(what: str, shape: Sequence[int], size: VoxelSize | None, reference: Reference) -> None:
    """Raise ``InputError`` unless ``what`` lies on the voxel grid of the reference."""
    if tuple(shape) != reference.shape:
        raise InputError(
            f"{what} and the reference differ in shape",
            found=f"{what} {tuple(shape)}, reference {reference.shape} (z, y, x)",
            expected="one voxel grid",
            remedy="predict the volume that the reference annotates (em-bench predict --volume ...)",
        )
    pairs = zip(size or reference.voxel_size_nm, reference.voxel_size_nm, strict=True)
    if any(abs(a - b) > SAME_SIZE * max(a, b) for a, b in pairs):
        raise InputError(
            f"{what} and the reference differ in voxel size",
            found=f"{tuple(size or ())} and {tuple(reference.voxel_size_nm)} nm (z, y, x)",
            expected=f"the same within {SAME_SIZE:.0%}",
            remedy="correct the metadata of the file that is wrong",
        )
