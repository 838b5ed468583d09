"""One intensity range for all volumes: 8 bits. What is 8-bit already stays as it is, to the byte.

Other depths are mapped by one window per volume, which is recorded with the volume: ``Window.restore`` gives the
original intensities back to within half a gray level for everything inside the window.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from em_bench_eval.errors import InputError
from em_bench_eval.schema import Volume

SAMPLED_SLICES = 16  # evenly spaced; the window is taken from these
OUTSIDE_PERCENT = 0.1  # of the sampled pixels that each end of the window cuts off
PADDING_GAP = 1 / 8  # of the contrast: so far from all other pixels is padding
SPIKE = 0.05  # of the other pixels; so many at one end of them are levels of a coarse image, not the tail of tissue
OF_WINDOW = (OUTSIDE_PERCENT, 100 - OUTSIDE_PERCENT)
KEY = "intensity_window"  # in the provenance of a volume


@dataclass(frozen=True)
class Window:
    """The intensities that become 0 and 255, and the type they had."""

    low: float
    high: float
    dtype: str

    def apply(self, image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Map an image of any shape to uint8; what lies outside the window is clipped, NaN and infinity become 0."""
        if self.dtype == "uint8":
            return image.astype(np.uint8, copy=False)
        # float32 holds every value of 2 bytes, and float64 those of 4; of 8 the whole numbers up to 2^53
        single = image.dtype.itemsize <= 2 or image.dtype == np.float32
        exact: np.dtype[Any] = np.dtype(np.float32 if single else np.float64)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is replaced
            gray = (image.astype(exact) - exact.type(self.low)) * exact.type(255.0 / (self.high - self.low))
        if image.dtype.kind == "f":
            gray = np.where(np.isfinite(image), gray, 0)
        levels: npt.NDArray[np.uint8] = np.rint(np.clip(gray, 0, 255)).astype(np.uint8)
        return levels

    def restore(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
        """Give the original intensities back, to within half a gray level."""
        if self.dtype == "uint8":
            return image.astype(np.float64)
        return self.low + image.astype(np.float64) * ((self.high - self.low) / 255.0)

    def provenance(self) -> dict[str, str]:
        """Return what is recorded with a volume; empty where nothing was changed."""
        return {} if self.dtype == "uint8" else {KEY: json.dumps(asdict(self))}


def window_of(volume: Volume) -> Window:
    """Choose the window of a volume from evenly spaced slices; the same for every run.

    Raises ``InputError`` for an image that is not numbers, or whose sampled slices hold none but one value.
    """
    dtype = np.dtype(volume.image.dtype)
    if dtype == np.uint8:
        return Window(0.0, 255.0, "uint8")
    if dtype.kind not in "iuf":
        raise InputError(
            f"{volume.volume_id}: the image holds no intensities",
            found=str(dtype),
            expected="integers or floating-point numbers",
        )
    count = int(volume.image.shape[0])
    chosen = sorted({int(z) for z in np.linspace(0, count - 1, min(count, SAMPLED_SLICES)).round()})
    ends = contrast_of(np.concatenate([np.asarray(volume.image[z]).ravel() for z in chosen]))
    if ends is None or not ends[1] > ends[0]:
        intensities = "no finite intensity" if ends is None else f"one intensity, {ends[0]:g},"
        raise InputError(
            f"{volume.volume_id}: the image is empty",
            found=f"{intensities} in {len(chosen)} slices",
            expected=f"a {dtype} image with contrast",
            remedy="check the path and the region of this volume",
        )
    return Window(*ends, dtype.name)


def contrast_of(sample: npt.NDArray[Any], percentiles: tuple[float, float] = OF_WINDOW) -> tuple[float, float] | None:
    """Return two percentiles of sampled pixels: of those that are finite and no padding; ``None`` if none is."""
    values = without_padding(sample, percentiles)
    if not len(values):
        return None
    low, high = np.percentile(values, percentiles).tolist()
    return low, high


def without_padding(sample: npt.NDArray[Any], percentiles: tuple[float, float] = OF_WINDOW) -> npt.NDArray[np.float64]:
    """Return the sampled pixels that are finite and no padding around what was imaged.

    Padding has one value: 0, or the smallest or largest of an integer type. It lies at one end of the sample, holds
    more pixels than ``OUTSIDE_PERCENT``, and between it and the window of the others there is a gap of at least
    ``PADDING_GAP`` of that window - left in, it would cost so much of the contrast. No end of tissue looks so: clipped
    pixels have neighbours. An image of a few levels does, so the others must thin out towards the gap (``SPIKE``).
    """
    values = sample.astype(np.float64)
    values = values[np.isfinite(values)]
    limits = np.iinfo(sample.dtype) if sample.dtype.kind in "iu" else None
    known = [0.0] if limits is None else [0.0, float(limits.min), float(limits.max)]
    for padding in 2 * known:  # what is left out at one end shows how wide the gap at the other is
        if not len(values) or padding not in (values.min(), values.max()):
            continue
        others = values[values != padding]
        if not len(others) or len(others) > len(values) * (1 - OUTSIDE_PERCENT / 100):
            continue
        first, last = np.percentile(others, percentiles).tolist()
        below = padding < first
        gap = first - padding if below else padding - last
        outside = percentiles[0] / 100 if below else 1 - percentiles[1] / 100
        at_end = np.count_nonzero(others <= first if below else others >= last) / len(others)
        if gap >= PADDING_GAP * (last - first) > 0 and at_end <= outside + SPIKE:
            values = others
    return np.asarray(values)
