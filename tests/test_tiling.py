"""Tiled inference against the slow obvious twin, against no tiling at all, and with a real network of known reach."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from baselines.tiling import TileAxis, reflected, tiled, tiles_of

torch.set_num_threads(1)


def _network(reach: int, seed: int, ndim: int = 2) -> nn.Module:
    """A network that looks exactly ``reach`` pixels far, with zero padding and no normalisation: two channels out."""
    torch.manual_seed(seed)
    conv = nn.Conv2d if ndim == 2 else nn.Conv3d
    layers: list[nn.Module] = []
    for step in range(reach):
        layers += [conv(1 if step == 0 else 3, 3, 3, padding=1), nn.Tanh()]
    return nn.Sequential(*layers, conv(3 if reach else 1, 2, 1)).eval().requires_grad_(False)


images = st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10_000))


@given(images, st.integers(0, 3), st.integers(1, 24), st.sampled_from([0.0, 0.25, 0.5]), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_the_result_does_not_depend_on_the_tile_where_the_network_sees_no_further_than_the_margin(
    image, reach, inside, overlap, batch_size
) -> None:
    height, width, seed = image
    plane = torch.from_numpy(np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32))
    network = _network(reach, seed)
    found = tiled(network, plane, 2, tile=inside + 2 * reach, margin=reach, overlap=overlap, batch_size=batch_size)
    padded = torch.from_numpy(np.pad(plane.numpy(), reach, mode="reflect"))
    whole = network(padded[None, None])[0][:, reach : reach + height, reach : reach + width]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, whole, atol=1e-5, rtol=0)


def test_a_margin_below_the_reach_shows_at_the_seams() -> None:
    """The seam test can fail: the same network with a margin that is too small differs, and only near seams."""
    plane = torch.randn(60, 60, generator=torch.Generator().manual_seed(0))
    network = _network(4, 0)
    whole = tiled(network, plane, 2, tile=128, margin=4)
    tight = tiled(network, plane, 2, tile=24, margin=1, overlap=0.0)
    assert (tight - whole).abs().max() > 1e-3


@given(images, st.integers(0, 2), st.integers(3, 12), st.sampled_from([1, 4]))
@settings(max_examples=30, deadline=None)
def test_blending_equals_the_weighted_mean_pixel_by_pixel(image, margin, inside, multiple) -> None:
    height, width, seed = image
    plane = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    tile = inside + 2 * margin

    def depends_on_the_tile(tiles: Tensor) -> Tensor:
        return tiles - tiles.mean(dim=(2, 3), keepdim=True)

    found = tiled(
        depends_on_the_tile, torch.from_numpy(plane), 1, tile=tile, margin=margin, overlap=0.5, multiple=multiple
    )
    axes = [TileAxis.of(size, tile, margin, 0.5, multiple) for size in plane.shape]
    lengths = [axis.edge - 2 * margin for axis in axes]
    bells = [np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 4)) ** 2) for n in lengths]
    after = [max(margin, axis.edge - margin - axis.size) for axis in axes]
    padded = np.pad(plane, [(margin, after[0]), (margin, after[1])], mode="reflect")
    sums, weights = np.zeros(plane.shape), np.zeros(plane.shape)
    for y in axes[0].starts:
        for x in axes[1].starts:
            cut = padded[y + margin : y + margin + axes[0].edge, x + margin : x + margin + axes[1].edge]
            value = cut - cut.mean()
            for i in range(lengths[0]):
                for j in range(lengths[1]):
                    row, column = y + margin + i, x + margin + j
                    if row < height and column < width:
                        weight = bells[0][i] * bells[1][j]
                        sums[row, column] += weight * value[margin + i, margin + j]
                        weights[row, column] += weight
    np.testing.assert_allclose(found[0].numpy(), sums / weights, atol=1e-4)


@given(st.integers(1, 200), st.integers(1, 60), st.integers(0, 10), st.floats(0, 0.9), st.sampled_from([1, 8]))
@settings(max_examples=100, deadline=None)
def test_the_weights_of_all_tiles_add_up_to_one_everywhere(size, inside, margin, overlap, multiple) -> None:
    axis = TileAxis.of(size, inside + 2 * margin, margin, overlap, multiple)
    assert axis.edge % multiple == 0
    total = np.zeros(size)
    for tile in range(len(axis.starts)):
        start, stop = axis.inside(tile)
        total[start:stop] += axis.weights(tile)
        np.testing.assert_array_equal(axis.pixels(tile)[margin : margin + stop - start], np.arange(start, stop))
    np.testing.assert_allclose(total, 1.0, atol=1e-5)
    for start in range(0, size, 7):
        covering = axis.covering(start, min(start + 5, size))
        expected = [
            tile
            for tile in range(len(axis.starts))
            if axis.inside(tile)[0] < min(start + 5, size) and axis.inside(tile)[1] > start
        ]
        assert list(covering) == expected


@given(st.integers(1, 12), st.integers(0, 30), st.integers(0, 30))
def test_reflection_is_that_of_numpy(size: int, before: int, after: int) -> None:
    expected = np.pad(np.arange(size), (before, after), mode="reflect")
    np.testing.assert_array_equal(reflected(np.arange(-before, size + after), size), expected)


def test_an_image_that_fits_is_one_tile_and_the_network_sees_multiples() -> None:
    seen = []

    def function(tiles: Tensor) -> Tensor:
        seen.append(tuple(tiles.shape))
        return tiles

    image = torch.randn(45, 70)
    torch.testing.assert_close(tiled(function, image, 1, tile=128, margin=8, multiple=32)[0], image)
    assert seen == [(1, 1, 64, 96)]


def test_tiles_for_masks_are_the_same_tiles() -> None:
    image = np.random.default_rng(0).normal(size=(45, 70)).astype(np.float32)
    padded = np.pad(image, 40, mode="reflect")
    cut = list(tiles_of(image, tile=40, margin=4, overlap=0.25, multiple=8))
    assert len(cut) > 4
    for (y, x), tile in cut:
        np.testing.assert_array_equal(tile, padded[y + 40 : y + 80, x + 40 : x + 80])


@pytest.mark.parametrize(("tile", "margin", "overlap"), [(16, 8, 0.25), (16, 4, 1.0), (16, -1, 0.0)])
def test_impossible_tiles_are_refused(tile: int, margin: int, overlap: float) -> None:
    with pytest.raises(ValueError, match="tile"):
        tiled(lambda tiles: tiles, torch.zeros(9, 9), 1, tile=tile, margin=margin, overlap=overlap)
