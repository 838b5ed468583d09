"""Folds, domains and the leak check."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from dataset_builder.fingerprint import MAX_DIFFERENT_BITS, near_pairs, perceptual_hash
from dataset_builder.leaks import Placed, check_leaks
from dataset_builder.splits import SplitPolicy, part_of
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Organelle, Volume, VoxelSize


def volume(slices: int = 64, voxel: tuple[float, float, float] = (5.0, 5.0, 5.0), **changes: object) -> Volume:
    empty = np.zeros((slices, 8, 8), np.uint8)
    given_volume = Volume(
        volume_id="v",
        image=empty,
        semantic=empty,
        voxel_size=VoxelSize(*voxel),
        source="s",
        specimen="specimen",
        cell_type="",
        modality="FIB-SEM",
        annotated={Organelle.MITO: "manual"},
    )
    return replace(given_volume, **changes)  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.integers(1, 300), st.floats(1, 100), st.floats(0, 500), st.sampled_from([None, "train"]))
def test_slabs_are_contiguous_ordered_and_at_least_the_gap_apart(
    slices: int, z_nm: float, gap_nm: float, published: str | None
) -> None:
    folds = SplitPolicy(gap_nm=gap_nm).folds_of(volume(slices, (z_nm, 5.0, 5.0), published_fold=published))
    order = [folds[z] for z in sorted(folds)]
    assert order == sorted(order, key=["train", "validation", "test"].index)
    assert set(order) in ({"train"}, {"train", "validation"} if published else {"train", "validation", "test"})
    placed = [Placed("v", z, z_nm, "s", fold, "in", None) for z, fold in folds.items()]
    check_leaks(placed, gap_nm)
    if len(set(order)) > 1:
        assert min(folds) == 0
        assert max(folds) == slices - 1
        assert order.count("train") >= 3
    else:
        assert len(folds) == slices


def test_the_real_lucchi_crop_is_divided_as_documented() -> None:
    order = list(SplitPolicy().folds_of(volume()).values())
    assert [order.count(fold) for fold in ("train", "validation", "test")] == [29, 7, 12]


def test_domains() -> None:
    policy = SplitPolicy()
    out = volume(modality="ssTEM", domain="out")
    assert policy.domain_of(out) == "out"
    assert set(policy.folds_of(out).values()) == {"test"}
    held_out = volume(domain="out")
    assert (policy.domain_of(held_out), part_of(held_out)) == ("out", "heterogeneous")  # homogeneous is in-domain
    held = SplitPolicy(held_out=frozenset({"specimen"}))
    assert held.domain_of(volume()) == "out"
    assert set(held.folds_of(volume()).values()) == {"test"}
    assert set(policy.folds_of(volume(published_fold="test")).values()) == {"test"}


def test_the_homogeneous_rule() -> None:
    assert part_of(volume()) == "homogeneous"
    assert part_of(volume(voxel=(8.0, 8.0, 8.0))) == "homogeneous"
    assert part_of(volume(voxel=(9.0, 9.0, 9.0))) == "heterogeneous"
    assert part_of(volume(voxel=(5.24, 4.0, 4.0))) == "heterogeneous"
    assert part_of(volume(modality="ssTEM")) == "heterogeneous"
    assert part_of(volume(ignore=np.zeros((64, 8, 8), bool))) == "heterogeneous"


def test_every_kind_of_leak_is_named() -> None:
    rows = [
        Placed("a", 0, 5.0, "mouse", "train", "in", None),
        Placed("a", 4, 5.0, "mouse", "validation", "in", None),
        Placed("b", 0, 5.0, "mouse", "test", "out", None),
        Placed("c", 0, 5.0, "fly", "train", "in", 0b1011),
        Placed("d", 0, 5.0, "worm", "test", "out", 0b1000),
    ]
    with pytest.raises(InputError) as caught:
        check_leaks(rows, gap_nm=40.0)
    text = str(caught.value)
    assert "leaks in 3 places" in text
    assert "specimen group mouse is held out and also trains" in text
    assert "a: slices 0 and 4 are 15 nm apart, not 40" in text
    assert "c slice 0 (train) looks like d slice 0 (test)" in text


def test_a_clean_split_passes() -> None:
    rows = [
        Placed("a", 0, 5.0, "mouse", "train", "in", 0),
        Placed("a", 9, 5.0, "mouse", "test", "in", (1 << 200) - 1),
        Placed("b", 0, 5.0, "fly", "test", "out", ((1 << 100) - 1) << 150),
    ]
    check_leaks(rows, gap_nm=40.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2**256 - 1), max_size=6), st.data())
def test_near_pairs_finds_exactly_the_close_ones(hashes: list[int], data: st.DataObject) -> None:
    for value in list(hashes):
        flips = data.draw(st.sets(st.integers(0, 255), max_size=25))
        for bit in flips:
            value ^= 1 << bit
        hashes.append(value)
    expected = [
        (i, j)
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if bin(hashes[i] ^ hashes[j]).count("1") <= MAX_DIFFERENT_BITS
    ]
    assert near_pairs(hashes) == expected


def test_perceptual_hash_survives_noise_and_contrast_but_not_another_image() -> None:
    rng = np.random.default_rng(0)
    one, other = (ndimage.gaussian_filter(rng.normal(size=(200, 180)), 4) * 400 + 128 for _ in range(2))
    copy = np.clip(one * 0.8 + 20 + rng.normal(0, 3, one.shape), 0, 255).astype(np.uint8)
    first, second, third = (perceptual_hash(np.clip(image, 0, 255).astype(np.uint8)) for image in (one, copy, other))
    assert first is not None
    assert second is not None
    assert third is not None
    assert bin(first ^ second).count("1") <= MAX_DIFFERENT_BITS
    assert bin(first ^ third).count("1") > 60
    assert perceptual_hash(np.full((50, 50), 7, np.uint8)) is None
