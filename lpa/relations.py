"""How instances lie to each other and how convex they are: the measurements that triage adds to ``lpa.measure``.

Distances are nm between voxel centres, areas nm^2. Everything is done in bounding boxes, so memory beyond the volume is
bounded by the largest instance.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial import ConvexHull, QhullError, cKDTree

# mean of |nx| + |ny| + |nz| over all directions: how much a staircase of voxel faces overstates a surface
STAIRCASE = 1.5


@dataclass(frozen=True)
class Contacts:
    """Pairs of instances that share voxel faces."""

    pair: npt.NDArray[np.int64]  # (m, 2) ids, ascending in each row and by row
    area_nm2: npt.NDArray[np.float64]  # (m,) shared faces, corrected for the staircase
    centre: npt.NDArray[np.float64]  # (m, 3) mean position of the shared faces, (z, y, x) voxels


@dataclass(frozen=True)
class Gap:
    """The nearest instance beyond a gap, seen from a fragment."""

    neighbour: int
    distance_nm: float  # between the closest voxel centres
    alignment: (
        float  # 0..1: worst of (axis, way to the neighbour) and (axis, the neighbour's axis there); 1 = collinear
    )
    middle: tuple[float, float, float]  # between the closest voxels, (z, y, x) voxels


def contacts(volume: npt.NDArray[Any], voxel_nm: tuple[float, float, float]) -> Contacts:
    """Find all pairs of ids of a ``(z, y, x)`` volume that share voxel faces, in one pass."""
    pairs: list[npt.NDArray[np.int64]] = [np.zeros((0, 2), np.int64)]
    areas: list[npt.NDArray[np.float64]] = [np.zeros(0)]
    positions: list[npt.NDArray[np.float64]] = [np.zeros((0, 3))]
    for axis in range(3):
        lower = tuple(slice(None, -1) if k == axis else slice(None) for k in range(3))
        upper = tuple(slice(1, None) if k == axis else slice(None) for k in range(3))
        touching = (volume[lower] != volume[upper]) & (volume[lower] != 0) & (volume[upper] != 0)
        where = np.argwhere(touching).astype(np.float64)
        ids = np.stack([volume[lower][touching], volume[upper][touching]], axis=1).astype(np.int64)
        pairs.append(np.sort(ids, axis=1))
        areas.append(np.full(len(where), float(np.prod(voxel_nm)) / voxel_nm[axis]))
        where[:, axis] += 0.5
        positions.append(where)
    unique, index = np.unique(np.concatenate(pairs), axis=0, return_inverse=True)
    index, count = index.reshape(-1), len(unique)
    faces = np.maximum(np.bincount(index, minlength=count), 1)
    position = np.concatenate(positions)
    centre = np.stack([np.bincount(index, position[:, k], count) for k in range(3)], axis=1) / faces[:, np.newaxis]
    return Contacts(unique, np.bincount(index, np.concatenate(areas), count) / STAIRCASE, centre)


def nearest_across_gap(
    volume: npt.NDArray[Any],
    box: tuple[slice, slice, slice],
    id_: int,
    is_candidate: Callable[[int], bool],
    reach_nm: float,
    voxel_nm: tuple[float, float, float],
) -> Gap | None:
    """Find the nearest candidate within ``reach_nm`` of an instance, and how well the two line up.

    ``box`` is the bounding box of the instance. The neighbour's axis is that of its part within twice the instance's
    own length of the closest voxel. Returns ``None`` if nothing is in reach.
    """
    reach = [int(np.ceil(reach_nm / edge)) for edge in voxel_nm]
    wide = _widened(box, reach, volume.shape)
    part = volume[wide]
    mask = part == id_
    others = [other for other in np.unique(part).tolist() if other not in (0, id_) and is_candidate(other)]
    if not others:
        return None
    own_shell, other_shell = np.argwhere(_shell(mask)), np.argwhere(_shell(np.isin(part, others)))
    distances, nearest = cKDTree(own_shell * voxel_nm).query(other_shell * voxel_nm, distance_upper_bound=reach_nm)
    closest = int(np.argmin(distances))
    if not np.isfinite(distances[closest]):
        return None
    there, here = other_shell[closest], own_shell[nearest[closest]]
    start = np.array([s.start for s in wide], np.float64)
    neighbour = int(part[tuple(there)])
    points = np.argwhere(mask) * voxel_nm
    length, axis = _longest_axis(points)
    # towards all that is as near as the nearest: alongside, many voxels are, and any one of them could mislead
    facing = (distances <= distances[closest] + max(voxel_nm)) & (part[tuple(other_shell.T)] == neighbour)
    way = other_shell[facing].mean(axis=0) * voxel_nm - points.mean(axis=0)
    way /= max(float(np.linalg.norm(way)), 1e-9)

    centre = start + there
    around = [int(np.ceil(2 * length / edge)) for edge in voxel_nm]
    ball = _widened(tuple(slice(int(c), int(c) + 1) for c in centre), around, volume.shape)  # type: ignore[arg-type]
    neighbour_points = (np.argwhere(volume[ball] == neighbour) + [s.start for s in ball] - centre) * voxel_nm
    neighbour_points = neighbour_points[np.linalg.norm(neighbour_points, axis=1) <= 2 * length]
    _, neighbour_axis = _longest_axis(neighbour_points)
    alignment = min(abs(float(axis @ way)), abs(float(axis @ neighbour_axis)))
    z, y, x = (start + (here + there) / 2).tolist()
    return Gap(neighbour, float(distances[closest]), alignment, (z, y, x))


def solidity(mask: npt.NDArray[np.bool_], voxel_nm: tuple[float, float, float]) -> float:
    """Volume of ``mask`` ``(z, y, x)`` / volume of its convex hull, voxels taken as boxes; 1 = convex."""
    z, y = np.nonzero(mask.any(axis=2))
    rows = mask[z, y]
    first = rows.argmax(axis=1)
    last = mask.shape[2] - 1 - rows[:, ::-1].argmax(axis=1)
    ends = np.concatenate([np.stack([z, y, first], 1), np.stack([z, y, last], 1)]).astype(np.float64)
    with contextlib.suppress(QhullError):  # a single slice, row or voxel: all its ends take part
        ends = ends[ConvexHull(ends).vertices]  # hull of boxes = hull of the corners of the boxes on the hull
    corners = (np.indices((2, 2, 2)).reshape(3, -1).T - 0.5)[np.newaxis]
    hull = ConvexHull(((ends[:, np.newaxis] + corners) * voxel_nm).reshape(-1, 3))
    return float(mask.sum() * np.prod(voxel_nm) / hull.volume)


def inner_voxel(mask: npt.NDArray[np.bool_], target: npt.NDArray[np.float64]) -> tuple[int, int, int]:
    """Return the voxel of ``mask`` that is nearest to ``target``, ``(z, y, x)`` voxels."""
    points = np.argwhere(mask)
    z, y, x = points[int(np.argmin(((points - target) ** 2).sum(axis=1)))].tolist()
    return z, y, x


def _longest_axis(points: npt.NDArray[Any]) -> tuple[float, npt.NDArray[np.float64]]:
    """Full length (that of an ellipsoid of the same moments) and direction of the longest axis of points in nm."""
    if len(points) < 2:
        return 1.0, np.array([1.0, 0.0, 0.0])
    variances, axes = np.linalg.eigh(np.cov(points.T))
    return max(2 * float(np.sqrt(5 * max(variances[-1], 0.0))), 1.0), axes[:, -1]


def _shell(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Voxels with a face neighbour outside the mask, or at the border of the array."""
    core = np.zeros(mask.shape, bool)
    inner = (slice(1, -1),) * 3
    core[inner] = mask[inner]
    for axis in range(3):
        for shift in (slice(None, -2), slice(2, None)):
            core[inner] &= mask[tuple(shift if k == axis else slice(1, -1) for k in range(3))]
    return np.asarray(mask & ~core, np.bool_)


def _widened(box: tuple[slice, slice, slice], by: list[int], shape: tuple[int, ...]) -> tuple[slice, slice, slice]:
    z, y, x = (
        slice(max(0, s.start - margin), min(size, s.stop + margin))
        for s, margin, size in zip(box, by, shape, strict=True)
    )
    return z, y, x
