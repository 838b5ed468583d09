"""Inference over images and volumes of any size: overlapping tiles, blended with Gaussian weights.

Every pixel of the result is a weighted mean over the tiles that contain it. Weights fall off from the centre of a tile
and are zero within ``margin`` pixels of its edge, where a network with zero padding does not see what it should: an
operation that looks at most ``margin`` pixels far gives the same result for every tile size (tests/test_tiling.py).

Tiles lie on a product grid and weights are products over the axes, so each axis is normalised by itself: there is no
plane of summed weights, and nothing is divided in the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class TileAxis:
    """How one axis of an image or volume is cut up; positions count from its first pixel."""

    size: int  # pixels of the axis
    edge: int  # of a tile, margins included
    margin: int
    overlap: float  # share of what lies inside the margins that neighbouring tiles have in common, at least

    def __post_init__(self) -> None:
        if not self.edge > 2 * self.margin >= 0 or not 0 <= self.overlap < 1:
            raise ValueError(
                f"tile {self.edge} must exceed twice the margin {self.margin}, and overlap {self.overlap} lie in [0, 1)"
            )

    @classmethod
    def of(cls, size: int, tile: int, margin: int, overlap: float, multiple: int = 1) -> TileAxis:
        """Use tiles of edge ``tile``, or less for a small image, rounded up to a multiple of ``multiple``."""
        if not tile > 2 * margin >= 0:
            raise ValueError(f"tile {tile} must exceed twice the margin {margin}")
        return cls(size, -(-min(size + 2 * margin, tile) // multiple) * multiple, margin, overlap)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First pixel of each tile, evenly spaced; negative where a tile begins in reflected pixels."""
        inside = self.edge - 2 * self.margin
        room = max(0, self.size - inside)
        count = 1 + -(-room // max(1, int(inside * (1 - self.overlap))))
        return tuple(round(start) - self.margin for start in np.linspace(0, room, count))

    def inside(self, tile: int) -> tuple[int, int]:
        """The pixels that a tile has weight on: half-open, within the axis."""
        start = self.starts[tile] + self.margin
        return start, min(start + self.edge - 2 * self.margin, self.size)

    def covering(self, start: int, stop: int) -> range:
        """The tiles that have weight on any pixel of ``start`` to ``stop``."""
        begin = np.array(self.starts) + self.margin
        end = np.minimum(begin + self.edge - 2 * self.margin, self.size)
        return range(int(np.searchsorted(end, start, "right")), int(np.searchsorted(begin, stop, "left")))

    def weights(self, tile: int) -> npt.NDArray[np.float32]:
        """Weights of the pixels ``inside(tile)``; those of all tiles add up to 1 everywhere."""
        start, stop = self.inside(tile)
        return (self._bell[: stop - start] / self._total[start:stop]).astype(np.float32)

    @cached_property
    def _bell(self) -> npt.NDArray[np.float64]:
        """Gaussian over a tile's inside, with a standard deviation of a quarter of it."""
        inside = self.edge - 2 * self.margin
        return np.asarray(np.exp(-0.5 * ((np.arange(inside) - (inside - 1) / 2) / (inside / 4)) ** 2))

    @cached_property
    def _total(self) -> npt.NDArray[np.float64]:
        total = np.zeros(self.size)
        for tile in range(len(self.starts)):
            start, stop = self.inside(tile)
            total[start:stop] += self._bell[: stop - start]
        return total

    def pixels(self, tile: int) -> npt.NDArray[np.intp]:
        """Which pixel of the axis each pixel of a tile shows: beyond the edges, its mirror image."""
        start = self.starts[tile]
        return reflected(np.arange(start, start + self.edge), self.size)


def reflected(places: npt.NDArray[np.signedinteger], size: int) -> npt.NDArray[np.intp]:
    """Fold positions beyond ``[0, size)`` back by mirroring at the first and last pixel, as ``np.pad`` does."""
    if size == 1:
        return np.zeros(len(places), np.intp)
    folded = np.abs(places) % (2 * size - 2)
    return np.where(folded < size, folded, 2 * size - 2 - folded).astype(np.intp)


def tiled(
    function: Callable[[Tensor], Tensor],
    image: Tensor,
    channels: int,
    *,
    tile: int = 512,
    margin: int = 32,
    overlap: float = 0.25,
    multiple: int = 1,
    batch_size: int = 1,
) -> Tensor:
    """Apply ``function`` to tiles of ``image`` and blend; returns ``(channels, y, x)`` float32 on the image's device.

    ``function`` maps (N, 1, tile_y, tile_x) to (N, channels, tile_y, tile_x). The ``(y, x)`` image is continued beyond
    its edges by reflection. ``tile`` counts the margins; it is rounded up to a multiple of ``multiple`` and is smaller
    for a small image. Memory: the result, whatever the number of tiles.
    """
    import torch

    axes = [TileAxis.of(size, tile, margin, overlap, multiple) for size in image.shape]
    device = image.device
    places = [_by_tile(axis, lambda axis, t: torch.from_numpy(axis.pixels(t)).to(device)) for axis in axes]
    weights = [_by_tile(axis, lambda axis, t: torch.from_numpy(axis.weights(t)).to(device)) for axis in axes]
    result = torch.zeros((channels, *image.shape), device=device)
    grid = itertools.product(*(range(len(axis.starts)) for axis in axes))
    for batch in batched(grid, batch_size):
        tiles = torch.stack([image[places[0][y]][:, places[1][x]] for y, x in batch])
        for (y, x), maps in zip(batch, function(tiles[:, None]), strict=True):
            (y0, y1), (x0, x1) = axes[0].inside(y), axes[1].inside(x)
            inside: Tensor = maps[:, margin : margin + y1 - y0, margin : margin + x1 - x0]
            if len(axes[0].starts) == len(axes[1].starts) == 1:
                return inside.to(torch.float32)  # nothing to blend
            result[:, y0:y1, x0:x1].addcmul_(inside.to(result), weights[0][y][:, None] * weights[1][x])
    return result


def tiles_of(
    image: npt.NDArray[np.float32], *, tile: int, margin: int, overlap: float, multiple: int
) -> Iterator[tuple[tuple[int, int], npt.NDArray[np.float32]]]:
    """Yield ``((y, x) of the first pixel, tile)`` of a ``(y, x)`` image, for models that find masks in tiles."""
    rows, columns = (TileAxis.of(size, tile, margin, overlap, multiple) for size in image.shape)
    for y, x in itertools.product(range(len(rows.starts)), range(len(columns.starts))):
        yield (rows.starts[y], columns.starts[x]), image[np.ix_(rows.pixels(y), columns.pixels(x))]


def batched(items: Iterator[T] | Sequence[T], size: int) -> Iterator[list[T]]:
    """Yield lists of ``size`` items; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def _by_tile(axis: TileAxis, make: Callable[[TileAxis, int], T]) -> list[T]:
    return [make(axis, tile) for tile in range(len(axis.starts))]
