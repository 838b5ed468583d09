"""How a volume is cut up: chunks and shards of what is stored, tiles of its slices, boxes of work.

One shard is one box of work, so each is read once and written once. The layout follows from the volume's shape and the
tile limit alone: it does not depend on who builds, or on how many workers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Shape = tuple[int, int, int]  # (z, y, x)
Box = tuple[slice, slice, slice]  # (z, y, x), voxels

BOX_VOXELS = 2**25  # of a box of work: its image, ids and classes take 6 bytes a voxel, and as much again while written
DEEPEST_CHUNK, SHALLOWEST_CHUNK = 64, 8  # slices
CHUNK_VOXELS = 64**3
TILE_MULTIPLE = 64  # pixels; tile limits are multiples of this, so that tiles are whole chunks


@dataclass(frozen=True)
class Layout:
    """The grid of a stored array; ``chunk`` divides ``shard``."""

    shape: Shape
    chunk: Shape
    shard: Shape

    def boxes(self) -> Iterator[Box]:
        """Yield the box of every shard, tile by tile ``(y, x)`` and along z within a tile."""
        starts = [range(0, size, edge) for size, edge in zip(self.shape, self.shard, strict=True)]
        for y, x, z in itertools.product(starts[1], starts[2], starts[0]):
            corner = (z, y, x)
            sides = zip(corner, self.shard, self.shape, strict=True)
            depth, height, width = (slice(start, min(start + edge, size)) for start, edge, size in sides)
            yield depth, height, width


def layout_of(shape: Sequence[int], max_side: int) -> Layout:
    """Lay out a ``(z, y, x)`` volume whose slices are cut into tiles of at most ``max_side`` pixels a side."""
    depth, height, width = (int(size) for size in shape)
    tile = [_tile_edge(size, max_side) for size in (height, width)]
    deepest = 1 << max(0, (BOX_VOXELS // max(1, tile[0] * tile[1])).bit_length() - 1)
    chunk_depth = max(1, min(depth, DEEPEST_CHUNK, max(SHALLOWEST_CHUNK, deepest)))
    side = 1 << ((CHUNK_VOXELS // chunk_depth).bit_length() - 1) // 2  # a thin volume gets wide chunks of the same size
    sides = [_chunk_side(size, edge, side) for size, edge in zip((height, width), tile, strict=True)]
    shards = [math.ceil(edge / of_chunk) * of_chunk for edge, of_chunk in zip(tile, sides, strict=True)]
    return Layout((depth, height, width), (chunk_depth, sides[0], sides[1]), (chunk_depth, shards[0], shards[1]))


def _tile_edge(size: int, max_side: int) -> int:
    """Cut ``size`` into the fewest pieces of at most ``max_side``, of about one size."""
    pieces = math.ceil(size / max_side)
    return size if pieces <= 1 else math.ceil(math.ceil(size / pieces) / TILE_MULTIPLE) * TILE_MULTIPLE


def _chunk_side(size: int, tile: int, side: int) -> int:
    if size == tile:
        return min(side, size)
    return math.gcd(tile, side)
