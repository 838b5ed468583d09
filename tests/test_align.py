"""Scale Alignment: averages, identities, and that image and labels stay registered."""

from __future__ import annotations

import itertools
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from dataset_builder.align import align
from em_bench_eval.align import align_image, align_instances, align_mask, aligned_shape, resize_image, resize_labels
from em_bench_eval.errors import InputError
from em_bench_eval.rows import decode_row


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


pixel_nm = st.floats(2.0, 20.0)


@settings(max_examples=40, deadline=None)
@given(pixel_nm, pixel_nm, pixel_nm, st.integers(0, 9))
def test_image_and_labels_stay_registered_for_any_pixel_size(y_nm: float, x_nm: float, to: float, seed: int) -> None:
    """A disc of 150 nm somewhere, up or down, anisotropic or not: image, labels and truth agree to half a pixel."""
    rng = np.random.default_rng(seed)
    centre_nm = rng.uniform(200, 400, 2)
    size = (int(rng.uniform(600, 700) / y_nm), int(rng.uniform(600, 700) / x_nm))
    y, x = np.indices(size) + 0.5
    labels = (((y * y_nm - centre_nm[0]) ** 2 + (x * x_nm - centre_nm[1]) ** 2) < 150**2).astype(np.uint16)
    small = align_image(labels * 200.0, (y_nm, x_nm), to)
    ids = align_instances(labels, (y_nm, x_nm), to).ids
    from_image = (np.array(ndimage.center_of_mass(small)) + 0.5) * to
    from_labels = (np.array(ndimage.center_of_mass(ids)) + 0.5) * to
    half_nm = max(to, y_nm, x_nm) / 2
    assert np.abs(from_image - centre_nm).max() < half_nm
    assert np.abs(from_labels - centre_nm).max() < half_nm
    assert np.abs(from_image - from_labels).max() < half_nm


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), pixel_nm, pixel_nm, st.integers(0, 9))
def test_every_aligned_pixel_is_its_own_interval_in_nm(old: int, from_nm: float, to_nm: float, seed: int) -> None:
    """Against integrating (down) or interpolating (up) the row at positions in nm, pixel by pixel."""
    row = np.random.default_rng(seed).uniform(0, 255, old)
    aligned = align_image(np.stack([row, row]), (to_nm, from_nm), to_nm)[0]
    assert abs(len(aligned) * to_nm - old * from_nm) <= max(to_nm / 2 * (1 + 1e-9), to_nm - old * from_nm)
    for i, value in enumerate(aligned):
        low, high = i * to_nm, min((i + 1) * to_nm, old * from_nm)
        if to_nm > from_nm:
            weights = [max(0.0, min(high, (k + 1) * from_nm) - max(low, k * from_nm)) for k in range(old)]
            expected = np.dot(weights, row) / sum(weights)
        else:
            expected = np.interp((i + 0.5) * to_nm, (np.arange(old) + 0.5) * from_nm, row)
        assert abs(value - expected) < 0.05


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.floats(1.0, 12.0), st.floats(1.0, 12.0), st.integers(0, 99))
def test_no_instance_vanishes_while_there_is_room(
    height: int, width: int, y_step: float, x_step: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    ids = np.where(rng.random((height, width)) < 0.15, rng.integers(1, 40, (height, width)), 0).astype(np.uint16)
    size_nm = (8.0 / y_step, 8.0 / x_step)
    y_step, x_step = (8.0 / nm for nm in size_nm)
    nearest = align_mask(ids, size_nm)
    aligned = align_instances(ids, size_nm)
    before, after = set(np.unique(ids)) - {0}, set(np.unique(aligned.ids)) - {0}
    assert after | set(aligned.lost) == before
    assert not after & set(aligned.lost)
    assert set(aligned.rescued) == after - set(np.unique(nearest))
    changed = np.argwhere(aligned.ids != nearest)
    assert len(changed) <= len(aligned.rescued)
    for y, x in changed:  # an instance is put back where it reaches
        ys, xs = np.nonzero(ids == aligned.ids[y, x])
        rows = np.minimum(((ys + 0.5) / y_step).astype(int), nearest.shape[0] - 1)
        columns = np.minimum(((xs + 0.5) / x_step).astype(int), nearest.shape[1] - 1)
        assert ((rows == y) & (columns == x)).any()
    if aligned.lost:  # all that such an instance reaches is held by instances of one pixel
        areas = {id_: int((aligned.ids == id_).sum()) for id_ in after}
        for id_ in aligned.lost:
            ys, xs = np.nonzero(ids == id_)
            rows = np.minimum(((ys + 0.5) / y_step).astype(int), nearest.shape[0] - 1)
            columns = np.minimum(((xs + 0.5) / x_step).astype(int), nearest.shape[1] - 1)
            assert all(areas.get(int(holder), 0) == 1 for holder in aligned.ids[rows, columns])


def test_a_speck_between_pixel_centres_is_rescued() -> None:
    ids = np.zeros((40, 40), np.uint16)
    ids[5:30, 5:30] = 1
    ids[33, 33] = 2
    aligned = align_instances(ids, (2.0, 2.0))
    assert aligned.rescued == (2,)
    assert aligned.lost == ()
    assert aligned.ids[8, 8] == 2
    assert align_mask(ids, (2.0, 2.0))[8, 8] == 0


def test_rows_of_a_dataset_are_aligned_on_access(tiny_dataset: Path) -> None:
    native = datasets.load_dataset(str(tiny_dataset), "wild", split="test")
    for before, row in zip(native, native.with_transform(align(12.0)), strict=True):
        size_nm = tuple(before["pixel_size_nm"])
        image, ids = np.asarray(before["image"]), np.asarray(before["instances"]).astype(np.uint16)
        np.testing.assert_array_equal(row["image"], np.rint(align_image(image, size_nm, 12.0)))
        np.testing.assert_array_equal(row["instances"], align_instances(ids, size_nm, 12.0).ids)
        assert row["image"].dtype == np.uint8
        assert row["pixel_size_nm"] == [12.0, 12.0]
        assert {entry["id"] for entry in row["objects"]} == set(np.unique(row["instances"])) - {0}
        for entry in row["objects"]:
            y, x = np.nonzero(row["instances"] == entry["id"])
            assert entry["area"] == len(y)
            assert entry["bbox"] == [y.min(), x.min(), y.max() + 1, x.max() + 1]
        assert (row["ignore"] is None) == (before["ignore"] is None)
        decoded = decode_row(row)
        assert decoded.pixel_size_nm == (12.0, 12.0)
        assert decoded.ignore.shape == decoded.image.shape == decoded.instances.shape


def test_unusable_alignments(tiny_dataset: Path) -> None:
    with pytest.raises(InputError, match="more than 0 nm"):
        align(0.0)
    rows = datasets.load_dataset(str(tiny_dataset), "wild", split="test").select_columns(["image"])
    with pytest.raises(InputError, match="also instances, pixel_size_nm"):
        rows.with_transform(align())[0]
