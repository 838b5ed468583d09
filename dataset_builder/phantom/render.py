"""From distances to electron density, as heavy-metal stain would show it: 0 is resin, 1 a membrane."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from dataset_builder.phantom.anatomy import ENVELOPE_NM, Fields, endo_interior
from dataset_builder.phantom.cell import Cell
from dataset_builder.phantom.grid import BoolArray, FloatArray, ramp
from dataset_builder.phantom.shapes import FAR_NM, Globule, point_distance, segment_distance

INNER_MEMBRANE_NM = 13.0  # from the outer to the inner mitochondrial membrane
MEMBRANE_NM = 4.6  # standard deviation of a stained bilayer's profile: near 10 nm wide at half height


def stain(cell: Cell, fields: Fields) -> FloatArray:
    """Electron density on the fields' grid, float32 ``(z, y, x)``, about 0..1.1."""
    grid, axes = fields.grid, fields.grid.axes()
    fine_scale = max(20.0, 1.2 * max(grid.voxel_nm[1:]))
    fine = cell.noise("grain", (max(fine_scale, grid.voxel_nm[0]), fine_scale, fine_scale)).on(axes)
    middle = cell.noise("clumps", 55.0).on(axes)
    broad = cell.noise("regions", 260.0).on(axes)

    density = 0.31 + 0.06 * fine + 0.04 * middle + 0.025 * broad
    cytosol = _cytosol_weight(fields)
    density += 0.48 * _ribosomes(cell, fields, cytosol, middle)
    _paint(density, _microtubules(cell, fields), 0.28)
    # neighbouring processes: each with its own, mostly lighter, cytoplasm
    shades = cell.stream("shades").uniform(-0.13, 0.05, 4096).astype(np.float32)
    foreign = (fields.own < 0) & (fields.process >= 0)
    density[foreign] += shades[fields.process[foreign] % len(shades)]
    outside = ramp(fields.inside, 4.0, -4.0)
    resin = 0.03 + 0.12 * ramp(fields.inside, -40.0, -8.0)  # narrow clefts are not empty
    density += outside * (resin + 0.012 * fine + 0.015 * broad - density)

    _nucleoplasm(cell, fields, density, fine, middle)
    _mitochondria(cell, fields, density, fine)
    for number in range(len(cell.endos)):
        _endosome(cell, fields, density, number, fine, middle)
    _fill(density, fields.lumen, 0.21 + 0.03 * fine, fields.nucleus > -ENVELOPE_NM)
    _fill(density, fields.golgi, 0.22 + 0.03 * fine)
    _fill(density, fields.vesicle, 0.2 + 0.05 * middle)
    _fill(density, fields.droplet, 0.62 + 0.012 * broad)
    return _membranes(fields, density, fine)


def _paint(density: FloatArray, weight: FloatArray, amount: float) -> None:
    density += np.float32(amount) * weight


def _fill(density: FloatArray, distance: FloatArray, value: FloatArray, where: BoolArray | None = None) -> None:
    """Blend ``value`` into the inside of a distance field."""
    weight = ramp(distance, 3.0, -5.0)
    if where is not None:
        weight *= where
    density += weight * (value - density)


def _cytosol_weight(fields: Fields) -> FloatArray:
    """1 in the free cytosol, 0 in organelles, at the Golgi and outside."""
    room = np.minimum(np.minimum(fields.mito, fields.endo), np.minimum(fields.vesicle, fields.droplet))
    np.minimum(room, fields.golgi - 26, out=room)
    np.minimum(room, fields.inside, out=room)
    np.minimum(room, np.minimum(fields.lumen, fields.nucleus), out=room)
    return ramp(room, 4.0, 12.0)


def _ribosomes(cell: Cell, fields: Fields, cytosol: FloatArray, clumps: FloatArray) -> FloatArray:
    """Dark dots: free ribosomes in clusters, and rows of them on the ER and the outer nuclear membrane."""
    grid, rng = fields.grid, cell.stream("ribosomes")
    voxel_nm3 = float(np.prod(grid.voxel_nm))
    dots = np.zeros(grid.shape, dtype=np.float32)
    rate = 4.5e-6 * voxel_nm3 * ramp(clumps, -1.2, 1.8) * cytosol  # per nm³, where clusters are
    rate *= np.where(fields.own > 0, 1.0, 0.3)
    on_er = np.abs(np.minimum(fields.lumen, fields.nucleus) - 14) < 4
    rate += (
        on_er * (fields.own > 0) * np.float32(voxel_nm3 / (8 * 30**2)) * 0.9
    )  # one per 30 nm squared of an 8 nm layer
    dots += rng.random(grid.shape, dtype=np.float32) < rate
    sigma = [7.5 / v for v in grid.voxel_nm]
    dots = ndimage.gaussian_filter(dots, sigma, truncate=3)
    peak = float(np.prod([max(1.0, s * np.sqrt(2 * np.pi)) for s in sigma]))
    return np.asarray(np.minimum(dots * peak, 1.4), dtype=np.float32)


