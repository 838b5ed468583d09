"""Clean up an instance volume: fill holes, re-attach fragments, drop crumbs, renumber.

The order matters and is fixed: holes are filled first (a filled instance may pass a size limit), fragments are
re-attached before anything is dropped (a crumb that belongs to a neighbour is not lost), ids are given last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from em_bench_eval.errors import InputError, unknown_name
from em_bench_eval.schema import ORGANELLES, Organelle
from lpa.extents import Extents, as_instances, extents, organelles_of
from lpa.split import three_lengths

Holes = Literal["3d", "slices", "keep"]
PerOrganelle = float | Mapping[str, float]


@dataclass(frozen=True)
class Cleaned:
    """The result of ``clean``. Ids run from 1 to N in raster order of first voxel."""

    instances: npt.NDArray[np.uint32]  # (z, y, x)
    organelle_of: dict[int, Organelle]  # new id -> organelle
    touches_border: dict[int, bool]  # new id -> it reaches the first or last slice, row or column
    new_id_of: dict[int, int]  # old id -> new id, 0 where it was dropped; a fragment has the id of what it joined
    filled_voxels: int
    attached: int  # fragments that joined a neighbour
    dropped: int  # instances below the minimum size


def clean(
    instances: npt.ArrayLike,
    organelle_of: Mapping[int, Organelle | str],
    voxel_size: Iterable[float],
    *,
    min_volume_nm3: PerOrganelle = 0.0,
    fragment_nm3: PerOrganelle = 0.0,
    holes: Holes = "3d",
    max_hole_nm3: float = float("inf"),
) -> Cleaned:
    """Clean up an instance volume.

    Args:
        instances: ``(z, y, x)`` integers, 0 = background.
        organelle_of: organelle of every id.
        voxel_size: ``(z, y, x)`` in nm.
        min_volume_nm3: instances smaller than this are dropped; one number, or by organelle (0 for those left out).
            Instances at the border of the volume are judged by the part that is seen.
        fragment_nm3: instances smaller than this that share a voxel face with a larger one of the same organelle join
            the one they share most faces with (the lower id at a tie); smallest first, so chains of crumbs collapse.
        holes: ``"3d"``: background that is enclosed by a single instance becomes part of it; background is
            6-connected, and what reaches the border of the volume is not enclosed. ``"slices"``: the same in every
            z slice on its own, for compact organelles in stacks annotated slice by slice (it closes tunnels along z
            too); networks (er, golgi) are left alone there, because their meshes are real.
        max_hole_nm3: larger holes stay.

    Returns:
        ``Cleaned``.

    Raises:
        InputError: not an integer volume, ids without organelle, unknown organelles or hole modes.
    """
    volume = as_instances(instances).copy()
    voxel_nm3 = float(np.prod(three_lengths(voxel_size)))
    if holes not in ("3d", "slices", "keep"):
        raise unknown_name("holes", str(holes), ("3d", "slices", "keep"))
    found = extents(volume)
    organelles = dict(zip(found.ids.tolist(), organelles_of(found.ids, organelle_of), strict=True))
    filled = 0 if holes == "keep" else _fill(volume, organelles, holes == "slices", max_hole_nm3 / voxel_nm3)
    found = extents(volume)
    joined = _attach(volume, found, organelles, _limits(fragment_nm3, voxel_nm3, "fragment_nm3"))
    minimum = _limits(min_volume_nm3, voxel_nm3, "min_volume_nm3")
    # merge what is known per instance instead of looking at the volume again
    ids = found.ids.tolist()
    row = {value: index for index, value in enumerate(ids)}
    size, first = found.voxels.copy(), found.first.copy()
    border = (found.start == 0).any(axis=1) | (found.stop == volume.shape).any(axis=1)
    for value, target in joined.items():
        size[row[target]] += size[row[value]]
        first[row[target]] = min(first[row[target]], first[row[value]])
        border[row[target]] |= border[row[value]]
    kept = [value for value in ids if value not in joined and size[row[value]] >= minimum[organelles[value]]]
    kept.sort(key=lambda value: int(first[row[value]]))
    number = {value: rank for rank, value in enumerate(kept, start=1)}
    new_id_of = {value: number.get(joined.get(value, value), 0) for value in ids}
    return Cleaned(
        instances=_renamed(volume, found, new_id_of),
        organelle_of={number[value]: organelles[value] for value in kept},
        touches_border={number[value]: bool(border[row[value]]) for value in kept},
        new_id_of=new_id_of,
        filled_voxels=filled,
        attached=len(joined),
        dropped=len(ids) - len(joined) - len(kept),
    )


def _fill(volume: npt.NDArray[Any], organelles: Mapping[int, Organelle], by_slice: bool, max_voxels: float) -> int:
    """Fill enclosed background in place; return the number of voxels."""
    faces = ndimage.generate_binary_structure(3, 1)
    if by_slice:
        faces[[0, 2]] = False
    holes, count = ndimage.label(volume == 0, faces)
    axes = (1, 2) if by_slice else (0, 1, 2)
    enclosed = np.bincount(holes.reshape(-1), minlength=count + 1) <= max_voxels
    for axis in axes:
        for side in (0, -1):
            enclosed[np.unique(np.take(holes, side, axis))] = False
    enclosed[0] = False
    lowest = np.full(count + 1, np.iinfo(volume.dtype).max, volume.dtype)  # ids around each hole
    highest = np.zeros(count + 1, volume.dtype)
    for axis in axes:
        front = tuple(slice(None, -1) if other == axis else slice(None) for other in range(3))
        back = tuple(slice(1, None) if other == axis else slice(None) for other in range(3))
        for here, there in ((front, back), (back, front)):
            touching = enclosed[holes[here]] & (volume[there] != 0)
            hole, value = holes[here][touching], volume[there][touching]
            np.minimum.at(lowest, hole, value)
            np.maximum.at(highest, hole, value)
    owner = np.where(enclosed & (lowest == highest), highest, 0).astype(volume.dtype)
    if by_slice:
        networks = [value for value, organelle in organelles.items() if organelle.is_network]
        owner[np.isin(owner, networks)] = 0
    new = owner[holes]
    volume += new
    return int(np.count_nonzero(new))


def _attach(
    volume: npt.NDArray[Any], found: Extents, organelles: Mapping[int, Organelle], limit: Mapping[Organelle, float]
) -> dict[int, int]:
    """Return fragment -> the instance that it ends up in."""
    size = dict(zip(found.ids.tolist(), found.voxels.tolist(), strict=True))
    small = [value for value in size if size[value] < limit[organelles[value]]]
    if not small:
        return {}
    shared: dict[int, dict[int, int]] = {value: {} for value in size}
    for axis in range(3):
        a = np.moveaxis(volume, axis, 0)[:-1]
        b = np.moveaxis(volume, axis, 0)[1:]
        touching = (a != b) & (a != 0) & (b != 0)
        pairs, counts = np.unique(np.stack([a[touching], b[touching]], axis=1), axis=0, return_counts=True)
        for (one, other), faces in zip(pairs.tolist(), counts.tolist(), strict=True):
            if organelles[one] == organelles[other]:
                shared[one][other] = shared[other][one] = shared[one].get(other, 0) + faces
    parent = {value: value for value in size}

    def find(value: int) -> int:
        while parent[value] != value:
            value = parent[value]
        return value

    for value in sorted(small, key=lambda value: (size[value], value)):
        if parent[value] != value:
            continue
        # "larger" in the order (size, id), so that of two equal crumbs one joins the other
        larger = [
            other
            for other in shared[value]
            if (found_size := size[other]) > size[value] or (found_size == size[value] and other > value)
        ]
        if larger:
            parent[value] = min(larger, key=lambda other: (-shared[value][other], other))
    return {value: find(value) for value in size if parent[value] != value}


def _limits(nm3: PerOrganelle, voxel_nm3: float, name: str) -> dict[Organelle, float]:
    """Size limits in voxels by organelle."""
    if not isinstance(nm3, Mapping):
        nm3 = dict.fromkeys(ORGANELLES, nm3)
    for organelle, value in nm3.items():
        if str(organelle) not in ORGANELLES:
            raise unknown_name("organelle", str(organelle), ORGANELLES)
        if not value >= 0:
            raise InputError(f"unusable {name} of {organelle}", found=value, expected="nm^3, at least 0")
    named = {str(organelle): float(value) for organelle, value in nm3.items()}
    return {organelle: named.get(str(organelle), 0.0) / voxel_nm3 for organelle in Organelle}


def _renamed(volume: npt.NDArray[Any], found: Extents, new_id_of: Mapping[int, int]) -> npt.NDArray[np.uint32]:
    result = np.zeros(volume.shape, np.uint32)
    names = np.array([0, *(new_id_of[value] for value in found.ids.tolist())], np.uint32)
    for index in range(len(volume)):  # slice by slice: the lookup needs an index array of the size of its input
        inside = volume[index] != 0
        result[index][inside] = names[1 + np.searchsorted(found.ids, volume[index][inside])]
    return result
