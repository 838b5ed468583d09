"""The endoplasmic reticulum: one network of tubules and sheets that starts at the outer nuclear membrane.

Tubules follow shortest paths through the free cytoplasm, from a few places on the nucleus to scattered targets: paths
of one tree share their trunks, which makes the three-way junctions of a real network. A second tree adds loops, and
sheets, which follow the nucleus or wrap an organelle, sit on nodes of the network. So all of it is connected.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy import ndimage, sparse
from scipy.sparse.csgraph import dijkstra

from dataset_builder.phantom.cell import Cell
from dataset_builder.phantom.grid import BoolArray, FloatArray, Grid
from dataset_builder.phantom.shapes import FAR_NM, point_distance, segment_distance

STEP_NM = 28.0  # of the grid on which tubules are routed
ROOT_DEPTH_NM = -18.0  # tubules begin in the perinuclear space
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Network:
    """Tubules as a graph of nodes in nm; ``edges`` holds pairs of nodes."""

    nodes: npt.NDArray[np.float64]  # (n, 3)
    edges: IntArray  # (m, 2)
    radii: FloatArray  # (n,)


def route(cell: Cell) -> Network:
    """Route the tubules of a cell."""
    rng = cell.stream("er")
    scale = max(cell.size, 0.4)
    step = STEP_NM * scale
    inner = np.maximum(np.floor((cell.box_nm - 16) / step).astype(int), 1) + 1
    grid = Grid((int(inner[0]), int(inner[1]), int(inner[2])), (step,) * 3, (8.0,) * 3)
    points = grid.points(np.argwhere(np.ones(grid.shape, dtype=bool)))
    depth = cell.nucleus.distance(grid.axes()).ravel()
    clear = np.minimum(cell.coarse.sample(cell.free, points), cell.coarse.sample(cell.free_of_mitos, points))
    near_nucleus = (depth > ROOT_DEPTH_NM - step) & (depth < 60 * scale)
    border = cell.border.distance(grid.axes()).ravel()
    others = np.where(near_nucleus, np.minimum(cell.coarse.sample(cell.free_of_mitos, points), border), clear)
    open_cells = (others > 44 * scale) & (depth > ROOT_DEPTH_NM - step)
    roots = _spread(rng, points, open_cells & (depth < ROOT_DEPTH_NM + step), 520 * scale, 40)
    targets = _spread(rng, points, open_cells & (depth > 90 * scale), 215 * scale, 4000)
    if not len(roots) or not len(targets):
        return Network(np.empty((0, 3)), np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.float32))
    hills = np.where(depth < 70 * scale, 3.0, 0.0)
    cost = np.exp(1.5 * cell.noise("route", 85.0 * scale).on(grid.axes()).ravel()) + hills
    first = _tree(cost, grid, open_cells, roots, targets)
    # the second tree prefers the trunks of the first but differs in the twigs: that closes loops
    cost = np.exp(1.5 * cell.noise("detour", 85.0 * scale).on(grid.axes()).ravel()) + hills
    cost[first.ravel()] *= 0.4
    second = _tree(cost, grid, open_cells, roots[: max(1, len(roots) // 2)], targets[::3])
    pairs = np.unique(np.sort(np.concatenate([first, second]), axis=1), axis=0)
    used, compact = np.unique(pairs, return_inverse=True)
    compact = compact.reshape(pairs.shape)
    nodes = _smooth(points[used], compact, np.isin(used, roots))
    sway = np.stack([cell.noise(f"sway{axis}", 70.0).on_points(nodes) for axis in range(3)], axis=1)
    nodes += 12 * scale * sway * ~np.isin(used, roots)[:, None]
    radii = 25 + 5 * cell.noise("calibre", 120.0).on_points(nodes)
    return Network(nodes, compact, np.clip(radii, 20, 34).astype(np.float32) * np.float32(scale))


def _spread(
    rng: np.random.Generator, points: npt.NDArray[np.float64], mask: BoolArray, apart: float, most: int
) -> IntArray:
    """Random members of ``mask`` that are at least ``apart`` nm from each other."""
    chosen: list[int] = []
    taken = np.empty((0, 3))
    for index in rng.permutation(np.flatnonzero(mask))[:20000]:
        if len(chosen) == most:
            break
        if not len(taken) or np.min(np.sum((taken - points[index]) ** 2, axis=1)) > apart**2:
            chosen.append(int(index))
            taken = np.vstack([taken, points[index]])
    return np.array(chosen, dtype=np.int64)


def _tree(cost: FloatArray, grid: Grid, open_cells: BoolArray, roots: IntArray, targets: IntArray) -> IntArray:
    """Edges (pairs of grid cells) of the cheapest paths from any root to every target."""
    number = np.arange(len(cost)).reshape(grid.shape)
    rows, columns, weights = [], [], []
    for offset in product((-1, 0, 1), repeat=3):
        if offset <= (0, 0, 0):
            continue
        here = tuple(slice(max(0, -o), n - max(0, o)) for o, n in zip(offset, grid.shape, strict=True))
        there = tuple(slice(max(0, o), n - max(0, -o)) for o, n in zip(offset, grid.shape, strict=True))
        a, b = number[here].ravel(), number[there].ravel()
        both = open_cells[a] & open_cells[b]
        a, b = a[both], b[both]
        rows.append(a)
        columns.append(b)
        weights.append(np.sqrt(sum(o * o for o in offset)) * (cost[a] + cost[b]))
    row, column, weight = (np.concatenate(part) for part in (rows, columns, weights))
    graph = sparse.coo_matrix((weight, (row, column)), shape=(len(cost), len(cost))).tocsr()
    _, before, _ = dijkstra(graph, directed=False, indices=roots, return_predecessors=True, min_only=True)
    edges: set[tuple[int, int]] = set()
    for target in targets:
        node = int(target)
        while before[node] >= 0 and (int(before[node]), node) not in edges:
            edges.add((int(before[node]), node))
            node = int(before[node])
    return np.array(sorted(edges), dtype=np.int64).reshape(-1, 2)


def _smooth(nodes: npt.NDArray[np.float64], edges: IntArray, fixed: BoolArray) -> npt.NDArray[np.float64]:
    """Relax the zigzag of grid paths: each node moves towards the mean of its neighbours, junctions stay junctions."""
    degree = np.bincount(edges.ravel(), minlength=len(nodes))
    moving = (degree >= 2) & ~fixed
    for _ in range(6):
        total = np.zeros_like(nodes)
        np.add.at(total, edges[:, 0], nodes[edges[:, 1]])
        np.add.at(total, edges[:, 1], nodes[edges[:, 0]])
        nodes = np.where(moving[:, None], 0.4 * nodes + 0.6 * total / np.maximum(degree, 1)[:, None], nodes)
    return nodes


def tubule_distance(network: Network, grid: Grid) -> FloatArray:
    """Signed distance to the tubules on a grid, nm."""
    distance = np.full(grid.shape, FAR_NM, dtype=np.float32)
    for a, b in network.edges:
        start, end = network.nodes[a], network.nodes[b]
        box = grid.box(np.minimum(start, end) - 80, np.maximum(start, end) + 80)
        if box is not None:
            one = segment_distance(grid.axes(box), start, end, float(network.radii[a]), float(network.radii[b]))
            distance[box] = np.minimum(distance[box], one)
    return distance


def add_sheets(
    cell: Cell, network: Network, grid: Grid, distance: FloatArray, nucleus: FloatArray, organelles: FloatArray
) -> None:
    """Merge sheets into ``distance`` in place; ``nucleus`` and ``organelles`` are distances on the same grid."""
    rng = cell.stream("sheets")
    if not len(network.nodes):
        return
    scale = max(cell.size, 0.4)
    at_nucleus = grid.sample(nucleus, network.nodes)
    at_organelles = grid.sample(organelles, network.nodes)
    bend, holes, edge = (cell.noise(f"sheet{k}", s * scale) for k, s in enumerate((250.0, 105.0, 150.0)))
    volume = float(np.prod(cell.box_nm + np.array([200.0 * scale, 0, 0]))) / 1e9 / scale**3
    wanted = max(4, round(3.4 * volume))
    centres: list[tuple[int, str]] = []
    for index in rng.permutation(len(network.nodes)):
        kind = "wrap" if len(centres) % 3 == 2 else "parallel"
        far = at_nucleus[index] > 120 * scale and at_nucleus[index] < 900
        fits = 34 < at_organelles[index] < 75 if kind == "wrap" else at_organelles[index] > 60 * scale
        apart = all(
            np.sum((network.nodes[index] - network.nodes[other]) ** 2) > (130 * scale) ** 2 for other, _ in centres
        )
        if far and fits and apart:
            centres.append((int(index), kind))
        if len(centres) == wanted:
            break
    for index, kind in centres:
        centre, reach = network.nodes[index], scale * float(rng.uniform(190, 480))
        box = grid.box(centre - reach - 120, centre + reach + 120)
        if box is None:
            continue
        axes = grid.axes(box)
        if kind == "wrap":
            across = organelles[box] - at_organelles[index]
        else:
            bent = nucleus[box] + 50 * scale * bend.on(axes)
            level = float(at_nucleus[index]) + 50 * scale * float(bend.on_points(centre[None])[0])
            across = bent - np.float32(level)
        rim = point_distance(axes, centre) - reach + 60 * scale * edge.on(axes)
        holed = (holes.on(axes) - 1.15) * 45 * scale
        near_centre = point_distance(axes, centre) - 70 * scale
        lateral = np.maximum(rim, holed)
        if across.shape[0] > 1:  # no wide sheets face-on: they are rare and look like holes
            steep = np.abs(np.gradient(across, grid.voxel_nm[0], axis=0))
            lateral = np.maximum(lateral, (steep - 0.65) * 150)
        lateral = np.minimum(lateral, near_centre)
        half = 19 * max(scale, 0.8)
        flat = np.maximum(lateral + half, 0)
        sheet = np.sqrt(across * across + flat * flat) - half
        sheet = np.maximum(sheet, 14 - organelles[box])
        distance[box] = np.minimum(distance[box], sheet)


def main_network(body: BoolArray, nucleus: BoolArray) -> BoolArray:
    """Return the largest 26-connected part of the ER voxels, of those that touch the nucleus if any does."""
    everywhere = np.ones((3, 3, 3), dtype=bool)
    labels, count = ndimage.label(body, structure=everywhere)
    if count < 2:
        return body
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    touching = np.unique(labels[ndimage.binary_dilation(nucleus, structure=everywhere) & body])
    best = touching[np.argmax(sizes[touching])] if len(touching) else np.argmax(sizes)
    return np.asarray(labels == best)


def drop_crumbs(distance: FloatArray, body: BoolArray, main: BoolArray) -> None:
    """Take what is in ``body`` but not in ``main`` out of the distance field, in place."""
    crumbs = ndimage.binary_dilation(body & ~main, iterations=3) & ~main
    distance[crumbs & (distance < 40)] = 40
