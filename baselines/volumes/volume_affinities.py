"""Seeds of a volume's instances from affinities, component by component.

The maps of a volume lie on its own grid, affinities are between voxels of the network's. So pieces are found on a grid
with the coarser of the two voxels along each axis: where the volume is finer, at the voxels on which the centres of the
network's lie; where it is coarser, a map is the mean over the pairs that one voxel holds, of which at most one crosses
a border, and is read as the affinity of that one. Of volumes with the network's voxels this is exact.

A component is decided at once, so blocks change nothing. One that is too large for that is decided in blocks; then the
pieces of all blocks are the nodes of the same problem. Without long offsets that is exact, too; with them, a decision
inside a block goes before those across its faces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from baselines.affinities import Offset, Values, edges_of, is_short, offsets_in, pieces
from baselines.flood import drop_small
from baselines.mutex_watershed import mutex_watershed
from baselines.volumes.map_store import Box, MapStore, Shape
from baselines.volumes.volume_classes import boxes, create_volume, moved
from em_bench_eval.opened import Opened
from em_bench_eval.volume_io import open_volume

NETWORK_NM = "voxel_nm_of_the_network"  # of a store's settings


@dataclass(frozen=True)
class Axis:
    """One axis of the grid on which affinities are read; positions count from the volume's first voxel."""

    size: int  # voxels of the volume
    ratio: float  # edge of a place of the grid in voxels, at least 1

    @property
    def count(self) -> int:
        """Places whose centre lies in the volume."""
        return max(1, int(np.ceil(self.size / self.ratio - 0.5)))

    def voxels(self, start: int, stop: int) -> npt.NDArray[np.intp]:
        """The voxel at the centre of each place from ``start`` to ``stop``."""
        return np.minimum(((np.arange(start, stop) + 0.5) * self.ratio).astype(np.intp), self.size - 1)

    def places(self, start: int, stop: int) -> npt.NDArray[np.intp]:
        """The place that each voxel from ``start`` to ``stop`` lies in."""
        return np.minimum(((np.arange(start, stop) + 0.5) / self.ratio).astype(np.intp), self.count - 1)


@dataclass(frozen=True)
class AffinityGrid:
    """The affinities of a store, by boxes of a grid that covers the volume."""

    store: MapStore

    @cached_property
    def _network_nm(self) -> tuple[float, ...]:
        return tuple(self.store.settings.get(NETWORK_NM, tuple(self.store.voxel_size_nm)))

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """The grid along z, y and x."""
        sizes = zip(self.store.shape, self._network_nm, self.store.voxel_size_nm, strict=True)
        return tuple(Axis(size, max(1.0, network / own)) for size, network, own in sizes)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The maps, in the order of ``offsets``."""
        return tuple(name for name, offset in offsets_in(self.store.names).items() if len(offset) == 3)

    @cached_property
    def offsets(self) -> tuple[Offset, ...]:
        """Offsets in places of the grid; at least one step where the network's has any."""
        steps = [own * axis.ratio / network for own, axis, network in self._by_axis()]
        found = []
        for offset in offsets_in(self.names).values():
            scaled = [
                (1 if k > 0 else -1) * max(1, round(abs(k) / s)) if k else 0 for k, s in zip(offset, steps, strict=True)
            ]
            found.append(tuple(scaled))
        return tuple(found)

    @property
    def place_nm3(self) -> float:
        """Volume of a place of the grid."""
        return float(np.prod([own * axis.ratio for own, axis, _ in self._by_axis()]))

    def _by_axis(self) -> Iterator[tuple[float, Axis, float]]:
        return zip(self.store.voxel_size_nm, self.axes, self._network_nm, strict=True)

    def box(self, native: Box) -> Box:
        """The places that hold the voxels of a box."""
        z, y, x = (axis.places(side.start, side.stop) for axis, side in zip(self.axes, native, strict=True))
        return slice(z[0], z[-1] + 1), slice(y[0], y[-1] + 1), slice(x[0], x[-1] + 1)

    def read(self, source: Any, box: Box) -> npt.NDArray[Any]:
        """Sample what lies on the volume's grid in a box of places; ``source`` is read with a box of voxels."""
        places = [axis.voxels(side.start, side.stop) for axis, side in zip(self.axes, box, strict=True)]
        hull = tuple(slice(int(at[0]), int(at[-1]) + 1) for at in places)
        values = np.asarray(source(hull))
        if all(axis.ratio == 1.0 for axis in self.axes):
            return values
        return values[np.ix_(*(at - at[0] for at in places))]

    def values(self, k: int, box: Box) -> Values:
        """Affinities of ``offsets[k]`` in a box of places."""
        found: Values = self.read(lambda hull: self.store.read(hull, [self.names[k]])[0], box)
        offset = offsets_in(self.names)[self.names[k]]
        if not is_short(offset):
            return found
        pairs = max(
            1.0, *(own / network for (own, _, network), step in zip(self._by_axis(), offset, strict=True) if step)
        )
        return np.asarray(np.maximum(1 - (1 - found) * np.float32(pairs), 0), np.float32)

    def reader(self, box: Box) -> Callable[[int], Values]:
        """``values`` of one box, as ``affinities.pieces`` asks for them."""
        return lambda k: self.values(k, box)

    def spread(self, found: npt.NDArray[Any], box: Box, native: Box) -> npt.NDArray[Any]:
        """Give each voxel of a box of voxels what lies in its place; ``found`` covers ``box``."""
        if all(axis.ratio == 1.0 for axis in self.axes):
            return found
        places = [
            axis.places(voxels.start, voxels.stop) - side.start
            for axis, voxels, side in zip(self.axes, native, box, strict=True)
        ]
        return found[np.ix_(*places)]


