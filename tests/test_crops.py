"""Training crops: aligned and masked as the row says, balanced, and the same whatever was drawn before."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from baselines.aligned_rows import AlignedRows
from baselines.augment import augmented, blurred, random_intensity, random_symmetry, to_batch
from baselines.data import Crops, crop_plane
from baselines.preprocess import IGNORE, NORMALISATIONS, align_row, inner_distance, percentile_normalised
from baselines.recipe import Recipe
from em_bench_eval.errors import InputError
from em_bench_eval.rows import decode_row, encode_png

torch.set_num_threads(1)
RECIPE = Recipe(steps=1, batch_size=1, crop=32, lr=1e-3, augment=False)


def _row(
    instances: np.ndarray,
    organelles: list[str],
    annotated: list[str],
    nm: float = 8.0,
    ignore: np.ndarray | None = None,
) -> dict[str, Any]:
    image = np.random.default_rng(0).integers(0, 255, instances.shape).astype(np.uint8)
    objects = []
    for id_, organelle in enumerate(organelles, start=1):
        y, x = np.nonzero(instances == id_)
        objects.append(
            {
                "id": id_,
                "organelle": organelle,
                "instance_id": id_,
                "area": len(y),
                "bbox": [int(y.min()), int(x.min()), int(y.max()) + 1, int(x.max()) + 1],
                "touches_border": False,
            }
        )
    return {
        "image": {"bytes": encode_png(image), "path": None},
        "instances": {"bytes": encode_png(instances.astype(np.uint16)), "path": None},
        "ignore": None if ignore is None else {"bytes": encode_png(ignore), "path": None},
        "objects": objects,
        "annotated": annotated,
        "pixel_size_nm": [nm, nm],
        "volume_id": "v",
        "axis": "z",
        "slice": 0,
        "source": "s",
        "specimen": "s",
        "domain": "in",
        "fold": "train",
    }


def _two_rows() -> list[dict[str, Any]]:
    """A large image with one small mitochondrion in a corner, and one with an endosome; 4 and 8 nm."""
    first = np.zeros((400, 400), int)
    first[380:396, 380:396] = 1
    second = np.zeros((100, 120), int)
    second[10:20, 90:100] = 1
    return [_row(first, ["mito"], ["mito"], nm=4.0), _row(second, ["endo"], ["endo", "er"])]


def test_targets_say_what_is_known() -> None:
    instances = np.zeros((40, 40), int)
    instances[5:15, 5:15], instances[20:30, 20:30] = 1, 2
    ignore = np.zeros((40, 40), bool)
    ignore[:, 35:] = True
    row = _row(instances, ["mito", "nucleus"], ["mito"], nm=8.0, ignore=ignore)
    aligned = align_row(decode_row(row), 8.0, "percentile-1-99")
    expected = np.where(instances == 1, 1, np.where(instances == 2, IGNORE, 0))
    expected[:, 35:] = IGNORE
    np.testing.assert_array_equal(aligned.semantic, expected)


def test_alignment_brings_4_nm_to_8_nm() -> None:
    rows = AlignedRows(_two_rows())
    assert rows[0].image.shape == rows[0].semantic.shape == (200, 200)
    assert rows[1].image.shape == (100, 120)
    assert np.count_nonzero(rows[0].semantic == 1) == 64


def _batch(crops: list[dict[str, Any]], seed: int = 3) -> Any:
    stacked = {name: torch.from_numpy(np.stack([crop[name] for crop in crops])) for name in crops[0]}
    batch = to_batch(stacked, torch.device("cpu"))
    return augmented(batch, stacked["number"], seed, NORMALISATIONS["percentile-1-99"])


def test_a_crop_depends_on_seed_and_number_only() -> None:
    one, other = Crops(_two_rows(), RECIPE, seed=3), Crops(_two_rows(), RECIPE, seed=3, cache_bytes=1)
    forward = [one[number] for number in range(6)]
    backward = {number: other[number] for number in reversed(range(6))}
    for number, crop in enumerate(forward):
        for name, value in crop.items():
            np.testing.assert_array_equal(value, backward[number][name], err_msg=f"{name} of crop {number}")
    assert not np.array_equal(forward[0]["image"], forward[1]["image"])
    assert not np.array_equal(Crops(_two_rows(), RECIPE, seed=4)[0]["image"], forward[0]["image"])


def test_augmentation_depends_on_seed_and_number_only_not_on_the_batch() -> None:
    crops = [Crops(_two_rows(), RECIPE, seed=3)[number] for number in range(6)]
    together, backward = _batch(crops), _batch(crops[::-1])
    for number, crop in enumerate(crops):
        alone = _batch([crop])
        for name in together:
            torch.testing.assert_close(together[name][number], alone[name][0], rtol=0, atol=0)
            torch.testing.assert_close(together[name][number], backward[name][5 - number], rtol=0, atol=0)
    assert not torch.equal(together["image"], _batch(crops, seed=4)["image"])


def test_crops_are_balanced_over_organelles_and_hold_what_they_were_placed_on() -> None:
    crops = Crops(_two_rows(), dataclasses.replace(RECIPE, foreground=1.0), seed=0)
    assert crops.trained_organelles == ("mito", "er", "endo")
    seen = {1: 0, 4: 0}
    for number in range(80):
        semantic = crops[number]["semantic"]
        for label in seen:
            seen[label] += bool((semantic == label).any())
    assert sum(seen.values()) == 80  # without balance the small mitochondrion would be in 1 crop of 40
    assert min(seen.values()) > 25


def test_a_crop_larger_than_its_image_is_filled_up_with_unknown() -> None:
    crop = Crops(_two_rows()[1:], dataclasses.replace(RECIPE, crop=128), seed=0)[0]
    assert crop["image"].shape == (1, 128, 128)
    assert crop["semantic"].dtype == np.uint8
    np.testing.assert_array_equal(crop["semantic"][100:], IGNORE)
    np.testing.assert_array_equal(crop["semantic"][:, 120:], IGNORE)
    assert (crop["semantic"][:100, :120] != IGNORE).all()
    np.testing.assert_array_equal(crop["annotated"], [False, False, True, True, False])


def test_augmentation_moves_image_and_targets_together() -> None:
    plane = np.add.outer(7 * np.arange(24), 3 * np.arange(24))
    crop = {
        "image": (plane[None] / 250 * 2 - 1).astype(np.float16),
        "semantic": plane.astype(np.uint8),
        "instances": plane.astype(np.int32),
        "distance": plane.astype(np.uint8),
        "annotated": np.ones(5, bool),
    }
    seen = set()
    for number in range(40):
        batch = _batch([crop | {"number": np.int64(number)}])
        moved = batch["semantic"][0]
        assert torch.equal(moved, batch["instances"][0])
        assert torch.equal(moved.float() / 255, batch["distance"][0])
        correlation = np.corrcoef(np.stack([batch["image"][0, 0].numpy().ravel(), moved.numpy().ravel()]))[0, 1]
        assert correlation > 0.8  # whatever happened to contrast, focus and noise
        seen.add(moved.numpy().tobytes())
    assert len(seen) == 8  # the symmetries of the square


def test_a_volume_is_also_mirrored_along_z() -> None:
    volume = torch.arange(8).reshape(1, 2, 2, 2)
    found = {
        random_symmetry({"semantic": volume[0], "image": volume.float()}, np.random.default_rng(seed))["semantic"]
        .numpy()
        .tobytes()
        for seed in range(60)
    }
    assert len(found) == 16


def test_a_split_without_annotations_is_refused() -> None:
    with pytest.raises(InputError, match="nothing to learn from"):
        Crops([_row(np.zeros((9, 9), int), [], [])], RECIPE, seed=0)


def test_the_cache_stays_within_its_bound() -> None:
    rows = AlignedRows(_two_rows(), cache_bytes=100)
    for index in (0, 1, 0, 1):
        assert rows[index].image.size > 0
    assert len(rows._cache) == 1


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_inner_distance_equals_the_brute_force(seed: int) -> None:
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 3, (4, 5))
    instances = np.kron(coarse, np.ones((3, 2), int))
    found = inner_distance(instances)
    points = [(y, x) for y in range(instances.shape[0]) for x in range(instances.shape[1])]
    raw = np.zeros(instances.shape)
    for y, x in points:
        if instances[y, x]:
            others = [(y - v) ** 2 + (x - u) ** 2 for v, u in points if instances[v, u] != instances[y, x]]
            raw[y, x] = min(others, default=1) ** 0.5
    for id_ in (1, 2):
        for piece in _pieces(instances == id_):
            np.testing.assert_allclose(found[piece], raw[piece] / raw[piece].max(), rtol=1e-5)
    assert (found[instances == 0] == 0).all()


def _pieces(mask: np.ndarray) -> list[np.ndarray]:
    """4-connected pieces by flood fill."""
    todo, pieces = mask.copy(), []
    while todo.any():
        stack, piece = [tuple(np.argwhere(todo)[0])], np.zeros_like(mask)
        while stack:
            y, x = stack.pop()
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and todo[y, x]:
                todo[y, x], piece[y, x] = False, True
                stack += [(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)]
        pieces.append(piece)
    return pieces


def test_normalisation_is_robust_and_independent_of_brightness_and_contrast() -> None:
    image = np.random.default_rng(0).integers(50, 200, (64, 64)).astype(np.float32)
    normal = percentile_normalised(image)
    np.testing.assert_allclose(percentile_normalised(image * 0.5 + 20), normal, atol=1e-4)
    hot = image.copy()
    hot[0, 0] = 1e6
    assert abs(percentile_normalised(hot) - normal)[1:].max() < 0.05
    assert normal.min() >= -1.5
    assert percentile_normalised(np.full((4, 4), 7)).tolist() == np.zeros((4, 4)).tolist()


@pytest.mark.parametrize("name", sorted(NORMALISATIONS))
def test_intensity_augmentation_stays_in_the_range_of_its_normalisation(name: str) -> None:
    of, low, high = NORMALISATIONS[name].of, NORMALISATIONS[name].low, NORMALISATIONS[name].high
    image = torch.from_numpy(of(np.random.default_rng(0).integers(0, 256, (32, 32)).astype(np.uint8)))[None]
    assert low - 1e-4 <= float(image.min()) <= float(image.max()) <= high + 1e-4
    changed = 0
    for seed in range(20):
        found = random_intensity(image, np.random.default_rng(seed), seed, 0, NORMALISATIONS[name])
        assert found.shape == image.shape
        assert low - 1e-4 <= float(found.min()) <= float(found.max()) <= high + 1e-4
        changed += not torch.allclose(found, image)
    assert changed > 15


def test_blur_equals_scipy() -> None:
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 20, 24)).astype(np.float32))
    expected = ndimage.gaussian_filter(image[0].numpy(), 1.0, mode="mirror", truncate=3.0)
    np.testing.assert_allclose(blurred(image, 1.0)[0].numpy(), expected, atol=1e-5)


def test_crop_plane_reflects_or_fills() -> None:
    plane = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(crop_plane(plane, (0, 0), 4, None)[0], [0, 1, 2, 1])
    np.testing.assert_array_equal(crop_plane(plane, (0, 0), 3, 9), [[0, 1, 2], [3, 4, 5], [9, 9, 9]])
    np.testing.assert_array_equal(crop_plane(plane, (0, 1), 2, 9), [[1, 2], [4, 5]])
