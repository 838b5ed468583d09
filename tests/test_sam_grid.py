"""The automatic mask generator: filters against slow twins, and a network that knows discs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from baselines.masks import Mask
from baselines.sam.grid import GridSettings, box_nms, flat_masks, generate, mask_boxes, point_grid, stability
from em_bench_eval.errors import InputError

SHAPE = (60, 80)
DISCS = ((15, 20, 9), (15, 55, 12), (42, 30, 10), (45, 65, 7))  # y, x, radius


@st.composite
def scored_boxes(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    count = draw(st.integers(0, 12))
    corner = st.integers(0, 8)
    rows = [sorted([draw(corner), draw(corner)]) + sorted([draw(corner), draw(corner)]) for _ in range(count)]
    boxes = torch.tensor([[x0, y0, x1, y1] for x0, x1, y0, y1 in rows], dtype=torch.float32).reshape(-1, 4)
    scores = torch.tensor([draw(st.sampled_from([0.1, 0.5, 0.5, 0.9])) for _ in range(count)])
    return boxes, scores


def box_iou(a: list[float], b: list[float]) -> float:
    width, height = (max(0.0, min(a[k + 2], b[k + 2]) - max(a[k], b[k])) for k in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union else 0.0


@given(scored_boxes(), st.sampled_from([0.0, 0.3, 0.7, 1.0]))
def test_nms_equals_the_slow_twin(item: tuple[Tensor, Tensor], max_iou: float) -> None:
    boxes, scores = item[0].tolist(), item[1].tolist()
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(box_iou(boxes[index], boxes[other]) <= max_iou + 1e-7 for other in kept):
            kept.append(index)
    assert box_nms(*item, max_iou).tolist() == kept


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 1.0, 3.0]))
@settings(max_examples=30)
def test_stability_and_boxes_equal_the_slow_twins(seed: int, offset: float) -> None:
    logits = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(seed)) * 2
    for plane, value in zip(logits.numpy(), stability(logits, offset).tolist(), strict=True):
        inner, outer = plane > offset, plane > -offset
        union = (inner | outer).sum()
        assert value == pytest.approx((inner & outer).sum() / union if union else 0.0)
    planes = logits > 0
    planes = planes[planes.flatten(1).any(1)]
    for plane, box in zip(planes.numpy(), mask_boxes(planes).tolist(), strict=True):
        y, x = np.nonzero(plane)
        assert box == [x.min(), y.min(), x.max(), y.max()]


def test_the_grid_is_made_of_cell_centres() -> None:
    assert point_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    assert len(point_grid(32)) == 1024


def disc(y: float, x: float, radius: float) -> Tensor:
    rows, columns = torch.meshgrid(*(torch.arange(float(size)) for size in SHAPE), indexing="ij")
    return 100 * (radius - torch.hypot(rows - y, columns - x))


class KnowsDiscs:
    """Answers a point in a disc with the disc, a blurred one and everything; elsewhere with the background."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        self.asked.append(len(points))
        masks, scores = [], []
        everything = torch.full(SHAPE, 30.0)
        background = -torch.stack([disc(*each) for each in DISCS]).amax(0)
        for x, y in points.tolist():
            inside = [each for each in DISCS if np.hypot(y - each[0], x - each[1]) < each[2] - 1]
            exact = disc(*inside[0]) if inside else background
            masks.append(torch.stack([exact, exact / 400, everything]))  # the second is unstable
            scores.append([0.95 if inside else 0.9, 0.99, 0.5])  # the third is poor
        return torch.stack(masks), torch.tensor(scores)


def same(mask: Mask, expected: Tensor) -> bool:
    return bool(np.array_equal(mask.plane(SHAPE), expected.numpy()))


def test_every_disc_is_found_once_and_the_background_is_dropped() -> None:
    network = KnowsDiscs()
    rule = GridSettings(points_per_side=12, points_per_batch=50)
    masks = generate(network, lambda logits: logits, SHAPE, rule)
    assert network.asked == [50, 50, 44]
    assert [mask.score for mask in masks] == pytest.approx([0.95] * 4 + [0.9])
    assert all(sum(same(mask, disc(*each) > 0) for mask in masks) == 1 for each in DISCS)
    flat = flat_masks(masks, SHAPE, rule)
    assert len(flat) == len(DISCS)
    assert all(sum(same(mask, disc(*each) > 0) for mask in flat) == 1 for each in DISCS)
    kept = flat_masks(masks, SHAPE, GridSettings(drop_background=False))
    assert len(kept) == len(DISCS) + 1


def test_results_do_not_depend_on_the_batch() -> None:
    found = [
        generate(KnowsDiscs(), lambda logits: logits, SHAPE, GridSettings(points_per_side=9, points_per_batch=size))
        for size in (1, 7, 100)
    ]
    assert all(len(masks) == len(found[0]) for masks in found)
    for masks in zip(*found, strict=True):
        assert all(np.array_equal(mask.plane(SHAPE), masks[0].plane(SHAPE)) for mask in masks)


@pytest.mark.parametrize(
    ("rule", "count"),
    [
        (GridSettings(points_per_side=12, min_predicted_iou=0.94), 4),  # without the background
        (GridSettings(points_per_side=12, min_predicted_iou=1.0), 0),
        (GridSettings(points_per_side=12, min_predicted_iou=0.94, min_area=200), 3),  # without the smallest disc
        (
            GridSettings(points_per_side=12, min_stability=0.0, max_box_iou=0.7),
            5,
        ),  # the unstable ones repeat the stable
        (GridSettings(points_per_side=12, min_predicted_iou=0.4), 5),  # everything has the background's box: once
    ],
)
def test_filters(rule: GridSettings, count: int) -> None:
    assert len(generate(KnowsDiscs(), lambda logits: logits, SHAPE, rule)) == count


def test_scores_are_probabilities_and_empty_masks_are_dropped() -> None:
    def ask(points: Tensor) -> tuple[Tensor, Tensor]:
        masks = torch.full((len(points), 1, *SHAPE), -5.0)
        masks[:, 0, 3, 4] = 5.0
        masks[1:] = -5.0
        return masks, torch.full((len(points), 1), 1.7)

    (mask,) = generate(ask, lambda logits: logits, SHAPE, GridSettings(points_per_side=3, min_stability=-1))
    assert (mask.score, mask.corner, mask.area, mask.organelle) == (1.0, (3, 4), 1, None)


def test_small_masks_lie_on_top_and_a_large_object_is_no_background() -> None:
    large, small = torch.zeros(SHAPE, dtype=torch.bool), torch.zeros(SHAPE, dtype=torch.bool)
    large[10:30, 10:50], small[15:20, 20:30] = True, True
    masks = [Mask(plane.numpy(), (0, 0), None, score) for plane, score in ((large, 0.99), (small, 0.9))]
    flat = flat_masks(masks, SHAPE, GridSettings())
    assert sorted(mask.area for mask in flat) == [50, 750]


def test_settings_out_of_range() -> None:
    with pytest.raises(InputError, match="points_per_side"):
        GridSettings(points_per_side=0)
    with pytest.raises(InputError, match="min_stability"):
        GridSettings(min_stability=1.5)
