"""What ``score`` accepts: label maps of either form, checked, and brought to one form."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError, unknown_name
from .schema import ORGANELLES

LabelMaps = Mapping[str, Any] | tuple[Any, Mapping[int, str]]
Ids = npt.NDArray[np.uint64]
Side = dict[str, tuple[npt.NDArray[Any], Ids | None]]  # organelle -> label map, its ids there (None: all)


def as_labels(name: str, array: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return ``array`` as a 2D or 3D integer array without copying or reading it.

    Floats (and so NaN), booleans and another number of axes raise ``InputError``; negative ids are found where the
    voxels are read (``refuse_negative``).
    """
    labels = np.asarray(array)
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"{name} is not a label map",
            found=f"{labels.dtype} values",
            expected="integers, one id per instance, 0 = background",
            remedy="give each instance its own id (lpa.label turns a mask into instances); probabilities are no labels",
        )
    if labels.ndim not in (2, 3):
        raise InputError(
            f"{name} is not an image or a volume",
            found=f"shape {labels.shape}",
            expected="(y, x) or (z, y, x)",
            remedy="add batched images one at a time, and drop channel axes",
        )
    return labels


def refuse_negative(name: str, labels: npt.NDArray[Any], largest_id: int) -> None:
    """Raise ``InputError`` if signed labels hold a negative id, given their largest id read as unsigned."""
    if labels.dtype.kind == "i" and largest_id > np.iinfo(labels.dtype).max:
        raise InputError(
            f"{name} holds negative ids",
            found=largest_id - 2 ** (8 * labels.itemsize),
            expected="0 = background and positive ids",
            remedy="map 'unlabelled' values such as -1 to 0, and pass the region as `ignore`",
        )


def refuse_unnamed(name: str, ids: Ids, named: Ids) -> None:
    """Raise ``InputError`` if some ids of a label map are not in its table of organelles."""
    unnamed = np.setdiff1d(ids, named).tolist()
    if unnamed:
        raise InputError(
            f"{name} has instances without an organelle",
            found=f"{len(unnamed)} ids: {', '.join(map(str, unnamed[:10]))}{', ...' if len(unnamed) > 10 else ''}",
            expected="an entry {id: organelle} for every id in the label map",
            remedy="name the organelle of every instance, or set those voxels to 0",
        )


def read_side(name: str, maps: LabelMaps) -> Side:
    """Normalise one side to organelle -> (label map, its ids), checking every array and name."""
    if isinstance(maps, Mapping):
        return {organelle_name(key): (as_labels(f"{name} of {key}", array), None) for key, array in maps.items()}
    if not (isinstance(maps, tuple) and len(maps) == 2 and isinstance(maps[1], Mapping)):
        raise InputError(
            f"{name} is neither a mapping nor a pair",
            found=type(maps).__name__,
            expected='{"mito": label map, ...}, or (label map, {1: "mito", ...})',
        )
    labels = as_labels(name, maps[0])
    organelle_of = {int(id_): organelle_name(organelle) for id_, organelle in maps[1].items()}
    if not organelle_of:
        refuse_unnamed(name, np.unique(labels[labels != 0]).astype(np.uint64), np.zeros(0, np.uint64))
    return {
        organelle: (labels, np.array([id_ for id_, other in organelle_of.items() if other == organelle], np.uint64))
        for organelle in set(organelle_of.values())
    }


def by_piece(side: Side, axes: int) -> Side:
    """Give each connected piece of each instance its own id; images only."""
    if axes != 2:
        raise InputError('reference_ids="slice" needs images', found=f"{axes}D", expected="(y, x) label maps")
    for labels, _ in side.values():
        refuse_negative("reference", labels, int(labels.view(labels.dtype.str.replace("i", "u")).max(initial=0)))
    pieces = {id(labels): connected_pieces(labels) for labels, _ in side.values()}
    return {
        organelle: (
            pieces[id(labels)][0],
            None
            if ids is None
            else np.flatnonzero(np.isin(pieces[id(labels)][1], ids)).astype(np.uint64) + np.uint64(1),
        )
        for organelle, (labels, ids) in side.items()
    }


