"""Sample a cell on a voxel grid: signed distance fields of everything, and which voxel belongs to which instance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from dataset_builder.phantom import er
from dataset_builder.phantom.cell import PAD_NM, Cell
from dataset_builder.phantom.grid import BoolArray, FloatArray, Grid, soft_min
from dataset_builder.phantom.shapes import FAR_NM, Globule, GolgiStack, Mitochondrion, point_distance
from em_bench_eval.schema import Organelle

LABEL_NM = 4.0  # labels include the outer half of the bounding membrane
ENVELOPE_NM = 34.0  # from the outer to the inner nuclear membrane
PORE_NM = 44.0  # radius of the gap that a nuclear pore makes in the perinuclear space
EXTRACELLULAR_NM = 11.0  # width of the cleft between neighbouring cells


@dataclass
class Fields:
    """Distances in nm on one grid, float32 ``(z, y, x)``, negative inside unless stated otherwise."""

    grid: Grid
    nucleus: FloatArray  # to the outer nuclear membrane
    inside: FloatArray  # depth below the plasma membrane of this cell or a neighbouring process; negative outside
    own: FloatArray  # depth below this cell's plasma membrane
    process: npt.NDArray[np.int32]  # which neighbouring process, where not in this cell
    mito: FloatArray
    endo: FloatArray
    golgi: FloatArray
    droplet: FloatArray
    vesicle: FloatArray
    lumen: FloatArray  # to the common lumen of ER and nuclear envelope
    er: FloatArray
    pore: FloatArray  # to the axis of the nearest nuclear pore, close to the envelope only
    mito_id: npt.NDArray[np.int32]
    endo_id: npt.NDArray[np.int32]
    labels: npt.NDArray[np.uint32] = field(init=False)  # instance ids, 0 = background
    organelle_of: dict[int, Organelle] = field(default_factory=dict)


def sample(cell: Cell, grid: Grid, processes_per_um2: float, crowding: float) -> Fields:
    """Sample ``cell``; ``processes_per_um2`` and ``crowding`` (0..1) describe what surrounds it."""
    axes = grid.axes()
    nucleus = cell.nucleus.distance(axes)
    own = cell.border.distance(axes)
    mito, mito_id = _nearest(grid, cell.mitos, shared_walls=True)
    endo, endo_id = _nearest(grid, cell.endos)
    golgi, golgi_id = _nearest(grid, cell.golgis)
    droplet, _ = _nearest(grid, cell.droplets)
    others = np.minimum(np.minimum(mito, endo), np.minimum(golgi, droplet))
    np.minimum(others, own - 8, out=others)

    network = er.route(cell)
    reticulum = er.tubule_distance(network, grid)
    er.add_sheets(cell, network, grid, reticulum, nucleus, others)
    np.maximum(reticulum, 11 - others, out=reticulum)
    body = (reticulum < LABEL_NM) & (nucleus >= LABEL_NM)
    network_body = er.main_network(body, nucleus < LABEL_NM)
    er.drop_crumbs(reticulum, body, network_body)
    body = network_body
    envelope, pore = _envelope(cell, grid, nucleus)
    lumen = np.minimum(reticulum, envelope)
    lumen[nucleus < -ENVELOPE_NM / 2] = envelope[nucleus < -ENVELOPE_NM / 2]

    inside, process = _neighbours(cell, grid, own, processes_per_um2, crowding)
    vesicle = _vesicles(cell, grid, np.minimum(np.minimum(others, inside), np.minimum(nucleus, reticulum)), golgi, own)
    fields = Fields(
        grid,
        nucleus,
        inside,
        own,
        process,
        mito,
        endo,
        golgi,
        droplet,
        vesicle,
        lumen,
        reticulum,
        pore,
        mito_id,
        endo_id,
    )
    fields.labels = np.zeros(grid.shape, dtype=np.uint32)
    number = 0
    # later ones own contested voxels
    for organelle, mask, ids in (
        (Organelle.ER, body, None),
        (Organelle.GOLGI, golgi < LABEL_NM, golgi_id),
        (Organelle.ENDO, endo < LABEL_NM, endo_id),
        (Organelle.MITO, mito < LABEL_NM, mito_id),
        (Organelle.NUCLEUS, nucleus < LABEL_NM, None),
    ):
        owner = np.where(mask & (own > 0), 1 if ids is None else ids + 1, 0)
        for local in np.unique(owner[owner > 0]):
            number += 1
            fields.labels[owner == local] = number
            fields.organelle_of[number] = organelle
    return fields


def _nearest(
    grid: Grid, shapes: Sequence[Mitochondrion | Globule | GolgiStack], shared_walls: bool = False
) -> tuple[FloatArray, npt.NDArray[np.int32]]:
    """Distance to the nearest of ``shapes`` and its index; with ``shared_walls``, overlaps are split half-way."""
    nearest = np.full(grid.shape, FAR_NM, dtype=np.float32)
    second = nearest.copy() if shared_walls else None
    index = np.full(grid.shape, -1, dtype=np.int32)
    for number, shape in enumerate(shapes):
        box = grid.box(*shape.bounds(80))
        if box is None:
            continue
        distance = np.minimum(shape.distance(grid.axes(box)), FAR_NM)
        closer = distance < nearest[box]
        if second is not None:
            second[box] = np.where(closer, nearest[box], np.minimum(second[box], distance))
        nearest[box] = np.where(closer, distance, nearest[box])
        index[box] = np.where(closer, number, index[box])
    if second is not None:
        np.maximum(nearest, (nearest - second) / 2, out=nearest)
    return nearest, index


def _envelope(cell: Cell, grid: Grid, nucleus: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Distance to the perinuclear space, which nuclear pores interrupt, and the distance to the nearest pore."""
    swell = np.clip(4 * cell.noise("envelope", 210.0).on(grid.axes()), -7, 9)
    shell = np.abs(nucleus + ENVELOPE_NM / 2) - ENVELOPE_NM / 2 - swell
    pore = np.full(grid.shape, FAR_NM, dtype=np.float32)
    rng = cell.stream("pores")
    surface = cell.coarse.points(np.argwhere(np.abs(cell.nucleus.distance(cell.coarse.axes()) + ENVELOPE_NM / 2) < 12))
    pores: list[npt.NDArray[np.float64]] = []
    for point in surface[rng.permutation(len(surface))]:
        if not pores or np.min(np.sum((np.array(pores) - point) ** 2, axis=1)) > (190 * max(cell.size, 0.7)) ** 2:
            pores.append(point)
    if pores:
        # project onto the middle of the envelope, so that pores run straight through it
        at = np.array(pores)
        outward = at - cell.nucleus.centre
        outward /= np.sqrt(np.sum(outward**2, axis=1, keepdims=True))
        near = np.abs(nucleus + ENVELOPE_NM / 2) < 100
        z, y, x = grid.lines()
        k, j, i = np.nonzero(near)
        here = np.stack([z[k], y[j], x[i]], axis=1).astype(np.float64)
        _, which = cKDTree(at).query(here)
        offset = here - at[which]
        along = np.sum(offset * outward[which], axis=1, keepdims=True)
        pore[near] = np.sqrt(np.sum((offset - along * outward[which]) ** 2, axis=1))
    return np.maximum(shell, PORE_NM - pore), pore


