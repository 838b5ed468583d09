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
KEY = "intensity_window"  # in the provenance of a volume


@dataclass(frozen=True)
class Window:
    """The intensities that become 0 and 255, and the type they had."""

    low: float
    high: float
    dtype: str

    def apply(self, image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Map an image of any shape to uint8; what lies outside the window is clipped."""
        if self.dtype == "uint8":
            return image.astype(np.uint8, copy=False)
        gray = (image.astype(np.float32) - np.float32(self.low)) * np.float32(255.0 / (self.high - self.low))
        return np.rint(np.clip(gray, 0, 255)).astype(np.uint8)

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
    sample = np.concatenate([np.asarray(volume.image[z]).ravel() for z in chosen]).astype(np.float64)
    sample = sample[np.isfinite(sample)]
    ends = np.percentile(sample, (OUTSIDE_PERCENT, 100 - OUTSIDE_PERCENT)) if len(sample) else (0.0, 0.0)
    if not ends[1] > ends[0]:
        raise InputError(
            f"{volume.volume_id}: the image is empty",
            found=f"one intensity, {ends[0]:g}, in {len(chosen)} slices" if len(sample) else "no finite intensity",
            expected=f"a {dtype} image with contrast",
            remedy="check the path and the region of this volume",
        )
    return Window(float(ends[0]), float(ends[1]), dtype.name)
