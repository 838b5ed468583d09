"""Scale Alignment: bring an image and its labels to a common pixel size (paper, section 4.1: 8.0 nm).

The dataset keeps native resolution; this is a transform at load, at training and at inference. Images are averaged
over area when they shrink and interpolated linearly when they grow; labels take the nearest pixel, so no new id can
appear. Both use pixel centres at ``(index + 0.5) * pixel size``, which keeps image and labels registered.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from em_bench_eval.schema import TARGET_PIXEL_SIZE_NM


def aligned_shape(
    shape: tuple[int, int], pixel_size_nm: tuple[float, float], target_nm: float = TARGET_PIXEL_SIZE_NM
) -> tuple[int, int]:
    """Shape ``(y, x)`` after alignment: the extent in nm is kept to within half a target pixel, at least 1 pixel."""
    height, width = (max(1, round(size * nm / target_nm)) for size, nm in zip(shape, pixel_size_nm, strict=True))
    return height, width


def resize_image(image: npt.NDArray[np.generic], shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Resample ``(y, x)`` or ``(channel, y, x)`` to ``shape``: area average down, linear up. Returns float32."""
    resized = np.asarray(image, dtype=np.float32)
    for axis, size in zip((-2, -1), shape, strict=True):
        if size < resized.shape[axis]:
            resized = _area_average(resized, size, axis)
        elif size > resized.shape[axis]:
            resized = _linear(resized, size, axis)
    return resized


def resize_labels(labels: npt.NDArray[np.generic], shape: tuple[int, int]) -> npt.NDArray[np.generic]:
    """Resample a ``(y, x)`` label map or mask to ``shape`` by the nearest pixel centre; dtype is kept."""
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(np.intp), old - 1)
        for new, old in zip(shape, labels.shape, strict=True)
    )
    return np.asarray(labels[np.ix_(rows, columns)])


def _area_average(image: npt.NDArray[np.float32], size: int, axis: int) -> npt.NDArray[np.float32]:
    """Mean over each output pixel's exact interval, by differences of the interpolated running sum."""
    old = image.shape[axis]
    total = np.concatenate([np.zeros_like(image.take([0], axis)), image], axis).astype(np.float64).cumsum(axis)
    edges = np.linspace(0.0, old, size + 1)
    below = np.minimum(edges.astype(np.intp), old - 1)
    fraction = _along(edges - below, image.ndim, axis)
    at_edges = total.take(below, axis) * (1 - fraction) + total.take(below + 1, axis) * fraction
    return (np.diff(at_edges, axis=axis) * (size / old)).astype(np.float32)


def _linear(image: npt.NDArray[np.float32], size: int, axis: int) -> npt.NDArray[np.float32]:
    """Linear interpolation at pixel centres; the half pixel beyond the first and last centre repeats the border."""
    old = image.shape[axis]
    centres = np.clip((np.arange(size) + 0.5) * old / size - 0.5, 0, old - 1)
    below = np.minimum(centres.astype(np.intp), max(old - 2, 0))
    fraction = _along(centres - below, image.ndim, axis).astype(np.float32)
    above = np.minimum(below + 1, old - 1)
    return np.asarray(image.take(below, axis) * (1 - fraction) + image.take(above, axis) * fraction)


def _along(values: npt.NDArray[np.float64], ndim: int, axis: int) -> npt.NDArray[np.float64]:
    shape = [1] * ndim
    shape[axis] = -1
    return values.reshape(shape)
