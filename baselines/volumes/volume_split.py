"""Touching instances of a whole volume taken apart, component by component, by the methods of ``baselines.decode``.

A method finds seeds and says how they grow (``Landscape``). Neither crosses from one component to another, so each is
cut out with its bounding box and done by itself: exactly what doing the whole volume at once would give, whatever the
blocks. A component whose box is larger than ``LARGEST_BOX`` voxels is flooded block by block from seeds that are found
in all of it (``flood_blocks``).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from baselines.decode import SEED_SHARE, Decoder, depth_maps, depth_of, seed_depth
from baselines.volumes.map_store import Box, MapStore
from baselines.volumes.volume_affinities import AffinityGrid, LinkRule, seeds_at_once, seeds_by_block
from baselines.volumes.volume_classes import Work, boxes, create_volume, moved
from em_bench_eval.opened import Opened
from em_bench_eval.schema import Organelle
from em_bench_eval.volume_io import open_volume
from lpa.blockwise import label_zarr

LARGEST_BOX = 1 << 25  # voxels; flooding takes about 30 bytes for each
HALO = 48  # voxels that a block of a larger component sees of its neighbours
NEIGHBOURS = np.ones((3, 3, 3), bool)
SMOOTHING = 1.0  # standard deviation in voxels of the finest axis, as in images
REACH = 4  # voxels that the smoothing looks at: four standard deviations


@dataclass(frozen=True)
class Pieces:
    """The pieces 1..n of one component, inside its bounding box."""

    labels: Any  # (z, y, x): numpy, or an opened volume
    start: tuple[int, int, int]
    voxels: npt.NDArray[np.int64]  # of each piece
    probability: npt.NDArray[np.float64]  # sum over each piece


class Landscape(Protocol):
    """What is flooded: seeds, and how far from them a voxel is."""

    @property
    def share_of_box(self) -> int:
        """What a component's seeds take in memory, as a multiple of what flooding takes."""
        ...

    @property
    def keeps_seedless(self) -> bool:
        """True if a component without a seed is one instance."""
        ...

    def height(self, box: Box) -> npt.NDArray[np.float32]:
        """Seeds grow over low voxels first; the same values whatever the box."""
        ...

    def seeds(self, number: int, box: Box) -> npt.NDArray[np.int32]:
        """Seeds 1..N of a component in its bounding box, in the order of their first voxels."""
        ...

    def seeds_on_disk(self, number: int, box: Box, folder: Path) -> tuple[Opened, int]:
        """The same block by block, and their number."""
        ...


@dataclass(frozen=True)
class Depth:
    """Seeds are connected places deep inside, by the distance map or by the boundary map."""

    store: MapStore
    labels: Opened  # components
    organelle: Organelle
    method: str
    threshold: float
    share_of_box: int = 1

    @property
    def keeps_seedless(self) -> bool:
        """What is thin is all boundary, and still an instance."""
        return self.method == "boundary"

    def height(self, box: Box) -> npt.NDArray[np.float32]:
        """The depth, smoothed, downwards."""
        return -self._depth(box)

    def _depth(self, box: Box) -> npt.NDArray[np.float32]:
        shape = self.store.shape
        wider = tuple(
            slice(max(0, s.start - REACH), min(size, s.stop + REACH)) for s, size in zip(box, shape, strict=True)
        )
        finest = min(self.store.voxel_size_nm)
        sigma = [SMOOTHING * finest / nm for nm in self.store.voxel_size_nm]
        names = depth_maps(self.method, self.organelle)
        maps = dict(zip(names, self.store.read(wider, names), strict=True))
        smooth = ndimage.gaussian_filter(depth_of(self.method, self.organelle, maps), sigma)
        inner = tuple(slice(s.start - w.start, s.stop - w.start) for s, w in zip(box, wider, strict=True))
        return np.asarray(smooth[inner])

    def seeds(self, number: int, box: Box) -> npt.NDArray[np.int32]:
        """Connected deep places."""
        deep = (self._depth(box) >= self.threshold) & (self.labels[box] == number)
        return np.asarray(ndimage.label(deep, structure=NEIGHBOURS)[0], np.int32)

    def seeds_on_disk(self, number: int, box: Box, folder: Path) -> tuple[Opened, int]:
        """The same, connected over all blocks."""
        corner = (box[0].start, box[1].start, box[2].start)
        shape = (box[0].stop - corner[0], box[1].stop - corner[1], box[2].stop - corner[2])
        found = create_volume(folder / "found.zarr", shape, np.uint8)
        for part in boxes(shape):
            here = moved(part, corner)
            deep = self._depth(here) >= self.threshold
            found[part].write((deep & (self.labels[here] == number)).astype(np.uint8)).result()
        report = label_zarr(folder / "found.zarr", folder / "seeds.zarr", None, 26, "compact", progress=False)
        return open_volume(folder / "seeds.zarr"), int(report.instances.get(1, 0))


