"""Lay out a cell in a box of tissue: where the nucleus, the border and every compact organelle are, in nm.

The nucleus enters from one corner and the plasma membrane crosses near the opposite one, so that a small field of view
holds everything. Organelles are placed one after the other where a coarse map of free space has room.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from dataset_builder.phantom.grid import FloatArray, Grid, NoiseField, random_stream
from dataset_builder.phantom.shapes import FAR_NM, Border, Globule, GolgiStack, Mitochondrion, Nucleus, Vector

PAD_NM = 200.0  # organelles may stick out of the sampled box this far
COARSE_NM = 24.0
CONTENTS = ("vesicles", "dark", "clear", "half", "whorl", "vesicles")  # of endosomes and lysosomes, in turn
SHRINK = (1.0, 0.85, 0.7, 0.55, 0.42)  # sizes that are tried in turn where there is no room

Shape = TypeVar("Shape", Mitochondrion, Globule, GolgiStack)


@dataclass
class Cell:
    """All placed shapes, and the free space between them on a coarse grid."""

    seed: str
    box_nm: Vector  # extent of the sampled box, which starts at the origin
    size: float  # 1 in a field of view of 1.6 µm or more; organelles are smaller in a smaller one
    coarse: Grid
    nucleus: Nucleus
    border: Border
    gap: float  # nm that organelles keep between each other
    free: FloatArray  # coarse: distance to the nearest nucleus, border, endosome, Golgi or droplet, nm
    free_of_mitos: FloatArray  # coarse: distance to the nearest mitochondrion, nm
    mitos: list[Mitochondrion] = field(default_factory=list)
    endos: list[Globule] = field(default_factory=list)
    golgis: list[GolgiStack] = field(default_factory=list)
    droplets: list[Globule] = field(default_factory=list)

    def stream(self, name: str) -> np.random.Generator:
        """Random numbers for one step."""
        return random_stream(self.seed, name)

    def noise(self, name: str, scale_nm: float | tuple[float, float, float]) -> NoiseField:
        """Return a noise field over the padded box."""
        return NoiseField(self.stream(name), [-PAD_NM - 60] * 3, self.box_nm + PAD_NM + 60, scale_nm)


def unit(vector: npt.NDArray[np.floating[Any]]) -> Vector:
    """Scale to length 1."""
    return np.asarray(vector / max(float(np.sqrt(np.sum(vector * vector))), 1e-9), dtype=np.float64)


def lay_out(box_nm: Vector, seed: str) -> Cell:
    """Build the cell of a seed in a box of ``(z, y, x)`` nm."""
    rng = random_stream(seed, "layout")
    low, high = np.full(3, -PAD_NM - 60), box_nm + PAD_NM + 60
    field_of_view = float(min(box_nm[1:]))
    size = float(np.clip(field_of_view / 1600, 0.22, 1))

    def noise(name: str, scale: float) -> NoiseField:
        return NoiseField(random_stream(seed, name), low, high, scale)

    corner = rng.integers(4)
    angle = np.deg2rad(45 + 90 * corner + rng.uniform(-16, 16))
    towards = unit(np.array([rng.uniform(-0.15, 0.15), np.sin(angle), np.cos(angle)]))
    half = 0.5 * float(np.sum(np.abs(towards[1:]) * np.minimum(box_nm[1:], 1.6 * field_of_view)))
    radius = float(np.clip(1.25 * field_of_view, 500, 3200))
    depth = min(0.5 * field_of_view, 1400.0)
    nucleus = Nucleus(
        box_nm / 2 + towards * (half - depth + radius), radius, noise("dents", 520 * size), noise("ripples", 170)
    )
    away = np.deg2rad(rng.uniform(-22, 22))
    turned = np.array(
        [
            towards[0] + rng.uniform(-0.2, 0.2),
            towards[1] * np.cos(away) + towards[2] * np.sin(away),
            towards[2] * np.cos(away) - towards[1] * np.sin(away),
        ]
    )
    inward = unit(turned)
    reach = 0.5 * float(np.sum(np.abs(inward[1:]) * np.minimum(box_nm[1:], 1.6 * field_of_view)))
    border = Border(
        box_nm / 2 - inward * (reach - 0.3 * field_of_view), inward, noise("waves", 420 * size), noise("wavelets", 130)
    )
    counts = np.ceil((box_nm + 2 * PAD_NM) / COARSE_NM).astype(int) + 1
    coarse = Grid((int(counts[0]), int(counts[1]), int(counts[2])), (COARSE_NM,) * 3, (-PAD_NM,) * 3)
    axes = coarse.axes()
    free = np.minimum(nucleus.distance(axes), border.distance(axes))
    gap = 22 * min(1.0, max(0.4, 1.6 * size))
    cell = Cell(seed, box_nm, size, coarse, nucleus, border, gap, free, np.full(coarse.shape, FAR_NM, dtype=np.float32))
    _fill(cell)
    return cell


def _fill(cell: Cell) -> None:
    """Place Golgi stacks, mitochondria (the second one against the first), endosomes and droplets."""
    volume = (
        float(np.prod(cell.box_nm + np.array([250.0 * cell.size, 0, 0]))) / 1e9 / cell.size**3
    )  # µm³ of a full-size cell

    def count(per_um3: float, least: int) -> int:
        return max(least, round(per_um3 * volume))

    _repeat(cell, "golgi", count(0.6, 1), 1, _golgi, cell.golgis)
    _repeat(cell, "mito", count(0.5, 1), 1, _mito, cell.mitos)
    if cell.mitos:
        _repeat(cell, "pair", count(0.4, 1), 1, _touching_mito, cell.mitos)
    _repeat(cell, "endo", count(1.9, 4), 2, _endo, cell.endos)
    _repeat(cell, "mito2", count(1.4, 1), 0, _mito, cell.mitos)
    _repeat(cell, "droplet", count(0.35, 1), 0, _droplet, cell.droplets)


def _repeat(
    cell: Cell,
    name: str,
    wanted: int,
    needed: int,
    propose: Callable[[Cell, np.random.Generator, float, int], Shape | None],
    placed: list[Shape],
) -> None:
    """Place ``wanted`` shapes; only the first ``needed`` may shrink below 70 % to fit."""
    rng = cell.stream(name)
    for index in range(wanted):
        for shrink in SHRINK if index < needed else SHRINK[:3]:
            tries = 200 if index < needed else 60
            shape = next(filter(None, (propose(cell, rng, shrink * cell.size, index) for _ in range(tries))), None)
            if shape is not None:
                placed.append(shape)
                _occupy(cell, shape)
                break


def _occupy(cell: Cell, shape: Mitochondrion | Globule | GolgiStack) -> None:
    box = cell.coarse.box(*shape.bounds(FAR_NM))
    if box is not None:
        target = cell.free_of_mitos if isinstance(shape, Mitochondrion) else cell.free
        target[box] = np.minimum(target[box], shape.distance(cell.coarse.axes(box)))


def _clear(cell: Cell, points: Vector) -> FloatArray:
    """Distance from ``(n, 3)`` points to everything that is placed, nm."""
    return np.minimum(cell.coarse.sample(cell.free, points), cell.coarse.sample(cell.free_of_mitos, points))


def _anywhere(cell: Cell, rng: np.random.Generator, inset: float) -> Vector:
    """Return a random point of the box, ``inset`` nm from its y and x faces where that fits."""
    inset_zyx = np.minimum([0.15 * cell.box_nm[0], inset, inset], 0.35 * cell.box_nm)
    return np.asarray(rng.uniform(inset_zyx, cell.box_nm - inset_zyx))


def _direction(cell: Cell, rng: np.random.Generator) -> Vector:
    """Return a random direction, flatter in a thin box."""
    flat = float(np.clip(cell.box_nm[0] / cell.box_nm[1:].min(), 0.25, 1))
    return unit(rng.standard_normal(3) * np.array([flat, 1, 1]))


def _grow(
    cell: Cell, rng: np.random.Generator, start: Vector, heading: Vector, radius: float, length: float, allowed: float
) -> list[Vector]:
    """Walk from ``start`` through free space; ``allowed`` nm of a mitochondrion may be entered."""
    points, step = [start], max(0.35 * radius, 22.0)
    for _ in range(int(length / step)):
        turns = np.array([unit(heading + 0.24 * rng.standard_normal(3)) for _ in range(6)])
        ahead = points[-1] + turns * step
        # look one radius further so that the round end stays free
        room = np.minimum(
            cell.coarse.sample(cell.free, ahead), cell.coarse.sample(cell.free, ahead + turns * radius * 0.5)
        )
        touching = cell.coarse.sample(cell.free_of_mitos, ahead)
        good = (room > radius + cell.gap) & (touching > radius + (0.8 * cell.gap if allowed == 0 else -allowed))
        good &= np.all((ahead > -PAD_NM) & (ahead < cell.box_nm + PAD_NM), axis=1)
        if not good.any():
            break
        pick = int(np.argmax(good))
        points.append(ahead[pick])
        heading = turns[pick]
    return points


def _tube(
    cell: Cell, rng: np.random.Generator, line: list[Vector], branch: list[Vector], radius: float
) -> Mitochondrion:
    """Turn centre lines into a mitochondrion with a varying radius."""
    segments: list[tuple[Vector, Vector, float, float]] = []
    for points in (line, branch):
        swell = radius * (1 + 0.13 * np.sin(rng.uniform(0, 6.28) + np.arange(len(points)) * rng.uniform(0.3, 0.6)))
        if points is branch:
            swell *= 0.8
        segments += [
            (a, b, float(r0), float(r1)) for a, b, r0, r1 in zip(points, points[1:], swell, swell[1:], strict=False)
        ]
    along = unit(line[-1] - line[0])
    normal = unit(along + rng.uniform(0.1, 0.7) * _direction(cell, rng))
    return Mitochondrion(
        tuple(segments),
        normal,
        crista_period=float(rng.uniform(62, 84)),
        crista_phase=float(rng.uniform(0, 1)),
        matrix=float(rng.uniform(0.42, 0.52)),
        wobble=cell.noise(f"wobble{rng.integers(1 << 30)}", 130.0),
    )


def _mito(cell: Cell, rng: np.random.Generator, size: float, index: int) -> Mitochondrion | None:
    radius = size * float(rng.uniform(105, 165))
    start = _anywhere(cell, rng, radius)
    if _clear(cell, start)[0] < radius + cell.gap:
        return None
    heading = _direction(cell, rng)
    length = size * float(rng.uniform(500, 1300))
    fore = _grow(cell, rng, start, heading, radius, length / 2, 0)
    back = _grow(cell, rng, start, -heading, radius, length / 2, 0)
    line = back[:0:-1] + fore
    if len(line) < 5:
        return None
    branch: list[Vector] = []
    if rng.random() < 0.55:
        root = len(line) // 2 + int(rng.integers(-1, 2))
        along = unit(line[min(root + 1, len(line) - 1)] - line[root - 1])
        side = unit(np.cross(along, np.array([1.0, 0, 0]) + 0.3 * rng.standard_normal(3)))
        branch = _grow(cell, rng, line[root], side * rng.choice([-1, 1]), radius * 0.8, size * rng.uniform(300, 600), 0)
    return _tube(cell, rng, line, branch, radius)


def _touching_mito(cell: Cell, rng: np.random.Generator, size: float, index: int) -> Mitochondrion | None:
    """Return a mitochondrion that leans on an earlier one over part of its length."""
    host = cell.mitos[index % len(cell.mitos)]
    start, end, host_radius, _ = host.segments[int(rng.integers(len(host.segments)))]
    if np.any(start < 0) or np.any(start > cell.box_nm):
        return None
    radius, along = size * float(rng.uniform(95, 140)), unit(end - start)
    side = unit(np.cross(along, np.array([1.0, 0, 0]) + 0.35 * rng.standard_normal(3))) * rng.choice([-1, 1])
    first = start + side * (host_radius + radius - 22)
    near_mito = float(cell.coarse.sample(cell.free_of_mitos, first)[0])
    near_other = float(cell.coarse.sample(cell.free, first)[0])
    if near_other < radius + cell.gap or not radius - 40 < near_mito < radius - 12:
        return None
    length = size * float(rng.uniform(300, 650))
    fore = _grow(cell, rng, first, unit(along + 0.3 * side), radius, length / 2, 24)
    back = _grow(cell, rng, first, unit(-along + 0.3 * side), radius, length / 2, 24)
    line = back[:0:-1] + fore
    return _tube(cell, rng, line, [], radius) if len(line) >= 4 else None


def _endo(cell: Cell, rng: np.random.Generator, size: float, index: int) -> Globule | None:
    content = CONTENTS[index % len(CONTENTS)]
    radius = size * float(rng.uniform(75, 130)) * (1.3 if content in ("vesicles", "half") else 1.0)
    centre = _anywhere(cell, rng, radius)
    if _clear(cell, centre)[0] < radius * 1.12 + cell.gap:
        return None
    radii = radius * rng.uniform(0.85, 1.12, 3)
    return Globule(centre, radii, content, cell.noise(f"lump{rng.integers(1 << 30)}", radius * 0.8), 0.07)


def _droplet(cell: Cell, rng: np.random.Generator, size: float, index: int) -> Globule | None:
    radius = size * float(rng.uniform(80, 170))
    centre = _anywhere(cell, rng, radius)
    if _clear(cell, centre)[0] < radius * 1.1 + cell.gap:
        return None
    return Globule(centre, np.full(3, radius), "lipid", cell.noise(f"drop{rng.integers(1 << 30)}", radius), 0.02)


def _golgi(cell: Cell, rng: np.random.Generator, size: float, index: int) -> GolgiStack | None:
    cisternae = int(rng.integers(4, 7))
    spacing = float(rng.uniform(46, 58)) * max(size, 0.6)
    reach = size * float(rng.uniform(230, 330))
    centre = _anywhere(cell, rng, 0.7 * reach)
    tilt = _direction(cell, rng) * np.array([0.45, 1, 1])
    normal = unit(tilt)
    u = unit(np.cross(normal, np.array([1.0, 0.1, 0])))
    v = np.cross(normal, u)
    thick = cisternae * spacing / 2
    corners = [
        centre + a * u * reach + b * v * reach * 0.8 + c * normal * thick
        for a in (-1, 0, 1)
        for b in (-1, 0, 1)
        for c in (-1, 1)
    ]
    if _clear(cell, np.array(corners)).min() < 1.5 * cell.gap:
        return None
    profile = 1 - 0.25 * np.abs(np.linspace(-1, 1, cisternae)) + rng.uniform(-0.12, 0.08, cisternae)
    return GolgiStack(
        centre,
        normal,
        tuple(float(p * reach) for p in profile),
        tuple((float(a), float(b)) for a, b in rng.uniform(-0.12, 0.12, (cisternae, 2)) * reach),
        spacing,
        bow=float(rng.uniform(25, 60) * rng.choice([-1, 1])) * size,
        warp=cell.noise(f"warp{index}", 150.0),
        ragged=cell.noise(f"ragged{index}", 90.0),
    )
