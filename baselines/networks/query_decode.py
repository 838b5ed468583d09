"""From the queries of a mask transformer to instances.

The image processor of transformers is not used: it resizes every mask to 384 x 384 whatever the input, lets one query
appear under several classes, paints in no particular order and ignores its own overlap threshold. Here a query is at
most one instance, logits (not probabilities) are interpolated to the crop's pixels, a contested pixel goes to the
query with the largest score times probability, and what loses too much of itself that way is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

from baselines.decode import DECODERS, Decoder
from baselines.flood import filled
from baselines.masks import Mask, cut_to_box, drop_small
from em_bench_eval.schema import Organelle

MIN_PIECE_PIXELS = 16  # smaller pieces of a mask are crumbs, not instances


@dataclass(frozen=True)
class QueryRule:
    """What counts as found; shares and probabilities in 0..1."""

    min_score: float = 0.5  # probability of the organelle times the mean probability inside the mask
    mask_threshold: float = 0.5  # probability above which a pixel belongs to the mask
    max_iou: float = 0.5  # of two masks of one organelle; the one with the lower score goes
    min_kept: float = 0.8  # share of its own pixels that a mask must win against the others
    pieces: bool = False  # each connected piece of a query's mask is an instance, as each was a target in training


@torch.no_grad()
def decode_queries(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    scale: int,
    shape: tuple[int, int],
    organelles: Sequence[Organelle | None],
    pixel_size_nm: tuple[float, float],
    rule: QueryRule = QueryRule(),
    decoders: Mapping[Organelle, Decoder] = DECODERS,
) -> list[Mask]:
    """Decode one image; returns masks that share no pixel, the best first.

    ``class_logits``: (Q, C + 1), the last is "no object". ``mask_logits``: (Q, h, w); one of their pixels covers
    ``scale`` x ``scale`` of the image's, and they may reach beyond ``shape`` (y, x) at the right and bottom, where the
    image was padded. ``organelles``: what the C classes are; ``None`` for one that was never trained: its probability
    counts as "no object". Instances below the decoder's minimum area are dropped unless they touch the edge: they may
    go on in the next tile. Memory: one float32 plane per query whose class probability reaches ``min_score``.
    """
    probability = class_logits.float().softmax(-1)[:, :-1].clone()
    probability[:, [organelle is None for organelle in organelles]] = 0.0
    best, channel = probability.max(dim=-1)
    chosen = torch.nonzero(best >= rule.min_score)[:, 0]  # a score is at most the probability of its class
    if not len(chosen):
        return []
    inside = upsampled(mask_logits[chosen], scale, shape).sigmoid_()
    inside.masked_fill_(inside <= rule.mask_threshold, 0.0)  # from here on: probability inside the mask, else 0
    if rule.pieces:
        inside, source = split_into_pieces(inside, MIN_PIECE_PIXELS)
        chosen = chosen[source]
    area = (inside > 0).sum((1, 2))
    scores = best[chosen] * inside.sum((1, 2)) / area.clamp(min=1)
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[(scores[order] >= rule.min_score) & (area[order] > 0)]
    inside, scores, channel = inside[order], scores[order], channel[chosen][order]
    kept = suppressed(inside > 0, channel, rule.max_iou)
    inside, scores, channel = inside[kept], scores[kept], channel[kept]
    owner = contested(inside, scores, rule.min_kept)
    masks = []
    for index in torch.unique(owner[owner >= 0]).tolist():
        organelle = organelles[int(channel[index])]
        mask = cut_to_box((owner == index).cpu().numpy(), organelle, float(scores[index]))
        if mask is not None:
            masks.append(mask)
    large = drop_small(_filled(masks, decoders), pixel_size_nm, cut_by=shape, decoders=decoders)
    return _filled(large, decoders)  # again: what was dropped may have lain in a hole


def upsampled(logits: Tensor, scale: int, shape: tuple[int, int]) -> Tensor:
    """Interpolate (Q, h, w) logits bilinearly to (Q, h * scale, w * scale) float32 and cut them to ``shape``."""
    height, width = logits.shape[-2:]
    whole = F.interpolate(logits[None].float(), size=(height * scale, width * scale), mode="bilinear")
    return whole[0, :, : shape[0], : shape[1]].contiguous()


def split_into_pieces(inside: Tensor, min_pixels: int) -> tuple[Tensor, Tensor]:
    """Make a plane of each 8-connected piece with at least ``min_pixels`` pixels in (K, H, W) masks.

    Returns the planes and the index (0..K-1) of the mask that each comes from.
    """
    planes, source = [], []
    for index, mask in enumerate((inside > 0).cpu().numpy()):
        labels, _ = ndimage.label(mask, structure=np.ones((3, 3), bool))
        large = np.flatnonzero(np.bincount(labels.ravel())[1:] >= min_pixels) + 1
        for label in large.tolist():
            planes.append(inside[index] * torch.from_numpy(labels == label).to(inside.device))
            source.append(index)
    numbers = torch.tensor(source, dtype=torch.int64, device=inside.device)
    return (torch.stack(planes) if planes else inside[:0]), numbers


def suppressed(masks: Tensor, channel: Tensor, max_iou: float) -> Tensor:
    """Indices of the (K, H, W) bool masks that greedy non-maximum suppression keeps; the best come first.

    A mask is dropped if its IoU with a kept one of the same ``channel`` (K,) is above ``max_iou``.
    """
    flat = masks.flatten(1).float()
    area = flat.sum(1)
    common = flat @ flat.T
    rival = (common > max_iou * (area[:, None] + area[None] - common)) & (channel[:, None] == channel[None])
    rivals, kept = rival.cpu(), list[int]()
    for index in range(len(masks)):
        if not bool(rivals[index, kept].any()):
            kept.append(index)
    return torch.tensor(kept, dtype=torch.int64, device=masks.device)


def contested(inside: Tensor, scores: Tensor, min_kept: float) -> Tensor:
    """Give every pixel to one mask: (H, W) int64 index of its owner, -1 for none.

    ``inside``: (K, H, W) probabilities, 0 outside of the mask. The largest ``scores`` (K,) times probability has the
    pixel. While a mask has less than ``min_kept`` of its own pixels, the one of them with the lowest score is dropped
    and leaves its pixels to the others.
    """
    if not len(inside):
        return torch.full(inside.shape[1:], -1, dtype=torch.int64, device=inside.device)
    value = inside * scores[:, None, None]
    own = (inside > 0).sum((1, 2))
    alive = torch.ones(len(inside), dtype=torch.bool, device=inside.device)
    while True:
        most, owner = value.max(dim=0)
        owner[most <= 0] = -1
        won = torch.bincount(owner.flatten() + 1, minlength=len(inside) + 1)[1:]
        losers = torch.nonzero(alive & (won < min_kept * own))[:, 0]
        if not len(losers):
            return owner
        worst = losers[scores[losers].argmin()]
        alive[worst] = False
        value[worst] = 0.0


def _filled(masks: Sequence[Mask], decoders: Mapping[Organelle, Decoder]) -> list[Mask]:
    """Fill holes where the organelle's decoder says so; what lies in a hole as another instance keeps its pixels."""
    result = list(masks)
    for index in sorted(range(len(result)), key=lambda i: result[i].area):  # the inner one of two rings has the hole
        mask = result[index]
        if mask.organelle is None or not decoders[mask.organelle].fill_holes:
            continue
        plane = filled(mask.mask)
        if plane.sum() == mask.area:
            continue
        for other in result[:index] + result[index + 1 :]:
            plane &= ~other.moved((-mask.corner[0], -mask.corner[1])).plane((plane.shape[0], plane.shape[1]))
        result[index] = Mask(plane, mask.corner, mask.organelle, mask.score)
    return result