def is_among(ids: npt.NDArray[np.uint64], chosen: npt.NDArray[np.uint64] | None) -> npt.NDArray[np.bool_]:
    """Mark the ids that are among the chosen ones (None: all are)."""
    return np.ones(len(ids), bool) if chosen is None else np.isin(ids, chosen)


def only(labels: npt.NDArray[Any], ids: Ids) -> npt.NDArray[Any]:
    """Return the label map with every other id set to 0; the same array if there is no other."""
    present = labels != 0
    kept = np.isin(labels, ids.astype(labels.dtype)) & present
    return labels if np.array_equal(kept, present) else np.where(kept, labels, labels.dtype.type(0))


def common_shape(sides: Mapping[str, Side], mask: npt.NDArray[np.bool_] | None, axes: int) -> tuple[int, ...]:
    """Return the one shape that every label map and the mask have, or raise ``InputError``."""
    shapes = {
        f"{name} of {organelle}": labels.shape
        for name, side in sides.items()
        for organelle, (labels, _) in side.items()
    }
    if mask is not None:
        shapes["ignore"] = mask.shape
    if len(set(shapes.values())) > 1:
        raise InputError(
            "prediction, reference and ignore must have the same shape",
            found="; ".join(f"{name} {shape}" for name, shape in shapes.items()),
            expected="one voxel grid",
            remedy="resample labels to the grid of the reference (nearest voxel)",
        )
    shape = next(iter(shapes.values()), (0,) * axes)
    if len(shape) != axes:
        raise InputError(
            "voxel_size_nm does not fit the label maps",
            found=f"{axes} values for shape {shape}",
            expected="(y, x) for an image, (z, y, x) for a volume",
        )
    return shape


def read_voxel_size(voxel_size_nm: Sequence[float]) -> tuple[float, ...]:
    """Check an edge length in nm per axis."""
    size = tuple(float(edge) for edge in voxel_size_nm)
    if len(size) not in (2, 3) or not all(math.isfinite(edge) and edge > 0 for edge in size):
        raise InputError(
            "voxel_size_nm is not a voxel size",
            found=size,
            expected="two (y, x) or three (z, y, x) positive numbers of nm",
        )
    return size


def read_mask(ignore: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Accept a boolean mask, or integers of which 0 means False."""
    mask = np.asarray(ignore)
    if mask.dtype != np.bool_ and not np.issubdtype(mask.dtype, np.integer):
        raise InputError("ignore is not a mask", found=f"{mask.dtype} values", expected="booleans, or 0 and not 0")
    return mask.astype(bool, copy=False)


def organelle_name(name: str) -> str:
    """Return the name as a plain string if it is one of the five, else raise "did you mean ..."."""
    if name not in ORGANELLES:
        raise unknown_name("organelle", str(name), ORGANELLES)
    return str(getattr(name, "value", name))


def connected_pieces(labels: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], Ids]:
    """Give every 8-connected piece of every id of a ``(y, x)`` label map its own id.

    Returns the new map (ids 1..n, 0 = background) and the old id of each: ``old = parents[new - 1]``. Pieces of
    different ids never join, also where they touch.
    """
    from scipy import ndimage

    ids, positions = np.unique(labels, return_inverse=True)
    positions = positions.reshape(labels.shape)
    if ids.size and ids[0] > 0:  # no background: the first position is an instance
        positions = positions + 1
    ids = ids[ids > 0]
    pieces = np.zeros(labels.shape, np.int64)
    parents: list[int] = []
    eight = np.ones((3, 3), np.int8)
    for index, box in enumerate(ndimage.find_objects(positions) if ids.size else []):
        found, number = ndimage.label(positions[box] == index + 1, structure=eight)
        inside = found > 0
        pieces[box][inside] = found[inside] + len(parents)
        parents.extend([int(ids[index])] * number)
    return pieces, np.array(parents, np.uint64)
