"""Folds of volumes that share coordinates: cut at common z positions, so that no place is in two folds.

Crops of one imaged data set touch, overlap and lie in one another. Cut one by one along their own slices, a test slab
of one could be a training slab of another. Here every volume of a frame is cut where the others are: below one z
position is training, above it and a gap validation, above the next and a gap test. A crop may lie in one fold as a
whole; slices that lie in a gap, or only partly in a range, are in none.

The positions are chosen so that the covered depth, in nm and summed over all volumes, is divided in the wanted shares:
the largest deviation of a share is smallest, and of divisions that are equal to a tenth of a percent the gaps take the
least. A position is the end of a slice of some volume, hence a gap where nothing was drawn costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from em_bench_eval.schema import Fold, PublishedBox, Span, Volume

FACE = 1e-6  # of a slice: faces that are nearer to each other are one
ROUNDED = 1e-6  # of the gap: sizes in metadata may be rounded by this much
ALIKE = 3  # decimals to which shares are equal, and depths in nm
PAIRS = 2**18  # of positions that are compared
Places = npt.NDArray[np.float64] | float  # z in nm


class Range(NamedTuple):
    """A range of z in a frame, in nm, that is in one fold; its ends may be infinite."""

    fold: Fold
    low_nm: float
    high_nm: float

    def as_json(self) -> list[object]:
        """Return ``[fold, low, high]``; an infinite end is ``None``."""
        return [self.fold, *(nm if math.isfinite(nm) else None for nm in self[1:])]


def slices_within(span: Span, low_nm: Places, high_nm: Places) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the first slice and the one after the last of those that lie in a range as a whole."""
    first = np.ceil((np.asarray(low_nm) - span.start_nm) / span.slice_nm - FACE).clip(0, span.slices)
    stop = np.floor((np.asarray(high_nm) - span.start_nm) / span.slice_nm + FACE).clip(0, span.slices)
    return first.astype(np.intp), np.maximum(first, stop).astype(np.intp)


@lru_cache(maxsize=256)
def cut(
    spans: tuple[Span, ...], shares: tuple[tuple[Fold, float], ...], gap_nm: float, fewest: int
) -> tuple[Range, ...]:
    """Return the ranges of two or three folds, upwards.

    Where the volumes are not deep enough for ``fewest`` slices of the first fold (as thick as the thinnest there are),
    the gaps, and something of each other fold, all of them are in the first.
    """
    spans = tuple(sorted(spans))
    folds = [fold for fold, _ in shares]
    wanted = np.array([share for _, share in shares]) / sum(share for _, share in shares)
    faces = [span.start_nm + span.slice_nm * np.arange(1, span.slices + 1) for span in spans]
    ends = np.unique(np.concatenate(faces))  # where a fold may end
    below, above = _depth(spans, -math.inf, ends), _depth(spans, ends + gap_nm, math.inf)
    if len(shares) == 2:
        cuts = np.arange(len(ends))[None]
        depths = np.stack([below, above])
    else:
        cuts = _two_cuts(below, above, _depth(spans, -math.inf, math.inf), wanted)
        low, high = cuts
        depths = np.stack([below[low], _depth(spans, ends[low] + gap_nm, ends[high]), above[high]])
    thinnest = min(span.slice_nm for span in spans)
    possible = (depths > 0).all(axis=0) & (depths[0] > (fewest - 0.5) * thinnest)
    if not possible.any():
        return (Range(folds[0], -math.inf, math.inf),)
    cuts, depths = cuts[:, possible], depths[:, possible]
    kept = depths.sum(axis=0)
    error = np.abs(depths / kept - wanted[:, None]).max(axis=0)
    best = np.lexsort([*cuts[::-1], error.round(9), -kept.round(ALIKE), error.round(ALIKE)])[0]
    positions = [float(ends[place]) for place in cuts[:, best]]
    lows, highs = [-math.inf, *(nm + gap_nm for nm in positions)], [*positions, math.inf]
    return tuple(map(Range, folds, lows, highs))


def _two_cuts(
    below: npt.NDArray[np.float64], above: npt.NDArray[np.float64], total: Any, wanted: npt.NDArray[np.float64]
) -> npt.NDArray[np.intp]:
    """Pair each first cut with the second cuts that divide best what it leaves; ``(2, pairs)``.

    With a first cut i and a second cut j, validation is ``below[j] - passed[i]`` and test ``total - passed[j]`` deep:
    their ratio is as wanted where an ascending function of j has a value that depends on i. Of up to 512 positions all
    pairs are returned, of more those about this j: the nearer, the more there are.
    """
    passed, number = total - above, np.arange(len(below))
    _, second, third = wanted
    after = np.searchsorted(third * below + second * passed, second * total + third * passed)
    near = min(len(below), max(1, PAIRS // (2 * len(below)))) if len(below) ** 2 > PAIRS else len(below)
    steps = np.arange(-near, near)[:, None]
    pairs = np.stack(np.broadcast_arrays(number, after + steps)).reshape(2, -1)
    return pairs[:, (pairs[1] > pairs[0]) & (pairs[1] < len(below))]


def _depth(spans: Sequence[Span], low_nm: Places, high_nm: Places) -> npt.NDArray[np.float64]:
    """Return the depth of all whole slices in each range, nm."""
    depth = np.zeros(np.broadcast_shapes(np.shape(low_nm), np.shape(high_nm)))
    for span in spans:
        first, stop = slices_within(span, low_nm, high_nm)
        depth += (stop - first) * span.slice_nm
    return depth


def near_slices(volume: Volume, box: PublishedBox, gap_nm: float) -> tuple[int, int]:
    """Return the slices ``(start, stop)`` of a volume that overlap a box or are nearer to it than the gap."""
    assert volume.origin_nm is not None
    assert volume.span is not None
    voxel_nm, low = np.array(tuple(volume.voxel_size)), np.array(volume.origin_nm, float)
    high = low + voxel_nm * np.array(volume.image.shape)
    sideways = np.maximum(np.array(box.low_nm) - high, low - np.array(box.high_nm))[1:]  # y, x; below 0: they overlap
    gap_nm *= 1 - ROUNDED
    away_nm = math.hypot(*sideways.clip(0))
    if away_nm >= gap_nm and (sideways > -FACE * voxel_nm[1:]).any():
        return 0, 0
    reach_nm = math.sqrt(max(gap_nm**2 - away_nm**2, 0.0))
    _, start = slices_within(volume.span, -math.inf, box.low_nm[0] - reach_nm)
    stop, _ = slices_within(volume.span, box.high_nm[0] + reach_nm, math.inf)
    return int(start), int(stop)