def _microtubules(cell: Cell, fields: Fields) -> FloatArray:
    """Straight 25 nm tubes with a dark wall, in the cytosol of this cell and of its neighbours."""
    rng, grid = cell.stream("microtubules"), fields.grid
    weight = np.zeros(grid.shape, dtype=np.float32)
    room = np.minimum(np.minimum(fields.mito, fields.endo), np.minimum(fields.golgi, fields.droplet))
    room = np.minimum(np.minimum(room, fields.inside), np.minimum(fields.lumen, fields.nucleus))
    for _ in range(int(9 * np.prod(cell.box_nm[1:]) / 1e6) + 2):
        start = rng.uniform(0, 1, 3) * cell.box_nm
        heading = rng.standard_normal(3) * [0.3, 1, 1]
        end = start + heading / np.sqrt(np.sum(heading**2)) * rng.uniform(300, 900)
        pieces = np.linspace(0, 1, 8)
        bend = np.cumsum(rng.standard_normal((8, 3)) * 7, axis=0)
        points = start + pieces[:, None] * (end - start) + bend
        clear = grid.sample(room, points)
        for a, b, ca, cb in zip(points, points[1:], clear, clear[1:], strict=False):
            box = grid.box(np.minimum(a, b) - 30, np.maximum(a, b) + 30)
            if box is not None and min(ca, cb) > 16:
                wall = np.abs(segment_distance(grid.axes(box), a, b, 9.0, 9.0))
                weight[box] = np.maximum(weight[box], np.exp(-((wall / 6) ** 2)))
    return weight


def _nucleoplasm(cell: Cell, fields: Fields, density: FloatArray, fine: FloatArray, middle: FloatArray) -> None:
    """Chromatin: pale between, dense at the rim but not at pores, in clumps, and a nucleolus."""
    depth = -(fields.nucleus + ENVELOPE_NM)  # below the inner membrane
    weight = ramp(depth, -4.0, 4.0)
    if not weight.any():
        return
    axes = fields.grid.axes()
    clumps = cell.noise("chromatin", 115.0).on(axes)
    veins = cell.noise("veins", 62.0).on(axes)
    rim = 2.4 * np.exp(-np.maximum(depth, 0) / 75) * ramp(fields.pore, 30.0, 60.0)
    threads = 1 - np.abs(cell.noise("threads", 42.0).on(axes))  # ridges: loose chromatin fibres
    dense = ramp(rim + 0.75 * clumps + 0.5 * veins + 0.2 * threads, 0.95, 1.5)
    inner = 0.22 + 0.06 * fine + 0.035 * middle + 0.05 * threads + dense * (0.34 + 0.05 * middle)
    rng = cell.stream("nucleolus")
    towards = cell.box_nm / 2 - cell.nucleus.centre
    # as deep below the surface as the visible part of the nucleus allows
    corner = np.where(towards > 0, 0.0, cell.box_nm)
    corner[0] = cell.box_nm[0] * rng.uniform(0.3, 0.7)
    radius = 250 * cell.size
    out = corner - cell.nucleus.centre
    middle_point = cell.box_nm / 2 - cell.nucleus.centre
    middle_point *= (cell.nucleus.radius - 430 * cell.size) / np.sqrt(np.sum(middle_point**2))
    centre = (
        cell.nucleus.centre + 0.8 * middle_point + 0.2 * out * min(1.0, cell.nucleus.radius / np.sqrt(np.sum(out**2)))
    )
    core = point_distance(axes, centre) - np.float32(radius) + 75 * cell.size * veins + 30 * cell.size * clumps
    granular = 0.68 + 0.06 * middle + 0.06 * fine + 0.05 * threads
    inner += ramp(core, 12.0, -12.0) * (granular - inner)
    density += weight * (inner - density)


def _mitochondria(cell: Cell, fields: Fields, density: FloatArray, fine: FloatArray) -> None:
    """Matrix, inner membrane and lamellar cristae that start at one side and may not reach the other."""
    for number, mito in enumerate(cell.mitos):
        box = fields.grid.box(*mito.bounds(10))
        if box is None:
            continue
        mine = (fields.mito_id[box] == number) & (fields.mito[box] < 2)
        if not mine.any():
            continue
        axes, depth = fields.grid.axes(box), -fields.mito[box]
        z, y, x = axes
        normal = mito.crista_normal.astype(np.float32)
        bend = cell.noise(f"crista-bend{number}", 120.0).on(axes)
        flutter = cell.noise(f"crista-flutter{number}", 60.0).on(axes)
        u = z * normal[0] + y * normal[1] + x * normal[2] + 34 * bend + 7 * flutter
        u = u / np.float32(mito.crista_period) + np.float32(mito.crista_phase)
        lamella = np.round(u)
        across = np.abs(u - lamella) * np.float32(mito.crista_period)
        # each lamella has its own extent: the noise is shifted by its number
        extent = cell.noise(f"crista-extent{number}", 150.0).on(axes)
        own = np.sin(lamella * 2.4 + mito.crista_phase * 6)
        present = ramp(extent + 0.75 * own, -1.0, -0.6) * ramp(depth, 10.0, 15.0)
        wall = np.exp(-(((across - 9) / 5.0) ** 2)) * present
        cleft = np.exp(-((across / 6.0) ** 2)) * present
        value = mito.matrix + 0.04 * fine[box] + 0.03 * flutter
        value += 0.5 * wall - 0.22 * cleft
        # intermembrane space, then the inner membrane
        value += ramp(depth, 10.0, 6.0) * (0.35 - value)
        value = np.maximum(value, 0.95 * np.exp(-(((depth - INNER_MEMBRANE_NM) / (MEMBRANE_NM + 0.4)) ** 2)))
        weight = ramp(depth, -4.0, 4.0) * mine
        density[box] += weight * (value - density[box])