@dataclass(frozen=True)
class LinkRule:
    """What ``affinities.pieces`` is asked, and the size below which a piece is left to its neighbours."""

    threshold: float
    repulsive: bool
    min_places: float


def seeds_at_once(
    grid: AffinityGrid, labels: Opened, number: int, native: Box, rule: LinkRule
) -> npt.NDArray[np.int32]:
    """Return the seeds 1..N of one component in its bounding box, (z, y, x) voxels."""
    box = grid.box(native)
    mask = grid.read(labels.__getitem__, box) == number
    found = pieces(mask.astype(np.int8), grid.offsets, grid.reader(box), rule.threshold, rule.repulsive)
    seeds = grid.spread(drop_small(found, rule.min_places), box, native)
    return np.where(labels[native] == number, seeds, 0).astype(np.int32)


def seeds_by_block(
    grid: AffinityGrid, labels: Opened, number: int, native: Box, rule: LinkRule, folder: Path
) -> tuple[Opened, int]:
    """Write the seeds of a component that is too large to be decided at once; return them, and their number."""
    box = grid.box(native)
    corner = [side.start for side in box]
    shape: Shape = (box[0].stop - corner[0], box[1].stop - corner[1], box[2].stop - corner[2])
    fragments = create_volume(folder / "fragments.zarr", shape, np.uint32)
    sizes: list[npt.NDArray[np.int64]] = []
    starts: list[npt.NDArray[np.int64]] = []  # of each fragment, its first place in the order of the whole box
    count = 0
    for part in boxes(shape):
        here = moved(part, corner)
        mask = grid.read(labels.__getitem__, here) == number
        found = pieces(mask.astype(np.int8), grid.offsets, grid.reader(here), rule.threshold, rule.repulsive)
        flat = found.reshape(-1)
        ids, first = np.unique(flat, return_index=True)
        place = np.unravel_index(first[ids > 0], found.shape)
        starting = [at + side.start for at, side in zip(place, part, strict=True)]
        starts.append(np.ravel_multi_index(starting, shape).astype(np.int64))
        sizes.append(np.bincount(flat)[1:])
        fragments[part].write(np.where(found > 0, found + count, 0).astype(np.uint32)).result()
        count += len(sizes[-1])
    size, start = np.concatenate([np.zeros(1, np.int64), *sizes]), np.concatenate([np.full(1, -1), *starts])
    edges = _fragment_edges(grid, fragments, shape, corner, rule)
    piece_of = mutex_watershed(count + 1, *edges)
    total = np.bincount(piece_of, size, count + 1)
    begins = np.full(count + 1, np.iinfo(np.int64).max)
    np.minimum.at(begins, piece_of, start)
    kept = np.flatnonzero((total >= max(1.0, rule.min_places)) & (np.arange(count + 1) > 0))
    kept = kept[np.argsort(begins[kept], kind="stable")]
    seed_of = np.zeros(count + 1, np.uint32)
    seed_of[kept] = np.arange(1, len(kept) + 1)
    seed_of[1:] = seed_of[piece_of[1:]]

    whole: Shape = (
        native[0].stop - native[0].start,
        native[1].stop - native[1].start,
        native[2].stop - native[2].start,
    )
    seeds = create_volume(folder / "seeds.zarr", whole, np.uint32)
    for part in boxes(whole):
        voxels = moved(part, [side.start for side in native])
        places = grid.box(voxels)
        inside = moved(places, [-at for at in corner])
        found = grid.spread(seed_of[np.asarray(fragments[inside].read().result())], places, voxels)
        seeds[part].write(np.where(labels[voxels] == number, found, 0).astype(np.uint32)).result()
    return open_volume(folder / "seeds.zarr"), len(kept)


def _fragment_edges(
    grid: AffinityGrid, fragments: Any, shape: Shape, corner: list[int], rule: LinkRule
) -> tuple[Any, Any, Values, npt.NDArray[np.bool_]]:
    """Edges between fragments; of those that join two, and of those that keep them apart, only the strongest counts."""
    reach = [max(abs(offset[axis]) for offset in grid.offsets) for axis in range(3)]
    strongest: dict[bool, tuple[Any, Any]] = {
        True: (np.zeros(0, np.uint64), np.zeros(0)),
        False: (np.zeros(0, np.uint64), np.zeros(0)),
    }
    for part in boxes(shape):
        wider = tuple(
            slice(max(0, s.start - by), min(size, s.stop + by)) for s, by, size in zip(part, reach, shape, strict=True)
        )
        ids = np.asarray(fragments[wider].read().result())
        inner = tuple(slice(s.start - w.start, s.stop - w.start) for s, w in zip(part, wider, strict=True))
        if not ids[inner].any():
            continue
        at = moved(wider, corner)  # type: ignore[arg-type]
        first, second, strength, joins = edges_of(
            ids, ids > 0, grid.offsets, grid.reader(at), rule.threshold, rule.repulsive
        )
        low, high = np.minimum(first, second).astype(np.uint64), np.maximum(first, second).astype(np.uint64)
        pair = low << np.uint64(32) | high
        for kind, (known, best) in strongest.items():
            pairs = np.concatenate([known, pair[joins == kind]])
            values = np.concatenate([best, strength[joins == kind]])
            names, place = np.unique(pairs, return_inverse=True)
            most = np.zeros(len(names))
            np.maximum.at(most, place, values)
            strongest[kind] = names, most
    pairs, values = (np.concatenate([strongest[kind][k] for kind in (True, False)]) for k in (0, 1))
    joins = np.repeat([True, False], [len(strongest[True][0]), len(strongest[False][0])])
    low, high = pairs >> np.uint64(32), pairs & np.uint64(0xFFFFFFFF)
    return low.astype(np.int64), high.astype(np.int64), values, joins
