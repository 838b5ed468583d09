"""One table row per instance: size, surface, shape, neck, neighbours.

Everything but the neck is a sum over voxels or over pairs of neighbouring voxels (``Sums``), so tables of blocks merge
by adding: ``measure`` itself adds slabs, and an out-of-core caller adds blocks (each with one voxel of halo).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from em_bench_eval.schema import Organelle
from lpa.extents import as_instances, extents, organelles_of, runs
from lpa.fragments import fragment, weakest_neck
from lpa.split import three_lengths

# half of the 26 neighbours: each pair of voxels is seen once
HALF_NEIGHBOURS = tuple(step for step in itertools.product((-1, 0, 1), repeat=3) if step > (0, 0, 0))
SLAB = 64  # slices added at a time; bounds memory, changes no result


@dataclass(frozen=True)
class Sums:
    """What adds up over blocks, one entry per id in ``ids`` (ascending)."""

    ids: npt.NDArray[Any]
    voxels: npt.NDArray[np.int64]
    moments: npt.NDArray[np.float64]  # (n, 9) sums of z, y, x, zz, yy, xx, zy, zx, yx in voxels
    crossings: npt.NDArray[np.int64]  # (n, 13) neighbour pairs with one end in the instance, by HALF_NEIGHBOURS
    faces: npt.NDArray[np.int64]  # (m, 3) id, other id, number of shared voxel faces; id < other id

    def __add__(self, other: Sums) -> Sums:
        """Sums of the union of two disjoint blocks."""
        ids = np.union1d(self.ids, other.ids)
        where = [np.searchsorted(ids, part.ids) for part in (self, other)]

        def added(name: str) -> npt.NDArray[Any]:
            parts = [getattr(part, name) for part in (self, other)]
            total = np.zeros((len(ids), *parts[0].shape[1:]), parts[0].dtype)
            for rows, part in zip(where, parts, strict=True):
                total[rows] += part
            return total

        faces = _added_faces(np.concatenate([self.faces, other.faces]))
        return Sums(ids, added("voxels"), added("moments"), added("crossings"), faces)


def sums(block: npt.NDArray[Any], core: tuple[slice, slice, slice], origin: tuple[int, int, int]) -> Sums:
    """Add up one block.

    Args:
        block: C-contiguous ``(z, y, x)`` ids: the core and one voxel of halo on every side (0 beyond the volume).
        core: the part of ``block`` that this block accounts for.
        origin: position of the core's first voxel in the volume.
    """
    inner = np.ascontiguousarray(block[core])
    found = runs(inner)
    ids, row = np.unique(found.value, return_inverse=True)
    count = len(ids)
    z, y, x = (part.astype(np.float64) + start for part, start in zip((found.z, found.y, found.x), origin, strict=True))
    n = found.length.astype(np.float64)
    # sums of x and x^2 over the run x, x + 1, ..., x + n - 1
    first = n * x + n * (n - 1) / 2
    second = n * x**2 + x * n * (n - 1) + (n - 1) * n * (2 * n - 1) / 6
    columns = (n * z, n * y, first, n * z * z, n * y * y, second, n * z * y, z * first, y * first)
    moments = np.stack([np.bincount(row, column, count) for column in columns], axis=1).astype(np.float64)
    voxels = np.bincount(row, found.length, count).astype(np.int64)
    crossings = np.zeros((count, len(HALF_NEIGHBOURS)), np.int64)
    faces = []
    for index, step in enumerate(HALF_NEIGHBOURS):
        for sign in (1, -1):  # a pair that leaves the core is counted by each of the two blocks, for its own end
            other = block[tuple(slice(s.start + sign * d, s.stop + sign * d) for s, d in zip(core, step, strict=True))]
            leaving = (inner != other) & (inner != 0)
            own, neighbour = inner[leaving], other[leaving]
            crossings[:, index] += np.bincount(np.searchsorted(ids, own), minlength=count)
            if sum(map(abs, step)) == 1 and sign == 1:
                touching = neighbour != 0
                faces.append(np.stack([own[touching], neighbour[touching]], axis=1).astype(np.int64))
    pairs = np.sort(np.concatenate(faces), axis=1)
    return Sums(ids, voxels, moments, crossings, _added_faces(np.column_stack([pairs, np.ones(len(pairs), np.int64)])))


def measure(
    instances: npt.ArrayLike, organelle_of: Mapping[int, Organelle | str], voxel_size: Iterable[float]
) -> dict[str, Any]:
    """Measure every instance.

    Args:
        instances: ``(z, y, x)`` integers below 2**63, 0 = background.
        organelle_of: organelle of every id.
        voxel_size: ``(z, y, x)`` in nm.

    Returns:
        Columns, one entry per instance in ascending order of id:

        ==================  ==========================================================================================
        ``id``              as in the volume
        ``organelle``       str
        ``voxels``          number
        ``volume_nm3``      voxels times the voxel's volume
        ``surface_nm2``     Cauchy-Crofton estimate over 13 directions (Lehmann & Legland 2012), which, unlike counting
                            voxel faces, does not depend on orientation; where an instance is cut by the border of the
                            volume, the cut counts as surface
        ``bbox``            (n, 6) z0, y0, x0, z1, y1, x1, half-open, voxels
        ``centroid_nm``     (n, 3) z, y, x; centre of the first voxel is half a voxel from 0
        ``axes_nm``         (n, 3) full axes of the ellipsoid with the same second moments, longest first
        ``sphericity``      surface of the ball of the same volume / surface; 1 for a ball. The estimate of the surface
                            can exceed 1 by some percent on instances of few voxels
        ``elongation``      longest axis / middle axis, at least 1
        ``flatness``        middle axis / shortest axis, at least 1 (discs are flat, tubes are elongated)
        ``touches_border``  a voxel lies in the first or last slice, row or column
        ``neck_ratio``      most persistent neck / width of the thinner side, 1 = none (``lpa.fragments``)
        ``neighbours``      tuple of the ids that share a voxel face with it, ascending
        ==================  ==========================================================================================

    Raises:
        InputError: not an integer volume, ids without organelle.
    """
    volume = as_instances(instances)
    voxel_nm = three_lengths(voxel_size)
    found = extents(volume)
    organelles = organelles_of(found.ids, organelle_of)
    total = _whole(volume)
    voxel_nm3 = float(np.prod(voxel_nm))
    volume_nm3 = total.voxels * voxel_nm3
    surface_nm2 = total.crossings @ surface_weights(voxel_nm)
    axes_nm = _axes(total, voxel_nm)
    centroid = (total.moments[:, :3] / total.voxels[:, np.newaxis] + 0.5) * voxel_nm
    border = (found.start == 0).any(axis=1) | (found.stop == volume.shape).any(axis=1)
    return {
        "id": found.ids,
        "organelle": np.array([str(organelle) for organelle in organelles], dtype=np.str_),
        "voxels": total.voxels,
        "volume_nm3": volume_nm3,
        "surface_nm2": surface_nm2,
        "bbox": np.concatenate([found.start, found.stop], axis=1),
        "centroid_nm": centroid,
        "axes_nm": axes_nm,
        "sphericity": np.cbrt(np.pi) * np.cbrt(6 * volume_nm3) ** 2 / surface_nm2,
        "elongation": axes_nm[:, 0] / axes_nm[:, 1],
        "flatness": axes_nm[:, 1] / axes_nm[:, 2],
        "touches_border": border,
        "neck_ratio": _neck_ratios(volume, voxel_nm),
        "neighbours": _neighbours(total),
    }


def surface_weights(voxel_nm: tuple[float, float, float]) -> npt.NDArray[np.float64]:
    """Return the surface in nm^2 that one crossing stands for, by direction (13,).

    A set of parallel lines, one per voxel, has 1 / area lines per nm^2 with area = voxel volume / step length; the mean
    over all directions of crossings * area is half the surface (Cauchy-Crofton). Each direction stands for the share of
    the sphere that is nearer to it than to the others, found on 20000 evenly spread points.
    """
    steps = np.array(HALF_NEIGHBOURS) * np.array(voxel_nm)
    lengths = np.linalg.norm(steps, axis=1)
    point = np.arange(20000) + 0.5
    height, angle = 1 - 2 * point / len(point), np.pi * (1 + np.sqrt(5)) * point
    radius = np.sqrt(1 - height**2)
    sphere = np.stack([height, radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    nearest = np.abs(sphere @ (steps / lengths[:, np.newaxis]).T).argmax(axis=1)
    share = np.bincount(nearest, minlength=len(steps)) / len(point)
    return np.asarray(2 * share * np.prod(voxel_nm) / lengths, np.float64)


def _whole(volume: npt.NDArray[Any]) -> Sums:
    """Sums over slabs of slices: one pass, memory bounded by a slab."""
    none = np.zeros(0, np.int64)
    empty = np.zeros((0, 3), np.int64)
    total = Sums(none.astype(volume.dtype), none, np.zeros((0, 9)), np.zeros((0, 13), np.int64), empty)
    depth, height, width = volume.shape
    for z in range(0, depth, SLAB):
        high = min(z + SLAB, depth)
        block = np.zeros((high - z + 2, height + 2, width + 2), volume.dtype)
        low, above = max(z - 1, 0), min(high + 1, depth)
        block[low - z + 1 : above - z + 1, 1:-1, 1:-1] = volume[low:above]
        core = (slice(1, high - z + 1), slice(1, height + 1), slice(1, width + 1))
        total = total + sums(block, core, (z, 0, 0))
    return total


def _added_faces(faces: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    pairs, index = np.unique(faces[:, :2], axis=0, return_inverse=True)
    return np.column_stack([pairs, np.bincount(index.reshape(-1), faces[:, 2], len(pairs)).astype(np.int64)])


def _axes(total: Sums, voxel_nm: tuple[float, float, float]) -> npt.NDArray[np.float64]:
    """Full lengths of the principal axes; a voxel is a box, not a point, so no axis is ever zero."""
    n = total.voxels[:, np.newaxis].astype(np.float64)
    mean, square = total.moments[:, :3] / n, total.moments[:, 3:] / n
    size = np.array(voxel_nm)
    covariance = np.zeros((len(n), 3, 3))
    for axis in range(3):
        covariance[:, axis, axis] = (square[:, axis] - mean[:, axis] ** 2 + 1 / 12) * size[axis] ** 2
    for column, (i, j) in enumerate(((0, 1), (0, 2), (1, 2)), start=3):
        mixed = (square[:, column] - mean[:, i] * mean[:, j]) * size[i] * size[j]
        covariance[:, i, j] = covariance[:, j, i] = mixed
    variances = np.linalg.eigvalsh(covariance)[:, ::-1]
    return np.asarray(2 * np.sqrt(5 * np.maximum(variances, 0)), np.float64)  # a solid ellipsoid: semi-axis^2 / 5


def _neck_ratios(volume: npt.NDArray[Any], voxel_nm: tuple[float, float, float]) -> npt.NDArray[np.float64]:
    found = extents(volume)
    ratios = np.ones(len(found.ids))
    few = len(ratios) < 100
    for index in tqdm(range(len(ratios)), desc="measure", unit="instance", disable=True if few else None):
        mask = volume[found.box(index, volume.shape, margin=1)] == found.ids[index]
        ratios[index] = weakest_neck(fragment(mask, voxel_nm)).ratio
    return ratios


def _neighbours(total: Sums) -> list[tuple[int, ...]]:
    touching: dict[int, set[int]] = {int(value): set() for value in total.ids}
    for a, b, _ in total.faces.tolist():
        touching[a].add(b)
        touching[b].add(a)
    return [tuple(sorted(touching[int(value)])) for value in total.ids]
