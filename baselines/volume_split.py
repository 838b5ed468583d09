"""Touching instances of a whole volume taken apart: watershed on the distance map, component by component.

Watershed never crosses from one component to another, so each is cut out with its bounding box and flooded by itself:
exactly what flooding the whole volume at once would give, whatever the blocks. A component whose box is larger than
``LARGEST_BOX`` voxels is flooded block by block from seeds that are found in all of it (``flood_blocks``).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from baselines.map_store import Box, MapStore
from baselines.volume_classes import Work, boxes, create_volume
from em_bench_eval.opened import Opened
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


@dataclass(frozen=True)
class Landscape:
    """What is flooded: where the components are, how deep inside, and from which depth on a seed begins."""

    store: MapStore
    labels: Opened  # components
    distance: str  # name of the map
    probability: str
    seed_distance: float

    def depth(self, box: Box) -> npt.NDArray[np.float32]:
        """The smoothed distance map in a box: the same values whatever the box."""
        shape = self.store.shape
        wider = tuple(
            slice(max(0, s.start - REACH), min(size, s.stop + REACH)) for s, size in zip(box, shape, strict=True)
        )
        finest = min(self.store.voxel_size_nm)
        sigma = [SMOOTHING * finest / nm for nm in self.store.voxel_size_nm]
        smooth = ndimage.gaussian_filter(self.store.read(wider, [self.distance])[0], sigma)
        inner = tuple(slice(s.start - w.start, s.stop - w.start) for s, w in zip(box, wider, strict=True))
        return np.asarray(smooth[inner])

    def measured(self, pieces: npt.NDArray[Any], box: Box, count: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Voxels and summed probability of the pieces 1..count in a box."""
        probability = self.store.read(box, [self.probability])[0]
        flat = pieces.reshape(-1)
        voxels = np.bincount(flat, minlength=count + 1)[1:]
        return voxels, np.bincount(flat, probability.reshape(-1).astype(np.float64), count + 1)[1:]


def split_component(
    number: int, start: Sequence[int], stop: Sequence[int], landscape: Landscape, work: Work, limit: int = LARGEST_BOX
) -> Pieces:
    """Cut one component (its number, and bounding box) at the seams between its seeds.

    Pieces are numbered in the raster order of their seeds; none if no place is deep enough to be a seed.
    """
    box: Box = tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))  # type: ignore[assignment]
    corner = (box[0].start, box[1].start, box[2].start)
    if np.prod(np.subtract(stop, start)) > limit:
        return flood_blocks(number, box, landscape, work)
    mask = landscape.labels[box] == number
    depth = landscape.depth(box)
    seeds, count = ndimage.label((depth >= landscape.seed_distance) & mask, structure=NEIGHBOURS)
    labels = flood(depth, seeds, mask) if count > 1 else mask.astype(np.int32) * np.int32(count)
    return Pieces(labels, corner, *landscape.measured(labels, box, count))


def flood(
    depth: npt.NDArray[np.float32], seeds: npt.NDArray[Any], mask: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int32]:
    """Grow seeds over a mask, deepest voxels first."""
    from skimage.segmentation import watershed

    grown: npt.NDArray[np.int32] = watershed(-depth, seeds, connectivity=NEIGHBOURS, mask=mask).astype(np.int32)
    return grown


def flood_blocks(number: int, box: Box, landscape: Landscape, work: Work, halo: int = HALO) -> Pieces:
    """Flood a component that is too large to be flooded at once.

    Seeds are connected over all blocks first, so their numbers agree everywhere. Blocks are flooded in raster order
    from the seeds in sight and from what earlier blocks have decided; a voxel whose seed is further away than ``halo``
    waits for the next round, when its neighbours are known. Away from the seams of blocks the result is that of
    flooding all at once; at a seam the boundary between two pieces may lie some voxels off.
    """
    corner = (box[0].start, box[1].start, box[2].start)
    folder = work.folder / f"component-{number}"
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    shape = (box[0].stop - corner[0], box[1].stop - corner[1], box[2].stop - corner[2])
    found = create_volume(folder / "found.zarr", shape, np.uint8)
    for part in boxes(shape):
        here = _moved(part, corner)
        deep = landscape.depth(here) >= landscape.seed_distance
        found[part].write((deep & (landscape.labels[here] == number)).astype(np.uint8)).result()
    report = label_zarr(folder / "found.zarr", folder / "seeds.zarr", None, 26, "compact", progress=False)
    count = int(report.instances.get(1, 0))
    seeds, pieces = open_volume(folder / "seeds.zarr"), create_volume(folder / "pieces.zarr", shape, np.uint32)
    waiting = True
    while waiting and count:
        waiting = _flood_round(number, corner, shape, landscape, seeds, pieces, halo)
    voxels, probability = np.zeros(count, np.int64), np.zeros(count)
    for part in boxes(shape):
        sums = landscape.measured(np.asarray(pieces[part].read().result()), _moved(part, corner), count)
        voxels, probability = voxels + sums[0], probability + sums[1]
    return Pieces(open_volume(folder / "pieces.zarr"), corner, voxels, probability)


def _flood_round(
    number: int,
    corner: tuple[int, int, int],
    shape: tuple[int, int, int],
    landscape: Landscape,
    seeds: Opened,
    pieces: Any,
    halo: int,
) -> bool:
    """Flood every block once; return whether a further round can decide more."""
    undecided = decided = 0
    for part in boxes(shape):
        before = np.asarray(pieces[part].read().result())
        own = landscape.labels[_moved(part, corner)] == number
        if not (own & (before == 0)).any():
            continue
        wider: Box = tuple(
            slice(max(0, s.start - halo), min(size, s.stop + halo)) for s, size in zip(part, shape, strict=True)
        )  # type: ignore[assignment]
        known = np.asarray(pieces[wider].read().result())
        markers = np.where(known > 0, known, seeds[wider]).astype(np.int32)
        here = _moved(wider, corner)
        grown = flood(landscape.depth(here), markers, landscape.labels[here] == number)
        inner = tuple(slice(s.start - w.start, s.stop - w.start) for s, w in zip(part, wider, strict=True))
        after = np.where(before > 0, before, grown[inner]).astype(np.uint32)
        decided += int(np.count_nonzero(after) - np.count_nonzero(before))
        undecided += int(np.count_nonzero(own & (after == 0)))
        pieces[part].write(after).result()
    return undecided > 0 and decided > 0


def _moved(part: Box, corner: Sequence[int]) -> Box:
    z, y, x = (slice(s.start + by, s.stop + by) for s, by in zip(part, corner, strict=True))
    return z, y, x


def save_pieces(path: Path, labels: npt.NDArray[Any]) -> None:
    """Keep the pieces of a component until the volume is written."""
    np.savez_compressed(path, labels=labels.astype(np.min_scalar_type(int(labels.max(initial=0)))))
