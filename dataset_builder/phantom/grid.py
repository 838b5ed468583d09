"""Where a synthetic cell is sampled: voxel grids in nm and smooth random fields that are functions of position.

Everything about the cell is defined in nm, so one cell can be sampled at any voxel size. Coordinates are ``(z, y, x)``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Axes = tuple[FloatArray, FloatArray, FloatArray]  # nm, shaped (z, 1, 1), (1, y, 1), (1, 1, x)
Slices = tuple[slice, slice, slice]


def random_stream(*names: object) -> np.random.Generator:
    """Return a generator that depends only on ``names``, so that no step's draws shift those of another step."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return np.random.default_rng(np.frombuffer(digest, dtype="<u4"))


@dataclass(frozen=True)
class Grid:
    """A regular ``(z, y, x)`` grid: ``shape`` voxels of ``voxel_nm``, the first one centred at ``origin_nm``."""

    shape: tuple[int, int, int]
    voxel_nm: tuple[float, float, float]
    origin_nm: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def extent_nm(self) -> npt.NDArray[np.float64]:
        """Edge lengths of the sampled box, nm, ``(z, y, x)``."""
        return np.asarray(np.array(self.shape) * np.array(self.voxel_nm), dtype=np.float64)

    def lines(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Voxel centres along each axis, nm, three 1D arrays."""
        z, y, x = (
            (origin + step * np.arange(n)).astype(np.float32)
            for n, step, origin in zip(self.shape, self.voxel_nm, self.origin_nm, strict=True)
        )
        return z, y, x

    def axes(self, box: Slices = (slice(None), slice(None), slice(None))) -> Axes:
        """Voxel centres of a sub-box, nm, shaped to broadcast."""
        z, y, x = (line[part] for line, part in zip(self.lines(), box, strict=True))
        return z[:, None, None], y[None, :, None], x[None, None, :]

    def box(self, low_nm: npt.ArrayLike, high_nm: npt.ArrayLike) -> Slices | None:
        """Slices of the voxels between two corners, ``None`` if there are none."""
        voxel, origin = np.array(self.voxel_nm), np.array(self.origin_nm)
        first = np.maximum(np.ceil((np.asarray(low_nm) - origin) / voxel), 0).astype(int)
        last = np.minimum(np.floor((np.asarray(high_nm) - origin) / voxel) + 1, self.shape).astype(int)
        if np.any(last <= first):
            return None
        z, y, x = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
        return z, y, x

    def sample(self, values: npt.NDArray[np.floating], points_nm: npt.ArrayLike) -> FloatArray:
        """Read a field on this grid at ``(n, 3)`` positions (trilinear; the nearest value outside)."""
        points = np.atleast_2d(np.asarray(points_nm, dtype=np.float64))
        index = (points - np.array(self.origin_nm)) / np.array(self.voxel_nm)
        return np.asarray(ndimage.map_coordinates(values, index.T, order=1, mode="nearest"), dtype=np.float32)

    def points(self, index: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        """Positions in nm of ``(n, 3)`` voxel indices."""
        return np.asarray(index * np.array(self.voxel_nm) + np.array(self.origin_nm))


class NoiseField:
    """A smooth random function of position with mean 0 and variance near 1: random values on a lattice, cubic B-spline.

    ``scale_nm`` is the lattice spacing, one number or ``(z, y, x)``; the field is defined in the box
    ``[low_nm, high_nm]``.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        low_nm: npt.ArrayLike,
        high_nm: npt.ArrayLike,
        scale_nm: float | tuple[float, float, float],
    ):
        self.scale = np.broadcast_to(np.asarray(scale_nm, dtype=np.float64), (3,))
        self.low = np.asarray(low_nm, dtype=np.float64)
        counts = np.ceil((np.asarray(high_nm) - self.low) / self.scale).astype(int) + 4
        # 0.479 is the mean of the sum of squared cubic B-spline weights: dividing by it restores unit variance
        self.lattice = (rng.standard_normal(tuple(counts)) / 0.479**1.5).astype(np.float32)

    def on(self, axes: Sequence[FloatArray]) -> FloatArray:
        """Evaluate on broadcastable axes; returns ``(z, y, x)`` float32."""
        values = self.lattice
        for axis, line in enumerate(axes):
            u = (line.ravel().astype(np.float64) - self.low[axis]) / self.scale[axis]
            cell = np.clip(np.floor(u).astype(int), 0, self.lattice.shape[axis] - 4)
            t = u - cell
            weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
            along = [-1 if k == axis else 1 for k in range(3)]
            total: FloatArray | None = None
            for offset, weight in enumerate(weights):
                tap = np.take(values, cell + offset, axis=axis)
                tap *= (weight / 6).astype(np.float32).reshape(along)
                total = tap if total is None else np.add(total, tap, out=total)
            assert total is not None
            values = total
        return np.asarray(values)

    def on_points(self, points_nm: npt.ArrayLike) -> FloatArray:
        """Evaluate at ``(n, 3)`` positions; equals ``on`` there."""
        index = (np.asarray(points_nm, dtype=np.float64) - self.low) / self.scale + 1
        values = ndimage.map_coordinates(self.lattice, index.T, order=3, prefilter=False, mode="nearest")
        return np.asarray(values, dtype=np.float32)


def soft_min(a: FloatArray, b: FloatArray, k: float) -> FloatArray:
    """Minimum of two distances with a fillet of about ``k`` nm where they meet."""
    h = np.maximum(k - np.abs(a - b), 0) / k
    return np.asarray(np.minimum(a, b) - h * h * (k / 4), dtype=np.float32)


def ramp(values: FloatArray, low: float, high: float) -> FloatArray:
    """Smooth step from 0 at ``low`` to 1 at ``high``."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), dtype=np.float32)
