"""Lazy ``(z, y, x)`` arrays made of others: computed for the box that is read, never for the whole volume."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from em_bench_eval.errors import InputError
from em_bench_eval.schema import Array3D, Organelle

LARGEST_ID = np.iinfo(np.uint32).max
SLAB_VOXELS = 2**25


class Elementwise:
    """What ``function`` makes of one or more arrays of equal shape, voxel by voxel."""

    def __init__(self, function: Callable[..., npt.NDArray[Any]], arrays: Sequence[Array3D], dtype: npt.DTypeLike):
        self._function, self._arrays = function, tuple(arrays)
        self.shape = tuple(int(size) for size in self._arrays[0].shape)
        self.dtype = np.dtype(dtype)
        if any(tuple(array.shape) != self.shape for array in self._arrays):
            raise ValueError(f"arrays of different sizes: {[tuple(array.shape) for array in self._arrays]}")

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        read = self._function(*(np.asarray(array[index]) for array in self._arrays))
        return np.asarray(read).astype(self.dtype, copy=False)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)


class Constant:
    """One value everywhere; takes no memory until it is read."""

    def __init__(self, value: int, shape: Sequence[int], dtype: npt.DTypeLike):
        self.shape, self.dtype = tuple(int(size) for size in shape), np.dtype(dtype)
        self._value = value

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        return np.array(np.broadcast_to(np.asarray(self._value, self.dtype), self.shape)[index])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)


class EveryId(Mapping[int, Organelle]):
    """``organelle_of`` of a volume with one organelle only, whose ids nobody has published: all of them are one of it.

    A look-up reads nothing. To iterate, or to count, the label volume is read once, slab by slab.
    """

    def __init__(self, organelle: Organelle, labels: Array3D):
        self.organelle, self._labels = organelle, labels
        self._ids: tuple[int, ...] | None = None

    def __getitem__(self, id_: int) -> Organelle:
        if id_ <= 0:
            raise KeyError(id_)
        return self.organelle

    def __iter__(self) -> Iterator[int]:
        return iter(self._listed())

    def __len__(self) -> int:
        return len(self._listed())

    def _listed(self) -> tuple[int, ...]:
        if self._ids is None:
            depth, height, width = self._labels.shape
            step = max(1, SLAB_VOXELS // max(1, height * width))
            found: set[int] = set()
            for z in range(0, depth, step):
                found.update(np.unique(np.asarray(self._labels[z : z + step])).tolist())
            self._ids = tuple(sorted(id_ for id_ in found if id_ > 0))
        return self._ids


def check_grid(where: str, image: Array3D, *labels: Array3D) -> None:
    """Raise ``InputError`` unless all labels have the size of the image."""
    for array in labels:
        if tuple(array.shape) != tuple(image.shape):
            raise InputError(
                f"{where}: labels do not lie on the grid of their image",
                found=f"{tuple(array.shape)} voxels (z, y, x)",
                expected=f"{tuple(image.shape)}, the size of the image",
                remedy="download the files again",
            )


def first_claim(maps: Sequence[Array3D]) -> Elementwise:
    """Return label maps as one: where several are not 0, the first wins."""
    return Elementwise(_first_claim, maps, maps[0].dtype)


def _first_claim(*maps: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return functools.reduce(lambda above, below: np.where(above > 0, above, below), maps)


def any_of(masks: Sequence[Array3D]) -> Elementwise:
    """Return where any of the masks is."""
    return Elementwise(_any_of, masks, np.bool_)


def _any_of(*masks: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    return np.asarray(np.logical_or.reduce(masks))


def masks_to_semantic(masks: Mapping[Organelle, Array3D]) -> Elementwise:
    """Return the semantic map of one mask per organelle: a voxel belongs to the first whose mask is not 0 there."""
    return first_claim(
        [Elementwise(functools.partial(_label, one.label_id), [mask], np.uint8) for one, mask in masks.items()]
    )


def _label(label_id: int, mask: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.where(mask != 0, np.uint8(label_id), np.uint8(0))


def values_to_semantic(labels: Array3D, organelle_of: Mapping[int, Organelle | None], where: str) -> Elementwise:
    """Return the semantic map of published class values; ``None`` is a class outside the five.

    A value that ``organelle_of`` does not list is an ``InputError`` when it is read.
    """
    return Elementwise(functools.partial(_map_values, dict(organelle_of), where), [labels], np.uint8)


def _map_values(
    organelle_of: Mapping[int, Organelle | None], where: str, labels: npt.NDArray[Any]
) -> npt.NDArray[np.uint8]:
    values, places = np.unique(labels, return_inverse=True)
    unknown = [value for value in values.tolist() if value not in organelle_of]
    if unknown:
        raise InputError(
            f"{where} has unknown label values",
            found=", ".join(map(str, unknown[:8])),
            expected=", ".join(map(str, sorted(organelle_of))),
            remedy="the file may have been resampled or converted: download the published label again",
        )
    organelles = [organelle_of[value] for value in values.tolist()]
    table = np.array([0 if organelle is None else organelle.label_id for organelle in organelles], np.uint8)
    return np.asarray(table[places.reshape(labels.shape)])


def equals(labels: Array3D, value: int) -> Elementwise:
    """Return the mask of one label value."""
    return Elementwise(functools.partial(np.equal, value), [labels], np.bool_)


def at_most(labels: Array3D, value: int) -> Elementwise:
    """Return the mask of label values up to ``value``."""
    return Elementwise(functools.partial(np.greater_equal, value), [labels], np.bool_)


def inside(mask: Array3D) -> Elementwise:
    """Return the mask of what is not 0."""
    return Elementwise(functools.partial(np.not_equal, 0), [mask], np.bool_)


def without_value(ids: Array3D, background: int) -> Elementwise:
    """Return unsigned ids in their own type, with 0 where they are ``background``."""
    return Elementwise(functools.partial(_zero_at, background), [ids], ids.dtype)


def _zero_at(background: int, ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.where(ids == ids.dtype.type(background), ids.dtype.type(0), ids)


def named_extras(image: Array3D, found: Mapping[str, tuple[Array3D, str]]) -> tuple[dict[str, Array3D], dict[str, str]]:
    """Return ``Volume.extras``, and the provenance that says where each is.

    ``found`` holds, by name, an array and its place in the raw data. One of another size than the image is named in the
    provenance only: an extra is no reason to refuse the volume.
    """
    arrays: dict[str, Array3D] = {}
    places: dict[str, str] = {}
    for name, (array, place) in found.items():
        shape = tuple(int(size) for size in array.shape)
        if shape == tuple(int(size) for size in image.shape):
            arrays[name] = array
        else:
            place += f" (not published: {shape} voxels (z, y, x) are not those of the image)"
        places[f"extra:{name}"] = place
    return arrays, places


def instance_ids(labels: Array3D, where: str) -> Elementwise:
    """Return published ids as uint32, however they are stored; fractions and negative ids are ``InputError``."""
    return Elementwise(functools.partial(_as_ids, where), [labels], np.uint32)


def _as_ids(where: str, labels: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    ids = labels.astype(np.uint32)
    if labels.dtype.kind != "b" and not np.array_equal(ids.astype(labels.dtype), labels):
        raise InputError(
            f"{where} does not hold instance ids",
            found=f"{labels.dtype} values from {labels.min()} to {labels.max()}",
            expected=f"whole numbers from 0 (background) to {LARGEST_ID}",
            remedy="download the published label again",
        )
    return ids
