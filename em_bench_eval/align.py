"""Scale Alignment: bring an image and its labels to a common pixel size (paper, section 4.1: 8.0 nm).

The dataset keeps native resolution; this is a transform at load, at training, at inference and in the metric. Output
pixel ``i`` is the interval ``i`` to ``i + 1`` target pixels from the image's first edge, exactly in nm, whatever the
image's size. Images are averaged over that area when they shrink and interpolated linearly at its centre when they
grow; labels take the native pixel at its centre, so no new id can appear. Image and labels stay registered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from em_bench_eval.schema import TARGET_PIXEL_SIZE_NM

Steps = Sequence[float]  # (y, x): edge of an output pixel in input pixels


@dataclass(frozen=True)
class AlignedLabels:
    """A resampled label map, and what had to be done so that no instance is lost."""

    ids: npt.NDArray[np.generic]  # (y, x), dtype as before
    rescued: tuple[int, ...]  # ids that no pixel centre hit: each holds one pixel that would be another's
    lost: tuple[int, ...]  # ids for which there was no room


def aligned_shape(
    shape: tuple[int, int], pixel_size_nm: tuple[float, float], target_nm: float = TARGET_PIXEL_SIZE_NM
) -> tuple[int, int]:
    """Shape ``(y, x)`` after alignment: the extent in nm is kept to within half a target pixel, at least 1 pixel."""
    height, width = (max(1, round(size * nm / target_nm)) for size, nm in zip(shape, pixel_size_nm, strict=True))
    return height, width


def align_image(
    image: npt.NDArray[np.generic], pixel_size_nm: tuple[float, float], target_nm: float = TARGET_PIXEL_SIZE_NM
) -> npt.NDArray[np.float32]:
    """Resample ``(y, x)`` or ``(channel, y, x)`` to pixels of exactly ``target_nm``. Returns float32."""
    shape = aligned_shape((image.shape[-2], image.shape[-1]), pixel_size_nm, target_nm)
    return resize_image(image, shape, [target_nm / nm for nm in pixel_size_nm])


def align_mask(
    mask: npt.NDArray[np.generic], pixel_size_nm: tuple[float, float], target_nm: float = TARGET_PIXEL_SIZE_NM
) -> npt.NDArray[np.generic]:
    """Resample a ``(y, x)`` mask or class map to pixels of exactly ``target_nm`` by the nearest pixel centre."""
    shape = aligned_shape((mask.shape[0], mask.shape[1]), pixel_size_nm, target_nm)
    return resize_labels(mask, shape, [target_nm / nm for nm in pixel_size_nm])


def align_instances(
    ids: npt.NDArray[np.generic], pixel_size_nm: tuple[float, float], target_nm: float = TARGET_PIXEL_SIZE_NM
) -> AlignedLabels:
    """Resample a ``(y, x)`` map of instance ids to pixels of exactly ``target_nm``; no instance vanishes.

    An instance that no output pixel's centre hits gets one pixel back: of the output pixels that it reaches into, the
    one with most of it that is background, else the one with most of it whose instance has further pixels. In
    ascending order of id; what finds no such pixel is ``lost``.
    """
    steps = [target_nm / nm for nm in pixel_size_nm]
    shape = aligned_shape((ids.shape[0], ids.shape[1]), pixel_size_nm, target_nm)
    aligned = resize_labels(ids, shape, steps).copy()
    if ids.size == 0 or max(steps) <= 1.0:  # no pixel is skipped
        return AlignedLabels(aligned, (), ())
    left, areas = np.unique(aligned, return_counts=True)
    area_of = dict(zip(left.tolist(), areas.tolist(), strict=True))
    missing = np.setdiff1d(np.unique(ids), left)
    missing = missing[missing != 0]
    if not len(missing):
        return AlignedLabels(aligned, (), ())
    y, x = np.nonzero(np.isin(ids, missing))
    rows, columns = (
        np.minimum(((place + 0.5) / step).astype(np.intp), size - 1)
        for place, step, size in zip((y, x), steps, shape, strict=True)
    )
    keys = np.stack([ids[y, x].astype(np.int64), rows * shape[1] + columns])
    reached, counts = np.unique(keys, axis=1, return_counts=True)
    rescued, lost = [], []
    flat = aligned.reshape(-1)
    for id_ in missing.tolist():
        mine = reached[0] == id_
        places = reached[1, mine][np.argsort(-counts[mine], kind="stable")]
        holders = flat[places].tolist()
        free = [place for place, holder in zip(places, holders, strict=True) if holder == 0]
        shared = [place for place, holder in zip(places, holders, strict=True) if area_of.get(holder, 0) > 1]
        if not free and not shared:
            lost.append(id_)
            continue
        place = (free or shared)[0]
        area_of[int(flat[place])] -= 1
        flat[place] = id_
        area_of[id_] = 1
        rescued.append(id_)
    return AlignedLabels(aligned, tuple(rescued), tuple(lost))


def resize_image(
    image: npt.NDArray[np.generic], shape: tuple[int, int], steps: Steps | None = None
) -> npt.NDArray[np.float32]:
    """Resample ``(y, x)`` or ``(channel, y, x)`` to ``shape``: area average down, linear up. Returns float32.

    ``steps`` are the edges of an output pixel in input pixels; by default the output covers the input exactly.
    """
    resized = np.asarray(image)
    for axis, size, step in zip((-2, -1), shape, _steps(resized.shape[-2:], shape, steps), strict=True):
        if step > 1:
            resized = _area_average(resized, size, step, axis)
        elif step < 1:
            resized = _linear(resized, size, step, axis)
    return resized.astype(np.float32, copy=False)


def resize_labels(
    labels: npt.NDArray[np.generic], shape: tuple[int, int], steps: Steps | None = None
) -> npt.NDArray[np.generic]:
    """Resample a ``(y, x)`` label map or mask to ``shape`` by the nearest pixel centre; dtype is kept."""
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * step).astype(np.intp), old - 1)
        for new, old, step in zip(shape, labels.shape, _steps(labels.shape, shape, steps), strict=True)
    )
    return np.asarray(labels[np.ix_(rows, columns)])


def _steps(old: Sequence[int], new: Sequence[int], steps: Steps | None) -> Steps:
    return steps if steps is not None else [a / b for a, b in zip(old, new, strict=True)]


def _area_average(image: npt.NDArray[np.generic], size: int, step: float, axis: int) -> npt.NDArray[np.float32]:
    """Mean over each output pixel's exact interval: its whole pixels, and the parts of those at its two ends."""
    old = image.shape[axis]
    edges = np.minimum(np.arange(size + 1) * step, old)
    first = np.minimum(edges.astype(np.intp), old - 1)  # the pixel that an edge lies in
    share = _along(edges - first, image.ndim, axis).astype(np.float32)  # of that pixel, before the edge
    at_edges = image.take(first, axis).astype(np.float32) * share
    whole = np.add.reduceat(image, first[:-1], axis=axis, dtype=np.float32)
    if first[-1] < old:  # reduceat goes on to the end
        whole[_last(image.ndim, axis)] -= image[_from(image.ndim, axis, first[-1])].sum(axis, dtype=np.float32)
    total = whole - at_edges.take(range(size), axis) + at_edges.take(range(1, size + 1), axis)
    return np.asarray(total / _along(np.diff(edges), image.ndim, axis).astype(np.float32), np.float32)


def _linear(image: npt.NDArray[np.generic], size: int, step: float, axis: int) -> npt.NDArray[np.float32]:
    """Linear interpolation at pixel centres; the half pixel beyond the first and last centre repeats the border."""
    old = image.shape[axis]
    centres = np.clip((np.arange(size) + 0.5) * step - 0.5, 0, old - 1)
    below = np.minimum(centres.astype(np.intp), max(old - 2, 0))
    fraction = _along(centres - below, image.ndim, axis).astype(np.float32)
    low, high = (image.take(place, axis).astype(np.float32) for place in (below, np.minimum(below + 1, old - 1)))
    return np.asarray(low * (1 - fraction) + high * fraction)


def _along(values: npt.NDArray[np.float64], ndim: int, axis: int) -> npt.NDArray[np.float64]:
    shape = [1] * ndim
    shape[axis] = -1
    return values.reshape(shape)


def _last(ndim: int, axis: int) -> tuple[slice | int, ...]:
    place: list[slice | int] = [slice(None)] * ndim
    place[axis] = -1
    return tuple(place)


def _from(ndim: int, axis: int, start: int) -> tuple[slice, ...]:
    place = [slice(None)] * ndim
    place[axis] = slice(start, None)
    return tuple(place)
