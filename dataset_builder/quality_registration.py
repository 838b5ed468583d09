"""How far two slices, or labels and their image, are shifted against each other.

Slices: phase correlation (Kuglin and Hines 1975), confirmed by the normalised correlation of what then overlaps.
Labels: the image's gradient under the label boundaries, for every shift within a few pixels. Labels that are drawn a
little too large or too small agree as well with a shift to one side as to the other, so only an agreement that is
better than that of the opposite shift counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

RADIUS = 8  # pixels: shifts that are tried, along both axes of a plane
MIRROR_OFFSET = 3  # pixels
LEAST_WINDOWS, LEAST_BOUNDARY = 4, 40  # windows; pixels in one
LEAST_ERROR = 0.002  # of a mean agreement: windows that overlap agree with each other better than independent ones

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SliceShift:
    """How a slice must be moved to match the one before it."""

    shift: tuple[float, float]  # (y, x) pixels
    correlation: float  # of the two when so moved
    gain: float  # over not moving


def slice_shift(before: npt.NDArray[Any], after: npt.NDArray[Any]) -> SliceShift:
    """Register two ``(y, x)`` slices of one shape."""
    one, other = (_filtered(image) for image in (before, after))
    window = np.outer(np.hanning(one.shape[0] + 2)[1:-1], np.hanning(one.shape[1] + 2)[1:-1])
    product = np.fft.rfft2(one * window) * np.conj(np.fft.rfft2(other * window))
    frequency = np.hypot(np.fft.fftfreq(one.shape[0])[:, np.newaxis], np.fft.rfftfreq(one.shape[1]))
    # what is finer than about 5 pixels is noise, which has no shift
    surface = np.fft.irfft2(product / (np.abs(product) + 1e-9) * np.exp(-((frequency / 0.2) ** 2)), one.shape)
    limit = [max(1, size // 4) for size in one.shape]
    allowed = np.abs(np.fft.fftfreq(one.shape[0], 1 / one.shape[0]))[:, np.newaxis] <= limit[0]
    allowed = allowed & (np.abs(np.fft.fftfreq(one.shape[1], 1 / one.shape[1])) <= limit[1])
    peak = np.unravel_index(int(np.argmax(np.where(allowed, surface, -np.inf))), surface.shape)
    shift = []
    for axis, place in enumerate(peak):
        size = surface.shape[axis]
        around = []
        for step in (-1, 0, 1):
            index = list(peak)
            index[axis] = (place + step) % size
            around.append(surface[tuple(index)])
        at = int(place) + _vertex(around)
        shift.append(float(at - size if at > size / 2 else at))
    still, moved = (_correlation(one, other, [round(s) for s in by]) for by in ((0.0, 0.0), shift))
    return SliceShift((shift[0], shift[1]), moved, moved - still)


def _filtered(image: npt.NDArray[Any]) -> Floats:
    smooth = ndimage.gaussian_filter(np.asarray(image, np.float64), 1.0)
    return np.asarray(smooth - smooth.mean(), np.float64)


def _vertex(around: Sequence[Any]) -> float:
    """Place of the top of a parabola through three values at -1, 0, 1."""
    left, middle, right = (float(value) for value in around)
    bend = left - 2 * middle + right
    return 0.0 if bend >= 0 else max(-0.5, min(0.5, 0.5 * (left - right) / bend))


def _correlation(one: Floats, other: Floats, shift: Sequence[int]) -> float:
    """Normalised correlation of ``one`` with ``other`` moved by ``shift``, where they overlap."""
    here = tuple(slice(max(0, s), size + min(0, s)) for s, size in zip(shift, one.shape, strict=True))
    there = tuple(slice(max(0, -s), size + min(0, -s)) for s, size in zip(shift, one.shape, strict=True))
    a, b = one[here] - one[here].mean(), other[there] - other[there].mean()
    length = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / length if length > 0 else 0.0


def agreement(image: npt.NDArray[Any], labels: npt.NDArray[Any]) -> Floats | None:
    """Gradient of the image under the label boundaries, for every shift of the labels.

    Args:
        image: a window of a plane of the volume, ``(row, column)``.
        labels: instance ids there.

    Returns:
        ``(2 RADIUS + 1, 2 RADIUS + 1)``, the mean relative gradient for every shift (row, column); ``None``: too little
        boundary, or a flat image.
    """
    inside = (slice(RADIUS, -RADIUS), slice(RADIUS, -RADIUS))
    edge = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        first, last = ((slice(None),) * axis + (part,) for part in (slice(None, -1), slice(1, None)))
        differs = labels[first] != labels[last]
        edge[first] |= differs
        edge[last] |= differs
    rows, columns = np.nonzero(edge[inside])  # from the corner of the window: a shift of -RADIUS
    if len(rows) < LEAST_BOUNDARY:
        return None
    gradient = ndimage.gaussian_gradient_magnitude(image.astype(np.float64), 1.5)
    scale = float(gradient.mean())
    if scale < 1e-3:
        return None
    gradient = np.minimum(gradient, np.quantile(gradient, 0.99)) / scale
    steps = range(2 * RADIUS + 1)
    return np.array([[gradient[rows + dy, columns + dx].mean() for dx in steps] for dy in steps])


@dataclass(frozen=True)
class LabelShift:
    """How the labels of a volume must be moved to agree best with the edges of its image."""

    shift: tuple[float, float]  # (row, column) of the planes: (y, x) or (z, x) voxels
    score: float  # standard errors by which that beats both no shift and the opposite one
    windows: int

    @property
    def length(self) -> float:
        """Voxels."""
        return float(np.hypot(*self.shift))


def label_shift(windows: Sequence[Floats | None]) -> LabelShift | None:
    """Judge the agreement of several windows together; ``None``: too few to tell.

    The shift is the centre of gravity of the best twentieth of all shifts, in which the ridges of both sides of labels
    that are drawn too large balance each other.
    """
    surfaces = [surface for surface in windows if surface is not None]
    if len(surfaces) < LEAST_WINDOWS:
        return None
    stack = np.stack(surfaces)
    mean = stack.mean(axis=0)
    row, column = (int(place) for place in np.unravel_index(int(np.argmax(mean)), mean.shape))
    scores = []
    for rival in ((RADIUS, RADIUS), (2 * RADIUS - row, 2 * RADIUS - column)):
        difference = stack[:, row, column] - stack[:, rival[0], rival[1]]
        spread = float(difference.std(ddof=1)) / math.sqrt(len(difference))
        scores.append(0.0 if rival == (row, column) else float(difference.mean()) / max(spread, 1e-9))
    weight = np.maximum(mean - np.quantile(mean, 0.95), 0)
    weight /= max(float(weight.sum()), 1e-12)
    rows, columns = np.indices(weight.shape)
    shift = (float((weight * rows).sum() - RADIUS), float((weight * columns).sum() - RADIUS))
    return LabelShift(shift, min(scores), len(stack))


def mirror_score(direct: Sequence[Floats | None], mirrored: Sequence[Floats | None]) -> float:
    """Standard errors by which mirrored labels agree better than the labels as they are, each at its best shift.

    Both lists hold the windows of the same instances; ``None`` where there was too little to see.
    """
    pairs = [(a, b) for a, b in zip(direct, mirrored, strict=True) if a is not None and b is not None]
    if len(pairs) < LEAST_WINDOWS:
        return 0.0
    one, _ = _at_common_best(np.stack([a for a, _ in pairs]))
    other, offset = _at_common_best(np.stack([b for _, b in pairs]))
    if offset > MIRROR_OFFSET:
        return 0.0  # labels that are mirrored, and nothing else, need no shift
    difference = other - one
    spread = float(difference.std(ddof=1)) / math.sqrt(len(pairs))
    return float(difference.mean()) / max(spread, LEAST_ERROR)


def _at_common_best(planes: Floats) -> tuple[Floats, int]:
    """Agreement of every window at the shift that is best for all together, and how far that shift is."""
    mean = planes.mean(axis=0)
    row, column = (int(place) for place in np.unravel_index(int(np.argmax(mean)), mean.shape))
    return np.asarray(planes[:, row, column], np.float64), max(abs(row - RADIUS), abs(column - RADIUS))