@dataclass(frozen=True)
class Links:
    """Seeds are large pieces that affinities hold together; what is left over goes to the nearest."""

    grid: AffinityGrid
    labels: Opened
    rule: LinkRule
    keeps_seedless: bool = False
    share_of_box: int = 8  # a voxel has many edges

    def height(self, box: Box) -> npt.NDArray[np.float32]:
        """Flat: step by step."""
        return np.zeros([side.stop - side.start for side in box], np.float32)

    def seeds(self, number: int, box: Box) -> npt.NDArray[np.int32]:
        """See ``volume_affinities``."""
        return seeds_at_once(self.grid, self.labels, number, box, self.rule)

    def seeds_on_disk(self, number: int, box: Box, folder: Path) -> tuple[Opened, int]:
        """See ``volume_affinities``."""
        return seeds_by_block(self.grid, self.labels, number, box, self.rule, folder)


def _depth(
    store: MapStore, labels: Opened, organelle: Organelle, decoder: Decoder, method: str, min_nm3: float
) -> Landscape:
    return Depth(store, labels, organelle, method, seed_depth(method, decoder))


def _links(
    store: MapStore, labels: Opened, organelle: Organelle, decoder: Decoder, method: str, min_nm3: float
) -> Landscape:
    grid = AffinityGrid(store)
    return Links(grid, labels, LinkRule(decoder.min_affinity, decoder.repulsive, SEED_SHARE * min_nm3 / grid.place_nm3))


# components of the methods that are not listed are not split
LANDSCAPES: Mapping[str, Callable[[MapStore, Opened, Organelle, Decoder, str, float], Landscape]] = {
    "affinity": _links,
    "distance": _depth,
    "boundary": _depth,
}


