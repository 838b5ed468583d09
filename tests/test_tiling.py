"""Tiled inference against the slow obvious twin, and against no tiling at all."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from baselines.tiling import Maps, tile_starts, tile_weights, tiled


def _blur_and_square(radius: int):
    """Two channels: a zero-padded mean over a (2 radius + 1) square, as a convolution sees a tile; and the square."""

    def function(tiles: Maps) -> Maps:
        size = (0, 2 * radius + 1, 2 * radius + 1)
        blurred = ndimage.uniform_filter(tiles, size=(1, *size[1:]), mode="constant")
        return np.stack([blurred, tiles**2], axis=1)

    return function


images = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10_000))


@given(images, st.integers(0, 3), st.integers(1, 24), st.sampled_from([0.0, 0.25, 0.5]), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_the_result_does_not_depend_on_the_tile_where_the_operation_sees_no_further_than_the_margin(
    image, radius, inside, overlap, batch_size
) -> None:
    height, width, seed = image
    plane = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    function = _blur_and_square(radius)
    found = tiled(function, plane, 2, tile=inside + 2 * radius, margin=radius, overlap=overlap, batch_size=batch_size)
    padded = np.pad(plane, radius, mode="reflect")
    whole = function(padded[None])[0][:, radius : radius + height, radius : radius + width]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, whole, atol=1e-4)


@given(images, st.integers(0, 2), st.integers(3, 12), st.sampled_from([1, 4]))
@settings(max_examples=30, deadline=None)
def test_blending_equals_the_weighted_mean_pixel_by_pixel(image, margin, inside, multiple) -> None:
    height, width, seed = image
    plane = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    tile = inside + 2 * margin

    def depends_on_the_tile(tiles: Maps) -> Maps:
        return (tiles - tiles.mean(axis=(1, 2), keepdims=True))[:, None]

    found = tiled(depends_on_the_tile, plane, 1, tile=tile, margin=margin, overlap=0.5, multiple=multiple)

    edges = [-(-min(size + 2 * margin, tile) // multiple) * multiple for size in plane.shape]
    after = [max(margin, edge - margin - size) for edge, size in zip(edges, plane.shape, strict=True)]
    padded = np.pad(plane, [(margin, after[0]), (margin, after[1])], mode="reflect")
    weight = tile_weights((edges[0], edges[1]), margin)
    sums, weights = np.zeros(padded.shape), np.zeros(padded.shape)
    for y in tile_starts(padded.shape[0], edges[0], margin, 0.5):
        for x in tile_starts(padded.shape[1], edges[1], margin, 0.5):
            cut = padded[y : y + edges[0], x : x + edges[1]]
            value = cut - cut.mean()
            for i in range(edges[0]):
                for j in range(edges[1]):
                    sums[y + i, x + j] += weight[i, j] * value[i, j]
                    weights[y + i, x + j] += weight[i, j]
    inner = np.s_[margin : margin + height, margin : margin + width]
    np.testing.assert_allclose(found[0], sums[inner] / weights[inner], atol=1e-4)


@given(st.integers(1, 200), st.integers(1, 60), st.integers(0, 10), st.floats(0, 0.9))
@settings(max_examples=100, deadline=None)
def test_tiles_cover_everything_inside_the_margins(size: int, inside: int, margin: int, overlap: float) -> None:
    padded, edge = size + 2 * margin, min(size, inside) + 2 * margin
    covered = np.zeros(padded, int)
    starts = tile_starts(padded, edge, margin, overlap)
    for start in starts:
        assert 0 <= start <= padded - edge
        covered[start + margin : start + edge - margin] += 1
    assert covered[margin : margin + size].min() >= 1


def test_an_image_that_fits_is_one_tile_and_function_sees_multiples() -> None:
    seen = []

    def function(tiles: Maps) -> Maps:
        seen.append(tiles.shape)
        return tiles[:, None]

    image = np.random.default_rng(0).normal(size=(45, 70)).astype(np.float32)
    np.testing.assert_allclose(tiled(function, image, 1, tile=128, margin=8, multiple=32)[0], image, atol=1e-6)
    assert seen == [(1, 64, 96)]


@pytest.mark.parametrize(("tile", "margin", "overlap"), [(16, 8, 0.25), (16, 4, 1.0), (16, -1, 0.0)])
def test_impossible_tiles_are_refused(tile: int, margin: int, overlap: float) -> None:
    with pytest.raises(ValueError, match="tile"):
        tiled(lambda tiles: tiles[:, None], np.zeros((9, 9), np.float32), 1, tile=tile, margin=margin, overlap=overlap)
