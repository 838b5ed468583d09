"""Parts of a resampled volume, exactly as the whole would be: what ``em_bench_eval.align`` does to an image, by boxes.

An output voxel is the interval ``i * step`` to ``(i + 1) * step`` input voxels: averaged where it is larger than an
input voxel, interpolated linearly at its centre where it is smaller. Each output voxel is a short weighted sum of input
voxels, always in the same order, so a part does not depend on which part was asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Line:
    """One axis that is resampled from ``old`` to ``new`` voxels."""

    old: int
    new: int
    step: float  # edge of an output voxel in input voxels

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        """The input voxels, half-open, that the output voxels ``start`` to ``stop`` are made of."""
        index, _ = self._taps(start, stop)
        return int(index.min()), int(index.max()) + 1

    def apply(self, values: npt.NDArray[Any], first: int, start: int, stop: int, axis: int) -> npt.NDArray[np.float32]:
        """Resample ``axis`` of ``values``, which begin at input voxel ``first``, to outputs ``start`` to ``stop``."""
        if self.step == 1.0:
            return values.take(range(start - first, stop - first), axis).astype(np.float32, copy=False)
        index, weight = self._taps(start, stop)
        shape = [1] * values.ndim
        shape[axis] = -1
        result: npt.NDArray[np.float32] = values.take(index[0] - first, axis).astype(np.float32) * weight[0].reshape(
            shape
        )
        for places, share in zip(index[1:], weight[1:], strict=True):
            result += values.take(places - first, axis) * share.reshape(shape)
        return result

    def _taps(self, start: int, stop: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float32]]:
        """Input voxels and their weights, each (taps, stop - start)."""
        outputs = np.arange(start, stop)
        if self.step == 1.0:
            return outputs[None], np.ones((1, len(outputs)), np.float32)
        if self.step < 1.0:
            centres = np.clip((outputs + 0.5) * self.step - 0.5, 0, self.old - 1)
            below = np.minimum(centres.astype(np.intp), max(self.old - 2, 0))
            share = centres - below
            return (
                np.stack([below, np.minimum(below + 1, self.old - 1)]),
                np.stack([1 - share, share]).astype(np.float32),
            )
        low, high = (np.minimum(edge * self.step, self.old) for edge in (outputs, outputs + 1))
        first = np.minimum(low.astype(np.intp), self.old - 1)
        places = first + np.arange(int(np.ceil(self.step)) + 1)[:, None]
        covered = np.clip(np.minimum(places + 1, high) - np.maximum(places, low), 0, None)
        return np.minimum(places, self.old - 1), (covered / (high - low)).astype(np.float32)
