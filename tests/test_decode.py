"""Decoding drawn shapes: the number of instances, their pixels, their organelle and their confidence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.segmentation import watershed

from baselines import cli_predict
from baselines.decode import DECODERS, METHODS, SPLITS, Decoder, decode, methods_of, split
from baselines.flood import drop_small, filled, grown, watershed_instances
from baselines.models.unet import MODEL, UNet, UNetConfig
from baselines.predict import predict
from baselines.prediction_settings import TileSettings
from baselines.preprocess import inner_distance
from baselines.targets import boundary_target
from em_bench_eval.errors import InputError
from em_bench_eval.rows import read_prediction_info
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


@given(st.integers(0, 10_000), st.tuples(st.integers(1, 14), st.integers(1, 14)), st.floats(0.0, 1.0))
@settings(max_examples=80, deadline=None)
def test_holes_are_those_of_scipy(seed: int, shape: tuple[int, int], share: float) -> None:
    mask = np.random.default_rng(seed).random(shape) < share
    np.testing.assert_array_equal(filled(mask), ndimage.binary_fill_holes(mask))


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=40, deadline=None)
def test_flooding_only_where_seeds_meet_equals_flooding_everything(seed: int, keep: bool) -> None:
    generator = np.random.default_rng(seed)
    components, count = ndimage.label(generator.random((20, 24)) < 0.55, structure=np.ones((3, 3)))
    height = generator.permutation(480).reshape(20, 24).astype(np.float32)
    seeds = np.where((generator.random((20, 24)) < 0.06) & (components > 0), 1, 0)
    seeds = np.where(seeds, np.cumsum(seeds).reshape(seeds.shape), 0)
    expected = watershed(height, seeds, connectivity=2, mask=components > 0)
    found = grown(components, seeds, height, keep_seedless=keep)
    if keep:
        seedless = [id_ for id_ in range(1, count + 1) if not seeds[components == id_].any()]
        for number, id_ in enumerate(seedless, start=int(seeds.max()) + 1):
            assert (found[components == id_] == number).all()
        found = np.where(found > seeds.max(), 0, found)
    np.testing.assert_array_equal(found, expected)
    flat = grown(components, seeds)
    np.testing.assert_array_equal(flat > 0, expected > 0)
    np.testing.assert_array_equal(flat[seeds > 0], seeds[seeds > 0])


def test_two_touching_mitochondria_are_split_by_the_boundary_map_and_a_thin_one_stays() -> None:
    left, right = _disc(48, 40, 20), _disc(48, 74, 20)
    reference = np.where(left & (X < 57), 1, np.where(right & (X >= 57), 2, 0))
    reference[85:88, 10:110] = 3  # three pixels thick: all of it is boundary
    boundary = boundary_target(torch.from_numpy(reference)[None])[0].numpy() * np.float32(0.95)
    found = decode("v/z/00000", {"mito": _probability(reference > 0), "boundary:mito": boundary}, PIXEL)
    np.testing.assert_array_equal(found.instances > 0, reference > 0)
    assert len(found.organelle_of) == 3
    for id_ in (1, 2, 3):
        assert np.bincount(found.instances[reference == id_]).max() > 0.97 * (reference == id_).sum()


def test_an_organelle_in_a_filled_hole_stays_whatever_their_order() -> None:
    """Of the mitochondrion, which is decoded first, around the endosome; a speck that is dropped leaves no hole."""
    ring, core, speck = _disc(48, 60, 40) & ~_disc(48, 60, 15), _disc(48, 60, 12), _disc(48, 90, 2)
    maps = {"mito": _probability(ring & ~speck), "endo": _probability(core), "er": _probability(speck)}
    found = decode("v/z/00000", maps, PIXEL)
    assert list(found.organelle_of.values()) == [Organelle.MITO, Organelle.ENDO]
    np.testing.assert_array_equal(found.instances == 2, core)
    np.testing.assert_array_equal(found.instances == 1, _disc(48, 60, 40) & ~core)
    assert found.confidence_of[2] == pytest.approx(0.9)


@pytest.mark.parametrize("method", METHODS)
def test_noise_and_nothing_are_decoded_by_every_method(method: str) -> None:
    generator = np.random.default_rng(0)
    names = ("mito", "distance:mito", "boundary:mito", "affinity:1,0", "affinity:0,1", "affinity:0,7")
    for shape in ((1, 1), (40, 60)):
        noise = {name: generator.random(shape).astype(np.float32) for name in names}
        found = decode("v/z/00000", noise, PIXEL, wanted=method)
        again = decode("v/z/00000", noise, PIXEL, wanted=method)
        np.testing.assert_array_equal(found.instances, again.instances)
        assert set(np.unique(found.instances)) - {0} == set(found.organelle_of) == set(found.confidence_of)
        nothing = {name: np.zeros(shape, np.float32) for name in names}
        assert decode("v/z/00000", nothing, PIXEL, wanted=method).instances.max() == 0


def test_the_best_method_that_maps_and_decoder_allow_is_used_unless_one_is_wanted() -> None:
    mito, er = Organelle.MITO, Organelle.ER
    everything = ["mito", "er", "distance:mito", "boundary:mito", "affinity:1,0", "affinity:0,1", "affinity:0,4"]
    assert methods_of(everything) == {mito: "distance", er: "components"}
    assert methods_of([name for name in everything if name != "distance:mito"]) == {mito: "boundary", er: "components"}
    assert methods_of(["mito", *everything[4:]]) == {mito: "affinity"}
    assert methods_of(["mito", *everything[4:]], axes=3) == {mito: "components"}  # they do not reach the next slice
    assert methods_of(everything, wanted="affinity") == {mito: "affinity", er: "affinity"}
    for method in METHODS:
        assert methods_of(everything, wanted=method)[mito] == method
    assert methods_of(everything, wanted="boundary")[er] == "components"
    assert methods_of([], wanted="distance") == {}
    with pytest.raises(InputError, match="--decoder distance needs a distance map") as error:
        methods_of(["er", "affinity:1,0", "affinity:0,1"], wanted="distance")
    assert "--decoder components or affinity" in str(error.value)
    assert set(SPLITS) == set(METHODS) == set(cli_predict.DECODERS)
    shipped = replace(MODEL.presets["affinity"].config, width=2, trained_organelles=("mito",))  # type: ignore[arg-type]
    for method in METHODS:
        assert methods_of(UNet(shipped).map_names, wanted=method) == {mito: method}  # type: ignore[arg-type]


def test_the_command_line_chooses_and_the_record_says_what_was_used(tiny_dataset: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = UNetConfig(width=2, depth=1, trained_organelles=("mito", "er"), affinity_offsets=((1, 0), (0, 1), (0, 4)))
    UNet(config).save_pretrained(tmp_path / "checkpoint")
    arguments = ["--checkpoint", str(tmp_path / "checkpoint"), "--dataset", str(tiny_dataset), "--margin", "8"]
    assert cli_predict.predict([*arguments, "--out", str(tmp_path / "best")]) == 0
    decoders = read_prediction_info(tmp_path / "best")["settings"]["decoders"]
    assert {name: decoders[name]["method"] for name in decoders} == {"mito": "distance", "er": "components"}
    assert cli_predict.predict([*arguments, "--out", str(tmp_path / "d"), "--decoder", "affinity"]) == 0
    decoders = read_prediction_info(tmp_path / "d")["settings"]["decoders"]
    assert {name: decoders[name]["method"] for name in decoders} == {"mito": "affinity", "er": "affinity"}
    assert decoders["mito"]["min_affinity"] == DECODERS[Organelle.MITO].min_affinity
    assert cli_predict.predict([*arguments, "--out", str(tmp_path / "d"), "--decoder", "affinity"]) == 0  # it is there
    with pytest.raises(InputError, match="holds another prediction"):
        cli_predict.predict([*arguments, "--out", str(tmp_path / "d")])
    with pytest.raises(InputError, match="--decoder boundary needs a boundary map"):
        predict(
            str(tmp_path / "checkpoint"), str(tiny_dataset), "wild", "test", tmp_path / "b",
            TileSettings(decoder="boundary"),
        )  # fmt: skip
    assert not (tmp_path / "b").exists()
