"""Additive statistics of surfaces and distances of one organelle in one image or volume.

Judged instances are compared as the matching paired them; the organelle's whole mask is compared once more, without
instances. What stands in ignored voxels changes no number here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .label_maps import as_labels, read_voxel_size
from .surface import Bools, Floats, Groups, Ints, Surface, blocks, surface_positions

PERCENTILE = 0.95
CREMI_FAR_NM = 200.0  # beyond it the CREMI challenge calls a voxel a false positive or negative
_SLACK = 1 + 1e-9  # in binary, 3 * 5.2 nm is more than 15.6 nm: equal lengths must count as equal

# what ``boundary_statistics`` returns
STATISTICS = (
    "boundary_instances",
    "boundary_pairs_without_surface",
    "boundary_nsd",
    "boundary_elements",
    "boundary_elements_within",
    "boundary_pairs_with_distance",
    "boundary_hd95_nm",
    "boundary_msd_nm",
    "boundary_mask_items_with_distance",
    "boundary_mask_elements",
    "boundary_mask_elements_within",
    "boundary_mask_elements_with_distance",
    "boundary_mask_distance_nm",
    "boundary_mask_hd95_nm",
    "boundary_voxel_items",
    "boundary_voxel_items_with_distance",
    "boundary_adgt_voxels",
    "boundary_adgt_nm",
    "boundary_adf_voxels",
    "boundary_adf_nm",
    "boundary_cremi_fp",
    "boundary_cremi_fn",
    "boundary_mfd_hausdorff_nm",
    "boundary_mfd_mean_nm",
)

Labels = npt.NDArray[Any]
Ids = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class _Directed:
    """Distances from the surface elements of one side to the other side's surface, per pair.

    ``total_nm`` and ``percentile_nm`` mean nothing where either side has no surface elements.
    """

    elements: Ints
    within: Ints
    total_nm: Floats
    percentile_nm: Floats


def boundary_statistics(
    reference: Labels,
    prediction: Labels,
    voxel_size_nm: Sequence[float],
    *,
    matched: npt.ArrayLike,
    unmatched_reference: npt.ArrayLike,
    unmatched_prediction: npt.ArrayLike,
    tolerance_nm: float,
    ignore: Bools | None = None,
) -> dict[str, int | float]:
    """Measure the surfaces of the instances and of the mask of one organelle in one whole image or volume.

    ``reference``, ``prediction``: label maps of this organelle alone, (y, x) or (z, y, x), 0 = background, ids up to
    2**64 - 1. ``voxel_size_nm``: edge lengths in the same order. ``matched``: (n, 2) ids, reference and prediction, of
    the matched pairs; ``unmatched_*``: ids of the other judged instances. Ids in none of the three are not judged:
    their surfaces belong to the mask alone. ``tolerance_nm``: distance up to which two surfaces agree. ``ignore``:
    bool mask of the same shape.

    Returns sums (``..._nm`` in nm) that add up over images or volumes; not over blocks of one, where the nearest
    surface may lie in another block. Raises ``InputError``.
    """
    size = read_voxel_size(voxel_size_nm)
    maps = as_labels("reference", reference), as_labels("prediction", prediction)
    shapes = [labels.shape for labels in maps] + ([] if ignore is None else [ignore.shape])
    if len(set(shapes)) > 1 or len(size) != maps[0].ndim:
        raise InputError(
            "reference, prediction, ignore and voxel_size_nm do not fit together",
            found=f"shapes {', '.join(map(str, shapes))}; {len(size)} edge lengths",
            expected="one voxel grid, and its edge lengths as (y, x) or (z, y, x)",
        )
    if not (math.isfinite(tolerance_nm) and tolerance_nm >= 0):
        raise InputError("tolerance_nm is out of range", found=tolerance_nm, expected="a finite number >= 0")
    pairs = np.asarray(matched, np.uint64).reshape(-1, 2)
    unmatched = np.asarray(unmatched_reference, np.uint64), np.asarray(unmatched_prediction, np.uint64)
    return {
        **_instances(maps, size, pairs, unmatched, tolerance_nm, ignore),
        **_masks((maps[0] != 0, maps[1] != 0), size, tolerance_nm, ignore),
    }


def _instances(
    maps: tuple[Labels, Labels],
    size: tuple[float, ...],
    pairs: Ids,
    unmatched: tuple[Ids, Ids],
    tolerance_nm: float,
    ignore: Bools | None,
) -> dict[str, int | float]:
    sides: list[tuple[Ints, Groups]] = []
    all_elements = 0
    for labels, mine, others in zip(maps, pairs.T, unmatched, strict=True):
        positions = surface_positions(labels, ignore)
        groups = _places(labels, positions, np.concatenate([mine, others]))
        all_elements += int(np.count_nonzero(groups >= 0))
        paired = (groups >= 0) & (groups < len(pairs))
        sides.append((positions[paired], groups[paired]))
    there, back = (
        _directed(Surface(*other, maps[0].shape, size).distances_nm(*one), one[1], len(pairs), tolerance_nm)
        for one, other in (sides, sides[::-1])
    )
    elements, within = there.elements + back.elements, there.within + back.within
    on_either, on_both = elements > 0, (there.elements > 0) & (back.elements > 0)
    farthest = np.maximum(there.percentile_nm, back.percentile_nm)[on_both]
    mean = (there.total_nm + back.total_nm)[on_both] / elements[on_both]
    return {
        "boundary_instances": len(pairs) + len(unmatched[0]) + len(unmatched[1]),
        "boundary_pairs_without_surface": int(np.count_nonzero(~on_either)),
        "boundary_nsd": _total(within[on_either] / elements[on_either]),
        "boundary_elements": all_elements,
        "boundary_elements_within": int(within.sum()),
        "boundary_pairs_with_distance": int(np.count_nonzero(on_both)),
        "boundary_hd95_nm": _total(farthest),
        "boundary_msd_nm": _total(mean),
    }


def _masks(
    masks: tuple[Bools, Bools], size: tuple[float, ...], tolerance_nm: float, ignore: Bools | None
) -> dict[str, int | float]:
    """Compare the masks by their surfaces, and as sets of voxels, where distances inside the other mask are 0."""
    shape = masks[0].shape
    positions = [surface_positions(mask, ignore) for mask in masks]
    visible = masks if ignore is None else (masks[0] & ~ignore, masks[1] & ~ignore)
    directed, outside = [], []
    for one, other in ((0, 1), (1, 0)):
        surface = Surface(positions[other], _one_group(positions[other]), shape, size)
        groups = _one_group(positions[one])
        directed.append(_directed(surface.distances_nm(positions[one], groups), groups, 1, tolerance_nm))
        if ignore is not None:  # the rim of a set of voxels may be in contact with ignored ones
            rim = surface_positions(visible[other])
            surface = Surface(rim, _one_group(rim), shape, size)
        outside.append(_outside(visible[one], visible[other], surface))
    return {**_mask_surfaces(*directed), **_mask_voxels(*outside)}


def _mask_surfaces(there: _Directed, back: _Directed) -> dict[str, int | float]:
    elements = int(there.elements[0] + back.elements[0])
    measured = bool(there.elements[0] and back.elements[0])
    return {
        "boundary_mask_items_with_distance": int(measured),
        "boundary_mask_elements": elements,
        "boundary_mask_elements_within": int(there.within[0] + back.within[0]),
        "boundary_mask_elements_with_distance": elements if measured else 0,
        "boundary_mask_distance_nm": float(there.total_nm[0] + back.total_nm[0]) if measured else 0.0,
        "boundary_mask_hd95_nm": float(max(there.percentile_nm[0], back.percentile_nm[0])) if measured else 0.0,
    }


@dataclass(frozen=True)
class _Outside:
    """Distances from the ``voxels`` of a mask to another mask; 0.0 where there are none to measure."""

    voxels: int
    far: int
    total_nm: float
    farthest_nm: float


def _outside(mask: Bools, other: Bools, rim: Surface) -> _Outside:
    """Measure from the voxels of a mask to another mask, of whose voxels ``rim`` is the surface.

    Seen from a voxel outside of a mask, the nearest voxel of the mask is one of its surface.
    """
    voxels = int(np.count_nonzero(mask))
    if not other.any():
        return _Outside(voxels, voxels, 0.0, 0.0)
    totals, far, farthest = [], 0, 0.0
    for rows in blocks(mask.shape):
        positions = np.flatnonzero(mask[rows] & ~other[rows]) + rows.start * math.prod(mask.shape[1:])
        distances = rim.distances_nm(positions, _one_group(positions))
        totals.append(float(distances.sum()))
        far += int(np.count_nonzero(distances > CREMI_FAR_NM * _SLACK))
        farthest = max(farthest, float(distances.max(initial=0.0)))
    return _Outside(voxels, far, math.fsum(totals), farthest)


def _mask_voxels(reference: _Outside, prediction: _Outside) -> dict[str, int | float]:
    both = bool(reference.voxels and prediction.voxels)
    means = [side.total_nm / side.voxels if both else 0.0 for side in (reference, prediction)]
    return {
        "boundary_voxel_items": int(bool(reference.voxels or prediction.voxels)),
        "boundary_voxel_items_with_distance": int(both),
        "boundary_adgt_voxels": prediction.voxels if both else 0,
        "boundary_adgt_nm": prediction.total_nm,
        "boundary_adf_voxels": reference.voxels if both else 0,
        "boundary_adf_nm": reference.total_nm,
        "boundary_cremi_fp": prediction.far,
        "boundary_cremi_fn": reference.far,
        "boundary_mfd_hausdorff_nm": (reference.farthest_nm + prediction.farthest_nm) / 2,
        "boundary_mfd_mean_nm": sum(means) / 2,
    }


def _directed(distances: Floats, groups: Groups, n_groups: int, tolerance_nm: float) -> _Directed:
    order = np.argsort(groups, kind="stable")
    groups, distances = groups[order], distances[order]
    elements = np.bincount(groups, minlength=n_groups)
    starts = np.cumsum(elements) - elements
    for start, number in zip(starts.tolist(), elements.tolist(), strict=True):
        distances[start : start + number].sort()
    rank = PERCENTILE * np.maximum(elements - 1, 0)  # between two ranks, interpolate linearly, as numpy.percentile does
    low = np.floor(rank).astype(np.int64)
    padded = np.append(distances, np.inf)  # groups without elements at the end need something to point to
    at_low, at_high = padded[starts + low], padded[starts + np.ceil(rank).astype(np.int64)]
    with np.errstate(invalid="ignore"):  # inf - inf: no surface on the other side
        percentile = at_low + (rank - low) * (at_high - at_low)
    within = np.bincount(groups[distances <= tolerance_nm * _SLACK], minlength=n_groups)
    return _Directed(elements, within, np.bincount(groups, distances, n_groups).astype(np.float64), percentile)


def _places(labels: Labels, positions: Ints, ids: Ids) -> Groups:
    """Return for each position the place of its label among ``ids``, -1 if it is not there."""
    if not len(ids) or not len(positions):
        return np.full(len(positions), -1, np.int32)
    order = np.argsort(ids)
    known = ids[order]
    if (known[1:] == known[:-1]).any():
        raise ValueError("an instance is matched twice, or both matched and unmatched")
    found = labels.reshape(-1)[positions]
    top = int(found.max())
    if top < max(1 << 16, len(positions)):  # a table is quicker than a search
        table = np.full(top + 1, -1, np.int32)
        occurring = known <= np.uint64(top)
        table[known[occurring].astype(np.int64)] = order[occurring]
        return np.asarray(table[found], np.int32)
    found = found.astype(np.uint64)
    place = np.minimum(np.searchsorted(known, found), len(known) - 1)
    return np.where(known[place] == found, order[place], -1).astype(np.int32)


def _one_group(positions: Ints) -> Groups:
    return np.zeros(len(positions), np.int32)


def _total(values: Floats) -> float:
    """Exactly rounded sum: the same bits for every order of the instances."""
    return math.fsum(values.tolist())
