"""Inference over images of any size: overlapping tiles, blended with Gaussian weights.

Every pixel of the result is a weighted mean over the tiles that contain it. Weights fall off from the centre of a tile
and are zero within ``margin`` pixels of its edge, where a network with zero padding does not see what it should: an
operation that looks at most ``margin`` pixels far gives the same result for every tile size (tests/test_tiling.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

Maps = npt.NDArray[np.float32]


def tiled(
    function: Callable[[Maps], Maps],
    image: npt.NDArray[np.float32],
    channels: int,
    *,
    tile: int = 512,
    margin: int = 32,
    overlap: float = 0.25,
    multiple: int = 1,
    batch_size: int = 1,
) -> Maps:
    """Apply ``function`` to tiles of ``image`` and blend; returns ``(channels, y, x)`` float32.

    ``function`` maps (N, tile_y, tile_x) to (N, channels, tile_y, tile_x). The ``(y, x)`` image is continued beyond its
    edges by reflection. ``tile`` counts the margins; it is rounded up to a multiple of ``multiple`` and is smaller for
    a small image. Neighbouring tiles share at least ``overlap`` (0..1) of what lies inside the margins. Memory: the
    result and one plane of weights, whatever the number of tiles.
    """
    if not tile > 2 * margin >= 0 or not 0 <= overlap < 1:
        raise ValueError(f"tile {tile} must exceed twice the margin {margin}, and overlap {overlap} lie in [0, 1)")
    height, width = image.shape
    edge_y, edge_x = (_tile_edge(size + 2 * margin, tile, multiple) for size in image.shape)
    padded = np.pad(
        image,
        [(margin, max(margin, edge - margin - size)) for size, edge in ((height, edge_y), (width, edge_x))],
        mode="reflect",
    )
    weight = tile_weights((edge_y, edge_x), margin)
    result = np.zeros((channels, *padded.shape), np.float32)
    total = np.zeros(padded.shape, np.float32)
    corners = [
        (y, x)
        for y in tile_starts(padded.shape[0], edge_y, margin, overlap)
        for x in tile_starts(padded.shape[1], edge_x, margin, overlap)
    ]
    for batch in _batched(corners, batch_size):
        tiles = np.stack([padded[y : y + edge_y, x : x + edge_x] for y, x in batch])
        for (y, x), maps in zip(batch, function(tiles), strict=True):
            result[:, y : y + edge_y, x : x + edge_x] += maps * weight
            total[y : y + edge_y, x : x + edge_x] += weight
    inner = np.s_[margin : margin + height, margin : margin + width]
    return np.ascontiguousarray(result[:, inner[0], inner[1]] / total[inner])


def tile_weights(shape: tuple[int, int], margin: int) -> Maps:
    """Weights of a tile's pixels: Gaussian with a standard deviation of a quarter of the inside, 0 in the margin."""
    lines = []
    for size in shape:
        distance = np.abs(np.arange(size) - (size - 1) / 2)
        inside = size - 2 * margin
        line = np.exp(-0.5 * (distance / (inside / 4)) ** 2)
        line[:margin] = line[size - margin :] = 0.0
        lines.append(line)
    return np.outer(lines[0], lines[1]).astype(np.float32)


def tile_starts(size: int, edge: int, margin: int, overlap: float) -> list[int]:
    """Evenly spaced first pixels of tiles of ``edge`` so that their insides cover ``[margin, size - margin)``."""
    inside = edge - 2 * margin
    stride = max(1, int(inside * (1 - overlap)))
    count = 1 + -(-max(0, size - edge) // stride)
    return [round(start) for start in np.linspace(0, size - edge, count)]


def _tile_edge(padded: int, tile: int, multiple: int) -> int:
    """Edge of the tiles along an axis: ``tile``, or less for a small image; a multiple of ``multiple``."""
    return -(-min(padded, tile) // multiple) * multiple


def _batched(corners: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    for start in range(0, len(corners), size):
        yield corners[start : start + size]
