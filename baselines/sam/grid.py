"""Segment Anything's automatic mode: ask for masks at a grid of points, keep those that are good and not repeated.

The filters and their order are those of segment-anything's mask generator with its defaults, without crop layers: mask
quality as the network predicts it, stability of the mask against its threshold, box non-maximum suppression.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from baselines.masks import Mask, disjoint
from em_bench_eval.errors import InputError

PIXELS_AT_A_TIME = 1 << 24  # of masks at the image's resolution: bounds the working memory to some 200 MB


@dataclass(frozen=True)
class GridSettings:
    """What is asked and what is kept; the defaults are segment-anything's, and micro-SAM's background rule."""

    points_per_side: int = 32
    points_per_batch: int = 64  # asked at a time: memory, no effect on the result but rounding
    min_predicted_iou: float = 0.88
    min_stability: float = 0.95
    stability_offset: float = 1.0  # logits above and below the threshold 0
    max_box_iou: float = 0.7
    min_area: int = 0  # pixels at the aligned pixel size
    drop_background: bool = True  # the largest object of an image, if it is larger than what no mask covers

    def __post_init__(self) -> None:
        for name in ("points_per_side", "points_per_batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is out of range", found=getattr(self, name), expected="1 or more")
        for name in ("min_predicted_iou", "min_stability", "max_box_iou"):
            if not getattr(self, name) <= 1:
                raise InputError(f"{name} is out of range", found=getattr(self, name), expected="at most 1")


def generate(
    ask: Callable[[Tensor], tuple[Tensor, Tensor]],
    upsample: Callable[[Tensor], Tensor],
    shape: tuple[int, int],
    settings: GridSettings,
) -> list[Mask]:
    """Find masks in an image of ``shape`` (y, x); they may overlap, the one with the highest predicted IoU is first.

    ``ask`` maps points (n, 2) as (x, y) in pixels to mask logits (n, m, l, l) and predicted IoU (n, m); ``upsample``
    maps chosen logits (k, l, l) to (k, y, x).
    """
    points = point_grid(settings.points_per_side) * torch.tensor([shape[1], shape[0]], dtype=torch.float32)
    batches = torch.split(points, settings.points_per_batch)
    found: list[Mask] = []
    boxes: list[Tensor] = []
    chunk = max(1, PIXELS_AT_A_TIME // (shape[0] * shape[1]))
    for batch in tqdm(batches, desc="points", unit="batch", leave=False, disable=len(batches) < 8):
        logits, predicted = (answer.flatten(0, 1) for answer in ask(batch))
        promising = (predicted > settings.min_predicted_iou).nonzero()[:, 0]
        for part in torch.split(promising, chunk) if len(promising) else ():
            whole = upsample(logits[part])
            stable = stability(whole, settings.stability_offset) >= settings.min_stability
            planes, scores = whole[stable] > 0, predicted[part][stable]
            kept = planes.flatten(1).sum(1) >= max(1, settings.min_area)
            planes, scores = planes[kept], scores[kept]
            corners = mask_boxes(planes)
            for plane, box, score in zip(planes, corners.tolist(), scores.tolist(), strict=True):
                x0, y0, x1, y1 = box
                cut = plane[y0 : y1 + 1, x0 : x1 + 1].cpu().numpy().copy()
                found.append(Mask(cut, (y0, x0), None, float(score)))
            boxes.append(corners.cpu())
    if not found:
        return []
    kept = box_nms(torch.cat(boxes).float(), torch.tensor([mask.score for mask in found]), settings.max_box_iou)
    return [clipped(found[index]) for index in kept.tolist()]


def clipped(mask: Mask) -> Mask:
    """Bring the score, which a regression may put outside, into 0..1."""
    return Mask(mask.mask, mask.corner, mask.organelle, float(np.clip(mask.score, 0.0, 1.0)))


def point_grid(per_side: int) -> Tensor:
    """Centres of ``per_side`` x ``per_side`` equal cells of the unit square: (per_side^2, 2) as (x, y), row by row."""
    line = (torch.arange(per_side, dtype=torch.float32) + 0.5) / per_side
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def stability(logits: Tensor, offset: float) -> Tensor:
    """How little a mask changes with its threshold: IoU of the masks at ``+offset`` and ``-offset``, (k,) in 0..1.

    ``logits`` is (k, y, x). The one mask contains the other, so that two counts decide; nothing at either is 0.
    """
    inner, outer = ((logits > threshold).flatten(1).sum(1) for threshold in (offset, -offset))
    return inner / outer.clamp(min=1)


def mask_boxes(planes: Tensor) -> Tensor:
    """First and last column and row of bool masks (k, y, x), none of them empty: (k, 4) as (x0, y0, x1, y1)."""
    if not len(planes):
        return torch.zeros((0, 4), dtype=torch.int64, device=planes.device)
    ends = []
    for axis in (1, 2):  # any over rows leaves columns
        line = planes.any(dim=axis)
        size = line.shape[1]
        ends += [line.int().argmax(1), size - 1 - line.flip(1).int().argmax(1)]
    x0, x1, y0, y1 = ends
    return torch.stack([x0, y0, x1, y1], dim=1)


def box_nms(boxes: Tensor, scores: Tensor, max_iou: float) -> Tensor:
    """Greedy non-maximum suppression: indices of the boxes that no better kept box overlaps by more than ``max_iou``.

    ``boxes`` (n, 4) are (x0, y0, x1, y1) with areas (x1 - x0) (y1 - y0), as in torchvision, whose place this takes.
    Best first; of equal scores the earlier box wins.
    """
    order = scores.argsort(descending=True, stable=True)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        low = torch.maximum(boxes[best, :2], boxes[rest, :2])
        high = torch.minimum(boxes[best, 2:], boxes[rest, 2:])
        common = (high - low).clamp(min=0).prod(1)
        union = areas[best] + areas[rest] - common
        order = rest[~(common > max_iou * union)]
    return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.int64)


def flat_masks(masks: list[Mask], shape: tuple[int, int], settings: GridSettings) -> list[Mask]:
    """Make masks disjoint, the small ones on top, and take the background out, as micro-SAM does.

    Asked at every point, the network also returns what lies between the objects. It is taken to be the largest object
    that remains visible, if that is larger than what no mask covers.
    """
    flat = disjoint(masks, shape, order="area")
    if not (settings.drop_background and flat):
        return flat
    areas = [mask.area for mask in flat]
    largest = int(np.argmax(areas))
    if areas[largest] > shape[0] * shape[1] - sum(areas):
        del flat[largest]
    return flat
