"""Decoding drawn shapes: the number of instances, their pixels, their organelle and their confidence."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from baselines.decode import DECODERS, Decoder, decode, drop_small, split, watershed_instances
from baselines.preprocess import inner_distance
from em_bench_eval.schema import Organelle

PIXEL = (8.0, 8.0)
Y, X = np.mgrid[:96, :128]


def _disc(y: float, x: float, radius: float) -> np.ndarray:
    return (Y - y) ** 2 + (X - x) ** 2 < radius**2


def _probability(mask: np.ndarray, inside: float = 0.9) -> np.ndarray:
    return np.where(mask, inside, 0.02).astype(np.float32)


def test_two_touching_mitochondria_are_split_by_the_distance_map() -> None:
    left, right = _disc(48, 40, 20), _disc(48, 74, 20)
    reference = np.where(left & (X < 57), 1, np.where(right & (X >= 57), 2, 0))
    both = left | right
    assert ndimage.label(both)[1] == 1
    prediction = decode("v/z/00000", {"mito": _probability(both), "distance:mito": inner_distance(reference)}, PIXEL)
    assert sorted(prediction.organelle_of) == [1, 2]
    for id_ in (1, 2):
        own = reference == reference[prediction.instances == id_][0]
        found = prediction.instances == id_
        assert 2 * (own & found).sum() / (own.sum() + found.sum()) > 0.97


def test_without_a_distance_map_touching_ones_stay_together_and_an_elongated_one_is_never_split() -> None:
    both = _disc(48, 40, 20) | _disc(48, 74, 20)
    assert len(decode("v/z/00000", {"mito": _probability(both)}, PIXEL).organelle_of) == 1
    bar = (abs(Y - 48) < 10) & (abs(X - 64) < 50)
    maps = {"mito": _probability(bar), "distance:mito": inner_distance(bar.astype(int))}
    assert len(decode("v/z/00000", maps, PIXEL).organelle_of) == 1


def test_a_network_is_its_connected_components_and_specks_are_dropped_by_area_in_nm2() -> None:
    er = (abs(Y - 30) < 3) | (abs(X - 100) < 3) | ((abs(Y - 70) < 3) & (X < 60))
    speck = (abs(Y - 90) < 2) & (abs(X - 5) < 2)  # 9 pixels
    maps = {"er": _probability(er | speck)}
    keep_all = {Organelle.ER: Decoder(min_area_nm2=9 * 64.0)}
    assert len(decode("v/z/00000", maps, PIXEL, keep_all).organelle_of) == 3
    drop = {Organelle.ER: Decoder(min_area_nm2=9 * 64.0 + 1)}
    found = decode("v/z/00000", maps, PIXEL, drop)
    assert len(found.organelle_of) == 2
    np.testing.assert_array_equal(found.instances > 0, er)
    # the same pixels at half the pixel size cover a quarter of the area
    assert len(decode("v/z/00000", maps, (4.0, 4.0), keep_all).organelle_of) == 2


def test_each_pixel_goes_to_its_most_probable_class_and_background_has_the_rest() -> None:
    mito, nucleus = np.zeros((96, 128), np.float32), np.zeros((96, 128), np.float32)
    mito[20:60, 20:60], nucleus[20:60, 20:60] = 0.5, 0.3  # background 0.2
    mito[20:60, 70:110], nucleus[20:60, 70:110] = 0.3, 0.2  # background 0.5
    nucleus[70:96, :] = 0.6
    decoders = {organelle: Decoder(min_area_nm2=100.0) for organelle in Organelle}
    found = decode("v/z/00000", {"nucleus": nucleus, "mito": mito}, PIXEL, decoders)
    assert found.organelle_of == {1: Organelle.MITO, 2: Organelle.NUCLEUS}
    np.testing.assert_array_equal(found.instances == 1, mito == 0.5)
    np.testing.assert_array_equal(found.instances == 2, nucleus == np.float32(0.6))
    assert abs(found.confidence_of[1] - 0.5) < 1e-6
    assert abs(found.confidence_of[2] - 0.6) < 1e-6
    assert found.instances.dtype == np.uint32


def test_a_filled_hole_never_takes_pixels_of_another_organelle() -> None:
    ring, core = _disc(48, 60, 40) & ~_disc(48, 60, 15), _disc(48, 60, 12)
    decoders = {organelle: Decoder(min_area_nm2=100.0, fill_holes=True) for organelle in Organelle}
    maps = {"mito": _probability(core), "nucleus": _probability(ring)}
    found = decode("v/z/00000", maps, PIXEL, decoders)
    np.testing.assert_array_equal(found.instances == 1, core)
    np.testing.assert_array_equal(found.instances == 2, _disc(48, 60, 40) & ~core)
    np.testing.assert_array_equal(split(ring, None, decoders[Organelle.NUCLEUS], PIXEL) > 0, _disc(48, 60, 40))


def test_texture_that_the_distance_head_does_not_confirm_is_dropped() -> None:
    real, texture = _disc(48, 40, 20), _disc(48, 100, 20)
    maps = {"mito": _probability(real | texture), "distance:mito": inner_distance(real.astype(int))}
    found = decode("v/z/00000", maps, PIXEL)
    np.testing.assert_array_equal(found.instances > 0, real)


def test_nothing_probable_is_no_instance() -> None:
    found = decode("v/z/00000", {"mito": np.zeros((8, 9), np.float32)}, PIXEL)
    assert (found.instances.shape, found.instances.max(), found.organelle_of) == ((8, 9), 0, {})


@given(st.integers(0, 10_000), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_dropping_small_labels_equals_the_loop(seed: int, minimum: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 6, (9, 11)).astype(np.int32)
    expected = np.zeros_like(labels)
    for id_ in range(1, 6):
        if (labels == id_).sum() >= minimum:
            expected[labels == id_] = expected.max() + 1
    np.testing.assert_array_equal(drop_small(labels, minimum), expected)


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_watershed_keeps_exactly_the_components_with_a_seed_and_never_joins_two(seed: int) -> None:
    generator = np.random.default_rng(seed)
    mask = ndimage.gaussian_filter(generator.normal(size=(40, 50)), 2) > 0.02
    distance = ndimage.gaussian_filter(generator.random((40, 50)), 1).astype(np.float32)
    components, count = ndimage.label(mask, structure=np.ones((3, 3), bool))
    found = watershed_instances(components, distance, 0.55)
    smooth = ndimage.gaussian_filter(distance, 1.0)
    expected = np.zeros(mask.shape, bool)
    for id_ in range(1, count + 1):
        expected |= (components == id_) & bool((smooth[components == id_] >= 0.55).any())
    np.testing.assert_array_equal(found > 0, expected)
    for id_ in range(1, int(found.max()) + 1):
        assert len(np.unique(components[found == id_])) == 1


def test_every_organelle_has_a_decoder() -> None:
    assert set(DECODERS) == set(Organelle)
