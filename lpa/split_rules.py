"""Which fragments of a component belong together: one rule for compact bodies, one for thin sheets.

``NeckRule`` (mitochondria, nuclei, round vesicles): two bodies are apart if the way between them is narrow. This is the
watershed from h-maxima of the distance transform, with the neck ratio as a second condition.

``SheetRule`` (fusiform vesicles, cisternae): a thin sheet is nowhere wider than its contacts, so no neck gives it away.
What does is that two sheets cannot see each other through the gap between them::

      p1 ============== p2        p1-p2: the segment stays inside, along the sheet          belongs together
             gap   ##             p1-q1: the segment crosses the gap                        apart
      q1 ============== q2        through ## a few pairs do see each other, but across      counts little
                                  the sheet, along its normal

Fragments are merged by the average over all pairs of voxels within reach: each counts sin^2 of its angle to the local
normal if its segment stays inside, 0 if it leaves. Own method; the merging
is average linkage as in GASP (Bailoni et al. 2022).
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lpa.fragments import Forest, Fragments, deepest_first

VoxelSizeNm = tuple[float, float, float]
Sums = npt.NDArray[np.float64]
PairSums = tuple[npt.NDArray[np.int64], Sums, Sums]


class SplitRule(Protocol):
    """Decides which fragments stay together."""

    @property
    def min_volume_nm3(self) -> float:
        """A part smaller than this is never cut off."""
        ...

    def group(self, fragments: Fragments, voxel_size: VoxelSizeNm) -> Forest:
        """Return the fragments grouped into bodies."""
        ...


@dataclass(frozen=True)
class NeckRule:
    """Cut where the way between two bodies is narrow, both relatively and in nm."""

    max_neck_ratio: float  # cut if saddle / lower peak is at most this
    min_persistence_nm: float  # and the lower peak is at least this much deeper than the saddle
    min_volume_nm3: float = 0.0

    def group(self, fragments: Fragments, voxel_size: VoxelSizeNm) -> Forest:
        """Merge fragments from the widest contact to the narrowest, except across necks."""
        forest, peak = Forest(len(fragments.peak)), fragments.peak.tolist()
        contacts, saddles = fragments.contacts.tolist(), fragments.saddle.tolist()
        for index in deepest_first(fragments).tolist():
            a, b = (forest.find(node) for node in contacts[index])
            lower, saddle = min(peak[a], peak[b]), saddles[index]
            is_neck = saddle <= self.max_neck_ratio * lower and lower - saddle >= self.min_persistence_nm
            if a != b and not is_neck:
                peak[forest.union(a, b)] = max(peak[a], peak[b])
        return forest


@dataclass(frozen=True)
class SheetRule:
    """Keep together what sees each other along a sheet."""

    reach_nm: float  # longest segment that is looked along; a few times the thickness of a sheet
    normal_scale_nm: float  # standard deviation of the window in which the sheet's normal is estimated
    min_affinity: float  # 0 to 1: fragments with at least this average are merged
    min_volume_nm3: float = 0.0

    def group(self, fragments: Fragments, voxel_size: VoxelSizeNm) -> Forest:
        """Merge by average visibility, the best pair of groups first."""
        return merge_by_average(len(fragments.peak), *self.visibility(fragments, voxel_size), self.min_affinity)

    def visibility(self, fragments: Fragments, voxel_size: VoxelSizeNm) -> PairSums:
        """Sum the affinity of all pairs of voxels within reach, per pair of fragments.

        Returns:
            Pairs of fragments (m, 2); sum of affinities (m,); number of pairs of voxels (m,).
        """
        mask = fragments.basin > 0
        normal = sheet_normals(mask, voxel_size, self.normal_scale_nm)
        directions = [step for step in itertools.product((-1, 0, 1), repeat=3) if step > (0, 0, 0)]
        lengths = np.linalg.norm(np.array(directions) * voxel_size, axis=1)
        margin = max(1, *(int(self.reach_nm / length) for length in lengths))
        # number the voxels, in a box with a margin: steps are then plain offsets that never leave the array
        number = np.zeros(tuple(size + 2 * margin for size in mask.shape), np.int32)
        inner = tuple(slice(margin, -margin) for _ in range(3))
        number[inner][mask] = np.arange(1, len(normal) + 1, dtype=np.int32)
        number = number.reshape(-1)
        voxel = np.flatnonzero(number)
        owner = np.concatenate([[0], fragments.basin[mask]])  # by voxel number
        height, width = mask.shape[1] + 2 * margin, mask.shape[2] + 2 * margin
        strides = (height * width, width, 1)
        count = len(fragments.peak)
        total: PairSums = (np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
        for direction, length in zip(directions, lengths.tolist(), strict=True):
            along = np.array(direction) * voxel_size / length
            across = np.concatenate([[0.0], (normal @ along.astype(np.float32)) ** 2])
            offset = sum(step * stride for step, stride in zip(direction, strides, strict=True))
            visible = np.ones(len(voxel), bool)
            collected: list[PairSums] = [total]
            for step in range(1, int(self.reach_nm / length + 1e-9) + 1):
                target = number[voxel + step * offset]
                visible &= target > 0
                here, there = owner[1:], owner[target]
                chosen = np.flatnonzero((there > 0) & (there != here))
                low, high = np.minimum(here[chosen], there[chosen]), np.maximum(here[chosen], there[chosen])
                sine2 = 1 - np.maximum(across[1:][chosen], across[target[chosen]])
                key = (low.astype(np.int64) - 1) * count + high - 1
                collected.append(_sum_by_key(key, np.where(visible[chosen], sine2, 0.0), np.ones(len(key))))
            keys, sums, pairs = zip(*collected, strict=True)
            total = _sum_by_key(np.concatenate(keys), np.concatenate(sums), np.concatenate(pairs))
        return np.stack(np.divmod(total[0], max(count, 1)), axis=1), total[1], total[2]


def _sum_by_key(keys: npt.NDArray[np.int64], sums: Sums, pairs: Sums) -> PairSums:
    unique, index = np.unique(keys, return_inverse=True)
    summed = [np.bincount(index, column, len(unique)).astype(np.float64) for column in (sums, pairs)]
    return unique, summed[0], summed[1]


def sheet_normals(mask: npt.NDArray[np.bool_], voxel_size: VoxelSizeNm, scale_nm: float) -> npt.NDArray[np.float32]:
    """Return the unit normal ``(z, y, x)`` in physical space at every voxel of ``mask``, (n, 3).

    The direction in which the mask varies most: first eigenvector of the structure tensor (Bigün & Granlund 1987) of
    the slightly blurred mask, averaged over a Gaussian window of ``scale_nm``.
    """
    voxel = np.array(voxel_size)
    blurred = ndimage.gaussian_filter(mask.astype(np.float32), 0.7 * voxel.min() / voxel, mode="nearest")
    gradient = [ndimage.correlate1d(blurred, [-0.5, 0, 0.5], axis, mode="nearest") / voxel[axis] for axis in range(3)]
    tensor = np.zeros((int(mask.sum()), 3, 3), np.float32)
    for i, j in itertools.combinations_with_replacement(range(3), 2):
        product = (gradient[i] * gradient[j]).astype(np.float32) * np.float32(voxel.min() ** 2)
        smooth = ndimage.gaussian_filter(product, scale_nm / voxel, mode="nearest")[mask]
        tensor[:, i, j] = tensor[:, j, i] = smooth
    return np.asarray(np.linalg.eigh(tensor)[1][:, :, 2], np.float32)


def merge_by_average(
    count: int,
    pairs: npt.NDArray[np.int64],
    sums: npt.NDArray[np.float64],
    weights: npt.NDArray[np.float64],
    min_average: float,
) -> Forest:
    """Average-linkage merging: join the two groups with the highest ``sum / weight`` until none reaches the minimum.

    Args:
        count: number of nodes.
        pairs: (m, 2) nodes.
        sums: (m,) sum of affinities between the two.
        weights: (m,) number of affinities summed; groups add both.
        min_average: stop here.
    """
    forest = Forest(count)
    links: list[dict[int, tuple[float, float]]] = [{} for _ in range(count)]
    queue = []
    for (a, b), total, weight in zip(pairs.tolist(), sums.tolist(), weights.tolist(), strict=True):
        links[a][b] = links[b][a] = (total, weight)
        if total >= min_average * weight:
            queue.append((-total / weight, a, b))
    heapq.heapify(queue)
    while queue:
        priority, a, b = heapq.heappop(queue)
        current = links[a].get(b)
        if current is None or -current[0] / current[1] != priority:
            continue  # one of the two has grown since
        keep = forest.union(a, b)
        gone = b if keep == a else a
        del links[keep][gone]
        for other, (total, weight) in links[gone].items():
            if other == keep:
                continue
            del links[other][gone]
            known = links[keep].get(other, (0.0, 0.0))
            joined = (total + known[0], weight + known[1])
            links[keep][other] = links[other][keep] = joined
            if joined[0] >= min_average * joined[1]:
                heapq.heappush(queue, (-joined[0] / joined[1], min(keep, other), max(keep, other)))
        links[gone] = {}
    return forest


def connected_groups(forest: Forest, fragments: Fragments) -> Forest:
    """Break every group into pieces that hang together by voxel faces: an instance is one body."""
    names = forest.names()
    pieces = Forest(len(names))
    for a, b in fragments.contacts[names[fragments.contacts[:, 0]] == names[fragments.contacts[:, 1]]].tolist():
        one, other = pieces.find(a), pieces.find(b)
        if one != other:
            pieces.union(one, other)
    return pieces


def absorb_small(forest: Forest, fragments: Fragments, min_voxels: float) -> None:
    """Join every group below ``min_voxels`` to the neighbour that it has the widest contact with, smallest first."""
    names = forest.names()
    size = np.bincount(names, fragments.voxels, len(names))
    small = [(int(size[name]), int(name)) for name in np.unique(names) if size[name] < min_voxels]
    if not small:
        return
    touching: list[dict[int, float]] = [{} for _ in names]
    for (a, b), saddle in zip(names[fragments.contacts].tolist(), fragments.saddle.tolist(), strict=True):
        if a != b:
            touching[a][b] = touching[b][a] = max(saddle, touching[a].get(b, 0.0))
    heapq.heapify(small)
    while small:
        voxels, name = heapq.heappop(small)
        if forest.find(name) != name or voxels != size[name] or not touching[name]:
            continue
        best = max(sorted(touching[name]), key=lambda other: touching[name][other])
        keep = forest.union(name, best)
        gone = best if keep == name else name
        for other, saddle in touching[gone].items():
            del touching[other][gone]
            if other != keep:
                touching[keep][other] = touching[other][keep] = max(saddle, touching[keep].get(other, 0.0))
        touching[gone] = {}
        size[keep] += size[gone]
        if size[keep] < min_voxels:
            heapq.heappush(small, (int(size[keep]), keep))
