"""Intensities to 8 bits: exact for every type, without padding, and pixels that are not finite are ignored."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_builder.harmonise import Window, contrast_of, window_of
from dataset_builder.not_finite import KEY, ignore_not_finite
from dataset_builder.views import gray
from em_bench_eval.errors import InputError
from em_bench_eval.opened import Mapped, Opened
from em_bench_eval.schema import Organelle, Volume, VoxelSize

RNG = np.random.default_rng(11)
TISSUE = RNG.normal(22000, 900, (6, 40, 50)).round().clip(20000, 25000).astype(np.uint16)
LARGEST_BASE = {"int8": 0, "uint16": 60000, "int16": 30000, "float16": 1000}  # others: what the type holds exactly


def volume(image: Any, **more: Any) -> Volume:
    kinds = {"annotated": {Organelle.MITO: "manual"}, "semantic": np.zeros(image.shape, np.uint8)}
    return Volume("v", image, VoxelSize(8, 8, 8), "s", "one", "cell", "FIB-SEM", **kinds, **more)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64"]),
    st.floats(0, 1),
    st.integers(0, 2**32),
)
def test_intensities_come_back_to_half_a_gray_level(dtype: str, share: float, seed: int) -> None:
    room = {"float32": 2**23, "int32": 2**31 - 10**4, "uint32": 2**32 - 10**4}.get(dtype, 2**45)
    base = int(share * LARGEST_BASE.get(dtype, room))
    spread = 120 if dtype == "int8" else 1000
    values = (base + np.random.default_rng(seed).integers(0, spread, 300)).astype(dtype)
    low, high = float(values.min()), float(values.max())
    window = Window(low, high, dtype)
    error = np.abs(window.restore(window.apply(values)) - values.astype(np.float64))
    assert error.max() <= (high - low) / 255 * 0.5001


def test_large_integers_keep_all_their_levels() -> None:
    for dtype, base in (("int32", 2**30), ("uint32", 2**32 - 256), ("int64", 2**50), ("float64", 2**40)):
        values = (base + np.arange(256)).astype(dtype)
        np.testing.assert_array_equal(Window(base, base + 255, dtype).apply(values), np.arange(256))


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_what_was_published_stays(dtype: str) -> None:
    values = (np.arange(2**16) + (-(2**15) if dtype == "int16" else 0)).astype(dtype)
    low, high = float(values[3000]), float(values[41234])
    single = (values.astype(np.float32) - np.float32(low)) * np.float32(255.0 / (high - low))
    expected = np.rint(np.clip(single, 0, 255)).astype(np.uint8)
    np.testing.assert_array_equal(Window(low, high, dtype).apply(values), expected)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "int32", "float32"])
@pytest.mark.parametrize("share", [0.005, 1 / 3, 0.97])
def test_padding_does_not_widen_the_window(dtype: str, share: float) -> None:
    tissue = TISSUE.ravel().astype(dtype)
    ends = [0.0]
    if dtype != "float32":
        ends += [float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)]
    expected = tuple(np.percentile(tissue, (0.1, 99.9)))
    padding = int(share / (1 - share) * len(tissue))
    for end in ends:
        assert contrast_of(np.concatenate([tissue, np.full(padding, end, dtype)])) == expected, end
    both = [np.full(padding, end, dtype) for end in (ends[0], ends[-1])]
    assert contrast_of(np.concatenate([tissue, *both])) == expected, "at both ends"


def test_what_is_no_padding_stays_in() -> None:
    percentiles = (0.1, 99.9)
    clipped = RNG.normal(900, 500, 50_000).clip(0, 4095).astype(np.uint16)  # 3.6% at 0, and tissue right beside it
    assert (clipped == 0).mean() > 0.03
    coarse = (RNG.normal(40, 25, 50_000).clip(0, 255).astype(np.uint16)) * 256  # 8 bits in 16: the next value is 256
    levels = RNG.choice([0, 1000, 2000], 50_000).astype(np.uint16)  # a phantom
    middle = np.concatenate([RNG.normal(0, 1, 50_000), np.zeros(9000)]).astype(np.float32)  # 0 is no end
    few = np.concatenate([TISSUE.ravel(), np.zeros(5, np.uint16)])  # the window cuts these off anyway
    for image in (clipped, coarse, levels, middle, few):
        assert contrast_of(image) == tuple(np.percentile(image.astype(np.float64), percentiles))
    assert contrast_of(np.zeros(9, np.uint16)) == (0, 0)
    assert contrast_of(np.full(9, np.nan)) is None


def test_a_padded_volume_keeps_its_gray_levels() -> None:
    padded = TISSUE.copy()
    padded[:, :14] = 0
    window = window_of(volume(padded))
    shown = window.apply(padded)
    assert len(np.unique(shown[:, 14:])) > 150
    assert not shown[:, :14].any()


def test_not_finite_pixels_become_0_and_are_ignored(capfd: pytest.CaptureFixture[str]) -> None:
    image = RNG.normal(100, 20, (5, 20, 30)).astype(np.float32)
    wrong = np.zeros(image.shape, bool)
    wrong[2, 3:9, 4:8], wrong[4, 0, 0], wrong[4, 0, 1] = True, True, True
    image[wrong], image[4, 0, 0], image[4, 0, 1] = np.nan, np.inf, -np.inf
    drawn = np.zeros(image.shape, bool)
    drawn[0] = True
    opened = Opened("x", "", Mapped(image), None, None)
    window = window_of(volume(opened))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for inverted in (False, True):
            assert not gray(opened, window, inverted)[:][wrong].any()
        assert not Window(window.high, window.low, "float32").apply(image)[wrong].any(), "a window that inverts"
        assert window.apply(image[2, 3, 4]) == 0, "a single pixel"
        for given_ignore, expected in ((None, wrong), (drawn, wrong | drawn)):
            found = ignore_not_finite(volume(opened, ignore=given_ignore))
            assert found.ignore is not None
            np.testing.assert_array_equal(found.ignore[:], expected)
            assert found.provenance[KEY] == str(wrong.sum())
            assert ignore_not_finite(found) is found, "once is enough"
    assert f"note: v: {wrong.sum()} of 3,000 pixels are NaN or infinite" in capfd.readouterr().err
    whole = replace(volume(opened), image=np.nan_to_num(image))
    assert ignore_not_finite(whole).ignore is None
    assert ignore_not_finite(volume(TISSUE)).provenance == {}, "integers are finite"
    with pytest.raises(InputError, match="all of them NaN or infinite"):
        ignore_not_finite(volume(np.full_like(image, np.nan)))