@dataclass(frozen=True)
class Cut:
    """How the components of one organelle are cut, and what is measured of the pieces."""

    landscape: Landscape
    store: MapStore
    labels: Opened
    probability: str  # name of the map

    def measured(self, pieces: npt.NDArray[Any], box: Box, count: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Voxels and summed probability of the pieces 1..count in a box."""
        probability = self.store.read(box, [self.probability])[0]
        flat = pieces.reshape(-1)
        voxels = np.bincount(flat, minlength=count + 1)[1:]
        return voxels, np.bincount(flat, probability.reshape(-1).astype(np.float64), count + 1)[1:]


def split_component(
    number: int, start: Sequence[int], stop: Sequence[int], cut: Cut, work: Work, limit: int = LARGEST_BOX
) -> Pieces:
    """Cut one component (its number, and bounding box) at the seams between its seeds.

    Pieces are numbered in the raster order of their seeds; none if there is no seed.
    """
    box: Box = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))  # type: ignore[assignment]
    corner = (box[0].start, box[1].start, box[2].start)
    if np.prod(np.subtract(stop, start)) * cut.landscape.share_of_box > limit:
        return flood_blocks(number, box, cut, work)
    mask = cut.labels[box] == number
    seeds = cut.landscape.seeds(number, box)
    count = int(seeds.max(initial=0))
    if count > 1:
        labels = flood(cut.landscape.height(box), seeds, mask)
    else:
        count = max(count, int(cut.landscape.keeps_seedless))
        labels = mask.astype(np.int32) * np.int32(count)
    return Pieces(labels, corner, *cut.measured(labels, box, count))


def flood(
    height: npt.NDArray[np.float32], seeds: npt.NDArray[Any], mask: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int32]:
    """Grow seeds over a mask, low voxels first."""
    from skimage.segmentation import watershed

    grown: npt.NDArray[np.int32] = watershed(height, seeds, connectivity=NEIGHBOURS, mask=mask).astype(np.int32)
    return grown


def flood_blocks(number: int, box: Box, cut: Cut, work: Work, halo: int = HALO) -> Pieces:
    """Flood a component that is too large to be flooded at once.

    Seeds are found over all blocks first, so their numbers agree everywhere. Blocks are flooded in raster order
    from the seeds in sight and from what earlier blocks have decided; a voxel whose seed is further away than ``halo``
    waits for the next round, when its neighbours are known. Away from the seams of blocks the result is that of
    flooding all at once; at a seam the boundary between two pieces may lie some voxels off.
    """
    corner = (box[0].start, box[1].start, box[2].start)
    shape = (box[0].stop - corner[0], box[1].stop - corner[1], box[2].stop - corner[2])
    folder = work.folder / f"component-{number}"
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    seeds, count = cut.landscape.seeds_on_disk(number, box, folder)
    pieces = create_volume(folder / "pieces.zarr", shape, np.uint32)
    if count == 0 and cut.landscape.keeps_seedless:
        count = 1
        for part in boxes(shape):
            pieces[part].write((cut.labels[moved(part, corner)] == number).astype(np.uint32)).result()
    waiting = count > 0
    while waiting:
        waiting = _flood_round(number, corner, shape, cut, seeds, pieces, halo)
    voxels, probability = np.zeros(count, np.int64), np.zeros(count)
    for part in boxes(shape):
        sums = cut.measured(np.asarray(pieces[part].read().result()), moved(part, corner), count)
        voxels, probability = voxels + sums[0], probability + sums[1]
    return Pieces(open_volume(folder / "pieces.zarr"), corner, voxels, probability)


def _flood_round(
    number: int,
    corner: tuple[int, int, int],
    shape: tuple[int, int, int],
    cut: Cut,
    seeds: Opened,
    pieces: Any,
    halo: int,
) -> bool:
    """Flood every block once; return whether a further round can decide more."""
    undecided = decided = 0
    for part in boxes(shape):
        before = np.asarray(pieces[part].read().result())
        own = cut.labels[moved(part, corner)] == number
        if not (own & (before == 0)).any():
            continue
        wider: Box = tuple(
            slice(max(0, s.start - halo), min(size, s.stop + halo)) for s, size in zip(part, shape, strict=True)
        )  # type: ignore[assignment]
        known = np.asarray(pieces[wider].read().result())
        markers = np.where(known > 0, known, seeds[wider]).astype(np.int32)
        here = moved(wider, corner)
        grown = flood(cut.landscape.height(here), markers, cut.labels[here] == number)
        inner = tuple(slice(s.start - w.start, s.stop - w.start) for s, w in zip(part, wider, strict=True))
        after = np.where(before > 0, before, grown[inner]).astype(np.uint32)
        decided += int(np.count_nonzero(after) - np.count_nonzero(before))
        undecided += int(np.count_nonzero(own & (after == 0)))
        pieces[part].write(after).result()
    return undecided > 0 and decided > 0


def save_pieces(path: Path, labels: npt.NDArray[Any]) -> None:
    """Keep the pieces of a component until the volume is written."""
    np.savez_compressed(path, labels=labels.astype(np.min_scalar_type(int(labels.max(initial=0)))))
