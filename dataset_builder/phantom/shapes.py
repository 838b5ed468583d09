"""Shapes of organelles as signed distances in nm: negative inside, zero in the middle of the bounding membrane."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dataset_builder.phantom.grid import Axes, FloatArray, NoiseField, soft_min

Vector = npt.NDArray[np.float64]  # (3,), nm, (z, y, x)
FAR_NM = 240.0  # distances are cut off here: nothing looks further


def point_distance(axes: Axes, centre: Vector) -> FloatArray:
    """Euclidean distance to a point."""
    z, y, x = (axis - np.float32(c) for axis, c in zip(axes, centre, strict=True))
    return np.asarray(np.sqrt(z * z + y * y + x * x), dtype=np.float32)


def segment_distance(axes: Axes, start: Vector, end: Vector, start_radius: float, end_radius: float) -> FloatArray:
    """Distance to a round cone with the given end points and radii."""
    z, y, x = (axis - np.float32(c) for axis, c in zip(axes, start, strict=True))
    edge = (end - start).astype(np.float32)
    length2 = max(float(np.sum(edge * edge)), 1e-6)
    along = np.clip((z * edge[0] + y * edge[1] + x * edge[2]) / np.float32(length2), 0, 1)
    dz, dy, dx = z - along * edge[0], y - along * edge[1], x - along * edge[2]
    radius = np.float32(start_radius) + along * np.float32(end_radius - start_radius)
    return np.asarray(np.sqrt(dz * dz + dy * dy + dx * dx) - radius, dtype=np.float32)


@dataclass(frozen=True)
class Nucleus:
    """A large dented ball: distance to the outer nuclear membrane."""

    centre: Vector
    radius: float
    dents: NoiseField
    ripples: NoiseField

    def distance(self, axes: Axes) -> FloatArray:
        """Signed distance, nm."""
        ball = point_distance(axes, self.centre) - np.float32(self.radius)
        return np.asarray(ball + 70 * self.dents.on(axes) + 14 * self.ripples.on(axes), dtype=np.float32)


@dataclass(frozen=True)
class Border:
    """The plasma membrane: a wavy surface across the box; positive inside the cell."""

    point: Vector
    inward: Vector
    waves: NoiseField
    ripples: NoiseField

    def distance(self, axes: Axes) -> FloatArray:
        """Depth below the plasma membrane, nm; negative outside the cell."""
        z, y, x = (
            (axis - np.float32(p)) * np.float32(n) for axis, p, n in zip(axes, self.point, self.inward, strict=True)
        )
        return np.asarray(z + y + x + 55 * self.waves.on(axes) + 10 * self.ripples.on(axes), dtype=np.float32)


@dataclass(frozen=True)
class Mitochondrion:
    """A branched tube of varying radius; ``crista_normal`` and ``crista_period`` set its lamellae."""

    segments: tuple[tuple[Vector, Vector, float, float], ...]  # start, end, start radius, end radius
    crista_normal: Vector
    crista_period: float
    crista_phase: float
    matrix: float  # electron density of the matrix
    wobble: NoiseField

    def bounds(self, margin: float) -> tuple[Vector, Vector]:
        """Corners of the bounding box with a margin, nm."""
        ends = np.array([point for start, end, *_ in self.segments for point in (start, end)])
        radius = max(max(r0, r1) for *_, r0, r1 in self.segments)
        return ends.min(0) - radius - margin, ends.max(0) + radius + margin

    def distance(self, axes: Axes) -> FloatArray:
        """Signed distance to the outer membrane, nm."""
        total: FloatArray | None = None
        for start, end, start_radius, end_radius in self.segments:
            one = segment_distance(axes, start, end, start_radius, end_radius)
            total = one if total is None else soft_min(total, one, 30.0)
        assert total is not None
        return np.asarray(total + 7 * self.wobble.on(axes), dtype=np.float32)


@dataclass(frozen=True)
class Globule:
    """A lumpy ball: endosome, lysosome, lipid droplet; ``content`` says what fills it."""

    centre: Vector
    radii: Vector
    content: str
    wobble: NoiseField
    uneven: float = 0.06  # wobble as a share of the radius

    def bounds(self, margin: float) -> tuple[Vector, Vector]:
        """Corners of the bounding box with a margin, nm."""
        reach = self.radii * 1.3 + margin
        return self.centre - reach, self.centre + reach

    def distance(self, axes: Axes) -> FloatArray:
        """Signed distance to the membrane, nm (first order for unequal radii)."""
        z, y, x = (
            (axis - np.float32(c)) / np.float32(r) for axis, c, r in zip(axes, self.centre, self.radii, strict=True)
        )
        mean = float(self.radii.mean())
        ball = (np.sqrt(z * z + y * y + x * x) - 1) * np.float32(mean)
        return np.asarray(ball + np.float32(self.uneven * mean) * self.wobble.on(axes), dtype=np.float32)


@dataclass(frozen=True)
class GolgiStack:
    """A bowed stack of flat cisternae with swollen, ragged rims."""

    centre: Vector
    normal: Vector
    reaches: tuple[float, ...]  # lateral radius of each cisterna, cis to trans
    shifts: tuple[tuple[float, float], ...]  # lateral offset of each cisterna
    spacing: float
    bow: float  # nm of bend at 200 nm from the middle
    warp: NoiseField
    ragged: NoiseField

    def bounds(self, margin: float) -> tuple[Vector, Vector]:
        """Corners of the bounding box with a margin, nm."""
        reach = max(self.reaches) * 1.2 + 60 + margin
        return self.centre - reach, self.centre + reach

    def distance(self, axes: Axes) -> FloatArray:
        """Signed distance to the nearest cisternal membrane, nm."""
        z, y, x = (axis - np.float32(c) for axis, c in zip(axes, self.centre, strict=True))
        u_axis = np.cross(self.normal, (1.0, 0.0, 0.0) if abs(self.normal[0]) < 0.8 else (0.0, 1.0, 0.0))
        u_axis /= np.sqrt(np.sum(u_axis**2))
        v_axis = np.cross(self.normal, u_axis)
        height, u, v = (
            z * np.float32(a[0]) + y * np.float32(a[1]) + x * np.float32(a[2]) for a in (self.normal, u_axis, v_axis)
        )
        height = height + np.float32(self.bow) * (u * u + v * v) / np.float32(200.0**2) + 9 * self.warp.on(axes)
        ragged = self.ragged.on(axes)
        total = np.full(np.broadcast_shapes(*(axis.shape for axis in axes)), FAR_NM, dtype=np.float32)
        middle = (len(self.reaches) - 1) / 2
        for level, (reach, (du, dv)) in enumerate(zip(self.reaches, self.shifts, strict=True)):
            lateral = np.sqrt((u - du) ** 2 + (v - dv) ** 2) + 16 * ragged
            across = np.abs(height - np.float32((level - middle) * self.spacing))
            rim = np.clip((lateral - (reach - 50)) / 50, 0, 1)
            half = np.float32(0.19 * self.spacing) + np.float32(0.14 * self.spacing) * rim  # swollen rim
            flat = np.maximum(lateral - (reach - half), 0)
            total = np.minimum(total, np.sqrt(across * across + flat * flat) - half)
        return total