def _neighbours(
    cell: Cell, grid: Grid, own: FloatArray, per_um2: float, crowding: float
) -> tuple[FloatArray, npt.NDArray[np.int32]]:
    """Depth inside this cell or a neighbouring process, and the index of the process.

    Processes are the cells of a warped Voronoi diagram with a cleft in between; at low ``crowding`` most of them are
    missing or shrunk to filopodia in empty resin.
    """
    inside, process = own.copy(), np.full(grid.shape, -1, dtype=np.int32)
    outside = own < 0
    if not outside.any():
        return inside, process
    rng = cell.stream("processes")
    scale = max(cell.size, 0.5)
    stretch = np.array([0.35, 1.0, 1.0])  # processes run along z, more or less
    low, high = np.full(3, -PAD_NM), cell.box_nm + PAD_NM
    area = float(np.prod((high - low)[1:])) / 1e6 / scale**2
    layers = max(2, int((high - low)[0] * stretch[0] / (450 * scale)) + 1)
    seeds = rng.uniform(low, high, (max(4, int(per_um2 * area) * layers), 3))
    # half of them gather in bundles of thin processes; the rest are wide
    bundles = rng.uniform(low, high, (max(1, len(seeds) // 12), 3))
    bundled = np.flatnonzero(rng.random(len(seeds)) < 0.5)
    seeds[bundled] = bundles[bundled % len(bundles)] + 130 * scale * rng.standard_normal((len(bundled), 3))
    seeds *= stretch
    slow = [cell.noise(f"process-bend{k}", 230.0 * scale) for k in range(2)]
    quick = [cell.noise(f"process-wave{k}", 95.0 * scale) for k in range(2)]
    axes = grid.axes()
    k, j, i = np.nonzero(outside)
    z, y, x = grid.lines()
    here = np.stack([z[k], y[j], x[i]], axis=1).astype(np.float64)
    warps = [scale * (55 * bend.on(axes) + 12 * wave.on(axes)) for bend, wave in zip(slow, quick, strict=True)]
    for axis, warp in zip((1, 2), warps, strict=True):
        here[:, axis] += warp[outside]
    here *= stretch
    distance, which = cKDTree(seeds).query(here, k=4)
    gradients = [
        [
            np.gradient(warp, grid.voxel_nm[axis], axis=axis)[outside] if grid.shape[axis] > 1 else 0.0
            for axis in range(3)
        ]
        for warp in warps
    ]
    wall = -own[outside] - EXTRACELLULAR_NM
    for other in range(1, 4):
        across = seeds[which[:, other]] - seeds[which[:, 0]]
        apart = np.sqrt(np.sum(across**2, axis=1))
        # the warp stretches distances: divide by its gradient across the wall, or membranes would vary in width
        across = across / apart[:, None] * stretch
        slopes = [across[:, k] + across[:, 1] * gradients[0][k] + across[:, 2] * gradients[1][k] for k in range(3)]
        slope = np.sqrt(np.clip(sum(s * s for s in slopes), 0.1, 6.0))
        between = (distance[:, other] ** 2 - distance[:, 0] ** 2) / (2 * apart) / slope - EXTRACELLULAR_NM / 2
        wall = soft_min(wall, between, 26.0 * scale)  # rounded corners
    present = rng.random(len(seeds)) < crowding
    if crowding < 1:
        wall = soft_min(wall, rng.uniform(60, 210, len(seeds))[which[:, 0]] * scale - distance[:, 0], 120.0 * scale)
    wall = np.where(present[which[:, 0]], wall, -FAR_NM).astype(np.float32)
    process[outside] = which[:, 0]
    inside[outside] = np.maximum(own[outside], wall)
    return inside, process


def _vesicles(cell: Cell, grid: Grid, room: FloatArray, golgi: FloatArray, own: FloatArray) -> FloatArray:
    """Distance to small transport vesicles, few in the cytosol, many at the Golgi and in processes."""
    distance = np.full(grid.shape, FAR_NM, dtype=np.float32)
    rng = cell.stream("vesicles")
    low, high = np.zeros(3), cell.box_nm
    volume = float(np.prod(high)) / 1e9
    tries = rng.uniform(low, high, (int(420 * volume) + 40, 3))
    radii = rng.uniform(18, 34, len(tries))
    keep = grid.sample(room, tries) > radii + 6
    keep &= (grid.sample(golgi, tries) < 110) | (grid.sample(own, tries) < 0) | (rng.random(len(tries)) < 0.3)
    for centre, radius in zip(tries[keep], radii[keep], strict=True):
        box = grid.box(centre - radius - 40, centre + radius + 40)
        if box is not None:
            distance[box] = np.minimum(distance[box], point_distance(grid.axes(box), centre) - np.float32(radius))
    return distance


def endo_interior(cell: Cell, fields: Fields, number: int) -> tuple[tuple[slice, slice, slice], BoolArray] | None:
    """Sub-box of one endosome and its voxels there."""
    box = fields.grid.box(*cell.endos[number].bounds(10))
    return None if box is None else (box, (fields.endo_id[box] == number) & (fields.endo[box] < 0))
