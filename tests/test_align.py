"""Scale Alignment: averages, identities, and that image and labels stay registered."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from em_bench_eval.align import aligned_shape, resize_image, resize_labels


def slow_average(row: np.ndarray, size: int) -> np.ndarray:
    """Mean over each output pixel's interval, one input pixel at a time."""
    edges = np.linspace(0, len(row), size + 1)
    means = []
    for start, stop in itertools.pairwise(edges):
        weights = [max(0.0, min(stop, i + 1) - max(start, i)) for i in range(len(row))]
        means.append(np.dot(weights, row) / sum(weights))
    return np.array(means)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
def test_shrinking_averages_exact_intervals_and_growing_interpolates_centres(old: int, new: int, seed: int) -> None:
    row = np.random.default_rng(seed).uniform(0, 255, old)
    image = np.stack([row, row])
    expected = slow_average(row, new)
    if new > old:
        centres = (np.arange(new) + 0.5) * old / new - 0.5
        expected = np.interp(centres, np.arange(old), row)
    np.testing.assert_allclose(resize_image(image, (2, new))[1], expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(resize_image(image.T, (new, 2))[:, 0], expected, rtol=1e-4, atol=1e-3)


def test_same_size_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 255, (13, 17), dtype=np.uint8)
    np.testing.assert_array_equal(resize_image(image, (13, 17)), image)
    np.testing.assert_array_equal(resize_labels(image, (13, 17)), image)


def test_channels_are_resized_alike() -> None:
    image = np.random.default_rng(0).uniform(size=(3, 20, 24)).astype(np.float32)
    both = resize_image(image, (15, 30))
    assert both.shape == (3, 15, 30)
    np.testing.assert_allclose(both[1], resize_image(image[1], (15, 30)), rtol=1e-6)


def test_labels_gain_no_ids_and_keep_dtype() -> None:
    labels = np.random.default_rng(0).choice([0, 7, 65535], (40, 50)).astype(np.uint16)
    resized = resize_labels(labels, (23, 71))
    assert resized.dtype == np.uint16
    assert set(np.unique(resized)) <= {0, 7, 65535}


@pytest.mark.parametrize("pixel_nm", [3.24, 4.6, 5.0, 8.0, 10.0, 16.0])
def test_fiducials_stay_registered_to_half_a_pixel(pixel_nm: float) -> None:
    """Discs of 120 nm: their centres in image and labels, in nm, agree with where they were drawn."""
    side = int(1200 / pixel_nm)
    y, x = (np.indices((side, side)) + 0.5) * pixel_nm
    centres_nm = [(250.0, 300.0), (700.0, 420.0), (880.0, 910.0)]
    labels = np.zeros((side, side), np.uint16)
    for number, (cy, cx) in enumerate(centres_nm, start=1):
        labels[(y - cy) ** 2 + (x - cx) ** 2 < 120**2] = number
    image = (labels > 0) * 200.0
    shape = aligned_shape(labels.shape, (pixel_nm, pixel_nm))
    small, ids = resize_image(image, shape), resize_labels(labels, shape)
    for number, centre in enumerate(centres_nm, start=1):
        near = ndimage.binary_dilation(ids == number, iterations=2)
        from_image = (np.array(ndimage.center_of_mass(np.where(near, small, 0))) + 0.5) * 8.0
        from_labels = (np.array(ndimage.center_of_mass(ids == number)) + 0.5) * 8.0
        assert np.abs(from_image - centre).max() < 4.0
        assert np.abs(from_labels - centre).max() < 4.0
        assert np.abs(from_image - from_labels).max() < 4.0


def test_aligned_shape_keeps_the_extent() -> None:
    assert aligned_shape((512, 512), (5.0, 5.0)) == (320, 320)
    assert aligned_shape((768, 512), (4.6, 16.0)) == (442, 1024)
    assert aligned_shape((1, 1), (0.1, 0.1)) == (1, 1)
