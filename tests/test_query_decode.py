"""From queries to instances, against slow twins; and the traps of the usual post-processing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.decode import DECODERS, Decoder
from baselines.networks.query_decode import QueryRule, contested, decode_queries, suppressed, upsampled
from em_bench_eval.schema import Organelle

torch.set_num_threads(1)
ALL = list(Organelle)
ANY_AREA = {organelle: Decoder(min_area_nm2=0.0) for organelle in Organelle}


def class_logits(*chosen: tuple[int, float]) -> torch.Tensor:
    """Queries with that channel at that probability; "no object" has the rest."""
    rows = []
    for channel, p in chosen:
        row = torch.full((len(ALL) + 1,), 1e-6)
        row[channel], row[-1] = p, 1 - p
        rows.append(row.log())
    return torch.stack(rows)


def planes(*boxes: tuple[int, int, int, int], size: int = 8, inside: float = 4.0) -> torch.Tensor:
    logits = torch.full((len(boxes), size, size), -8.0)
    for plane, (y0, x0, y1, x1) in zip(logits, boxes, strict=True):
        plane[y0:y1, x0:x1] = inside
    return logits


def decode_all(classes: torch.Tensor, masks: torch.Tensor, **options: object):  # type: ignore[no-untyped-def]
    values: dict[str, object] = {
        "scale": 1,
        "shape": (masks.shape[1], masks.shape[2]),
        "organelles": ALL,
        "pixel_size_nm": (8.0, 8.0),
        "decoders": ANY_AREA,
    }
    return decode_queries(classes, masks, **(values | options))  # type: ignore[arg-type]


def test_a_score_is_class_probability_times_mean_mask_probability() -> None:
    (mask,) = decode_all(class_logits((0, 0.9)), planes((1, 1, 5, 4), inside=2.0))
    assert mask.organelle is Organelle.MITO
    assert mask.box == (1, 1, 5, 4)
    assert mask.score == pytest.approx(0.9 / (1 + math.exp(-2.0)), rel=1e-4)
    assert decode_all(class_logits((0, 0.55)), planes((1, 1, 5, 4), inside=2.0)) == []  # 0.55 * 0.88 < 0.5
    assert decode_all(class_logits((5, 0.9)), planes((1, 1, 5, 4))) == []  # "no object"
    assert decode_all(class_logits((0, 0.9)), planes((0, 0, 0, 0))) == []  # an empty mask


def test_one_query_is_never_two_instances() -> None:
    classes = torch.full((1, 6), 1e-6)
    classes[0, 0], classes[0, 2] = 0.5, 0.49
    (mask,) = decode_all(classes.log(), planes((1, 1, 5, 4)), rule=QueryRule(min_score=0.3))
    assert mask.organelle is Organelle.MITO


def test_an_organelle_that_was_never_trained_is_no_object() -> None:
    organelles = [organelle if organelle is Organelle.MITO else None for organelle in Organelle]
    found = decode_all(class_logits((0, 0.9), (2, 0.9)), planes((0, 0, 3, 3), (4, 4, 8, 8)), organelles=organelles)
    assert [mask.organelle for mask in found] == [Organelle.MITO]


@given(scale=st.integers(1, 5), height=st.integers(1, 20), width=st.integers(1, 20), seed=st.integers(0, 99))
@settings(max_examples=30)
def test_logits_are_interpolated_where_their_pixels_lie(scale: int, height: int, width: int, seed: int) -> None:
    """A (possibly padded) image's pixel (y, x) lies at ((y + 0.5) / scale - 0.5) of the logits' pixel centres."""
    h, w = -(-height // scale), -(-width // scale)
    logits = torch.randn(2, h, w, generator=torch.Generator().manual_seed(seed))
    result = upsampled(logits, scale, (height, width))
    assert result.shape == (2, height, width)
    for y in range(0, height, 3):
        for x in range(0, width, 3):
            v, u = (min(max((place + 0.5) / scale - 0.5, 0), size - 1) for place, size in ((y, h), (x, w)))
            v0, u0 = int(v), int(u)
            v1, u1, dv, du = min(v0 + 1, h - 1), min(u0 + 1, w - 1), v - v0, u - u0
            expected = (1 - dv) * ((1 - du) * logits[:, v0, u0] + du * logits[:, v0, u1]) + dv * (
                (1 - du) * logits[:, v1, u0] + du * logits[:, v1, u1]
            )
            torch.testing.assert_close(result[:, y, x], expected, atol=1e-5, rtol=1e-5)


def test_logits_and_not_probabilities_are_interpolated() -> None:
    """Halfway between logits 10 and -2 lies 4, inside the mask by far; between their probabilities lies 0.56."""
    logits = torch.tensor([[[10.0, -2.0]]])
    wide = upsampled(logits, 4, (4, 8))
    assert wide[0, 0].tolist() == pytest.approx([10, 10, 8.5, 5.5, 2.5, -0.5, -2, -2])
    (mask,) = decode_all(class_logits((0, 0.99)), logits, scale=4, shape=(4, 8), rule=QueryRule(min_score=0.1))
    assert mask.box == (0, 0, 4, 5)
    of_probabilities = F.interpolate(logits.sigmoid()[None], size=(4, 8), mode="bilinear")[0, 0, 0] > 0.5
    assert int(of_probabilities.sum()) == 4


def slow_suppression(masks: np.ndarray, channel: list[int], max_iou: float) -> list[int]:
    kept: list[int] = []
    for i in range(len(masks)):
        for j in kept:
            common = sum(bool(a and b) for a, b in zip(masks[i].flat, masks[j].flat, strict=True))
            union = sum(bool(a or b) for a, b in zip(masks[i].flat, masks[j].flat, strict=True))
            if channel[i] == channel[j] and common > max_iou * union:
                break
        else:
            kept.append(i)
    return kept


@given(seed=st.integers(0, 10_000), count=st.integers(0, 6), max_iou=st.sampled_from([0.0, 0.3, 0.5]))
@settings(max_examples=40)
def test_suppression_equals_its_slow_twin(seed: int, count: int, max_iou: float) -> None:
    generator = np.random.default_rng(seed)
    masks = generator.random((count, 4, 5)) < generator.uniform(0.2, 0.95)
    channel = generator.integers(0, 2, count).tolist()
    kept = suppressed(torch.from_numpy(masks), torch.tensor(channel), max_iou)
    assert kept.tolist() == slow_suppression(masks, channel, max_iou)


def slow_contest(inside: np.ndarray, scores: list[float], min_kept: float) -> np.ndarray:
    alive = set(range(len(inside)))
    while True:
        owner = np.full(inside.shape[1:], -1)
        for y, x in np.ndindex(*owner.shape):
            best = 0.0
            for i in sorted(alive):
                if inside[i, y, x] * np.float32(scores[i]) > best:
                    best, owner[y, x] = inside[i, y, x] * np.float32(scores[i]), i
        losers = [i for i in alive if (owner == i).sum() < min_kept * (inside[i] > 0).sum()]
        if not losers:
            return owner
        alive.remove(min(losers, key=lambda i: scores[i]))


@given(seed=st.integers(0, 10_000), count=st.integers(0, 5), min_kept=st.sampled_from([0.0, 0.5, 0.8]))
@settings(max_examples=40)
def test_contested_pixels_go_as_in_the_slow_twin(seed: int, count: int, min_kept: float) -> None:
    generator = np.random.default_rng(seed)
    inside = generator.uniform(0.5, 1.0, (count, 4, 5)) * (generator.random((count, 4, 5)) < 0.4)
    inside = inside.astype(np.float32)
    scores = generator.permutation(np.linspace(0.5, 1, 6))[:count].tolist()
    owner = contested(torch.from_numpy(inside), torch.tensor(scores, dtype=torch.float32), min_kept)
    np.testing.assert_array_equal(owner.numpy(), slow_contest(inside, scores, min_kept))


def test_a_mask_that_another_covers_for_the_most_part_is_dropped_and_a_touching_one_stays() -> None:
    boxes = (0, 0, 8, 4), (0, 2, 8, 5), (0, 4, 8, 8)  # the second lies on both others: IoU with each below 0.5
    classes = class_logits((0, 0.95), (0, 0.9), (0, 0.94))
    found = decode_all(classes, planes(*boxes))
    assert sorted(mask.box for mask in found) == [(0, 0, 8, 4), (0, 4, 8, 8)]
    found = decode_all(classes, planes(*boxes), rule=QueryRule(min_kept=0.0))
    assert sum(mask.area for mask in found) == 64 == sum(int(mask.mask.sum()) for mask in found)


def test_results_share_no_pixel_and_do_not_depend_on_the_order_of_the_queries() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        classes = 3 * torch.randn(12, 6, generator=generator)
        masks = F.interpolate(4 * torch.randn(1, 12, 4, 4, generator=generator), size=(16, 16), mode="bilinear")[0]
        rule = QueryRule(min_score=0.3, min_kept=0.3)
        found = decode_all(classes, masks, rule=rule)
        assert len(found) > 1
        total = sum(mask.plane((16, 16)).astype(int) for mask in found)
        assert total.max() == 1
        order = torch.randperm(12, generator=generator)
        again = decode_all(classes[order], masks[order], rule=rule)
        assert [(m.box, m.organelle, m.area) for m in again] == [(m.box, m.organelle, m.area) for m in found]
        assert [m.score for m in again] == pytest.approx([m.score for m in found], rel=1e-5)


def test_minimum_area_holes_and_crop_edges_follow_the_decoders() -> None:
    ring, large, speck, cut = (2, 2, 30, 30), (10, 10, 17, 17), (20, 20, 23, 23), (0, 0, 2, 2)
    logits = planes(ring, large, speck, cut, size=40)
    logits[0, 8:25, 8:25] = -8.0  # both others lie in the ring's hole
    found = decode_all(class_logits((0, 0.9), (2, 0.9), (2, 0.9), (0, 0.9)), logits, decoders=DECODERS)
    by_box = {mask.box: mask for mask in found}
    assert set(by_box) == {ring, large, cut}  # 9 pixels are 576 nm²: too small for ER; what the crop cuts stays
    assert by_box[ring].area == 28 * 28 - 49  # filled, except for what another query found in the hole