def _endosome(
    cell: Cell, fields: Fields, density: FloatArray, number: int, fine: FloatArray, middle: FloatArray
) -> None:
    """Fill one endosome or lysosome according to its content."""
    found = endo_interior(cell, fields, number)
    if found is None:
        return
    box, mine = found
    if not mine.any():
        return
    endo, rng, axes = cell.endos[number], cell.stream(f"content{number}"), fields.grid.axes(box)
    depth = -fields.endo[box]
    veins = cell.noise(f"lysosome{number}", 48.0).on(axes)
    grain = 0.03 * fine[box] + 0.03 * middle[box]
    clear = 0.16 + grain
    dark = 0.68 + 0.1 * veins + grain
    if endo.content == "dark":
        value = dark + 0.1 * ramp(veins, 0.5, 1.2)
    elif endo.content == "clear":
        value = clear + 0.25 * ramp(veins, 1.1, 1.8)
    elif endo.content == "half":
        normal = rng.standard_normal(3)
        normal /= np.sqrt(np.sum(normal**2))
        level = sum((a - np.float32(c)) * np.float32(n) for a, c, n in zip(axes, endo.centre, normal, strict=True))
        value = clear + ramp(level + 20 * veins, -8.0, 8.0) * (dark - clear)
    elif endo.content == "whorl":
        rings = point_distance(axes, endo.centre + rng.uniform(-0.3, 0.3, 3) * endo.radii) + 9 * veins
        value = 0.36 + grain + 0.38 * ramp(np.cos(rings * np.float32(2 * np.pi / 30)), 0.1, 0.9)
    else:
        value = clear + 0.06
    if endo.content in ("vesicles", "half"):
        value = _intraluminal(endo, value, axes, depth, rng)
    density[box] += ramp(depth, -4.0, 4.0) * mine * (value - density[box])


def _intraluminal(
    endo: Globule,
    value: FloatArray,
    axes: tuple[FloatArray, FloatArray, FloatArray],
    depth: FloatArray,
    rng: np.random.Generator,
) -> FloatArray:
    """Add the small vesicles of a multivesicular body."""
    nearest = np.full(value.shape, FAR_NM, dtype=np.float32)
    size = min(1.0, float(endo.radii.mean()) / 100)
    for _ in range(34):
        offset = rng.standard_normal(3)
        offset *= rng.random() ** (1 / 3) / np.sqrt(np.sum(offset**2))
        radius = rng.uniform(16, 27) * size
        centre = endo.centre + offset * (endo.radii - radius - 16 * size)
        np.minimum(nearest, point_distance(axes, centre) - np.float32(radius), out=nearest)
    value = value + ramp(nearest, 4.0, -4.0) * (0.3 - value)
    wall = 0.8 * np.exp(-((nearest / MEMBRANE_NM) ** 2)) * ramp(depth, 4.0, 10.0)
    return np.asarray(np.maximum(value, wall), dtype=np.float32)


def _membranes(fields: Fields, density: FloatArray, fine: FloatArray) -> FloatArray:
    """Draw every bounding membrane as a dark line of uneven stain."""
    width = float(np.hypot(MEMBRANE_NM, 0.3 * min(fields.grid.voxel_nm[1:])))
    stained = np.zeros_like(density)
    cleft = np.float32(1.25 * width)  # two membranes side by side look like one thick line
    np.maximum(stained, np.exp(-((fields.inside / cleft) ** 2)), out=stained)
    for distance, weight in (
        (fields.lumen, 1.0),
        (fields.mito, 1.05),
        (fields.endo, 1.05),
        (fields.golgi, 1.0),
        (fields.vesicle, 1.0),
        (fields.droplet, 0.72),
    ):
        np.maximum(stained, np.float32(weight) * np.exp(-((distance / np.float32(width)) ** 2)), out=stained)
    stained *= 1 + 0.07 * fine
    # the plug of a nuclear pore
    plug = ramp(fields.pore, 34.0, 14.0) * ramp(np.abs(fields.nucleus + ENVELOPE_NM / 2), 34.0, 14.0)
    np.maximum(stained, 0.5 * plug, out=stained)
    return np.maximum(density, stained)
