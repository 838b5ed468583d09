"""Losses for partially annotated images: what nobody labelled neither rewards nor punishes.

Two kinds of "unknown" occur. Pixels marked IGNORE contribute to nothing. An organelle that is not annotated in an
image may be anywhere in that image's background, so a background label there only says "background or one of the
organelles that were not annotated" - the marginal likelihood of Shi et al. 2021 (Medical Image Analysis 70, 101979,
"Marginal loss and exclusion loss for partially supervised multi-organ segmentation").

Shapes are written for images; ``*S`` is (H, W), or (D, H, W) for volumes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = 255  # value of unknown pixels in a semantic target


def partial_cross_entropy(logits: Tensor, target: Tensor, annotated: Tensor) -> Tensor:
    """Mean negative log-likelihood per known pixel.

    ``logits``: (N, 1 + C, *S), channel 0 is background. ``target``: (N, *S) int64 in 0..C, or ``IGNORE``.
    ``annotated``: (N, C) bool. For a background pixel the probabilities of background and of the organelles that are
    not annotated in its image are added up.
    """
    log_p = F.log_softmax(logits.float(), dim=1)
    may_hide = _per_pixel(torch.cat([torch.ones_like(annotated[:, :1]), ~annotated], dim=1), log_p)
    log_background = torch.logsumexp(log_p.masked_fill(~may_hide, -torch.inf), dim=1)
    known = target != IGNORE
    label = torch.where(known, target, torch.zeros_like(target))
    log_label = log_p.gather(1, label[:, None])[:, 0]
    log_likelihood = torch.where(label == 0, log_background, log_label)
    return -torch.where(known, log_likelihood, 0.0).sum() / known.sum().clamp(min=1)


def soft_dice_loss(logits: Tensor, target: Tensor, annotated: Tensor) -> Tensor:
    """Mean of ``1 - Dice`` over the organelles present in the batch, pooled over the images that annotate them.

    Shapes as in ``partial_cross_entropy``. Organelles that the batch does not contain are left to the cross entropy.
    """
    p = F.softmax(logits.float(), dim=1)[:, 1:]
    weight = _weight(target, annotated)
    reference = _one_hot(target, torch.arange(1, p.shape[1] + 1, device=target.device)) * weight
    over = (0, *range(2, p.ndim))
    size = reference.sum(over)
    overlap = (p * reference).sum(over)
    dice = (2 * overlap + 1.0) / ((p * weight).sum(over) + size + 1.0)
    present = (size > 0).float()
    return ((1 - dice) * present).sum() / present.sum().clamp(min=1)


def organelle_map_loss(
    logits: Tensor, expected: Tensor, target: Tensor, known: Tensor, organelle_ids: Tensor
) -> Tensor:
    """Binary cross entropy of maps of single organelles - inner distance, boundary - where they are known.

    ``logits``: (N, D, *S), one map for each of the D ``organelle_ids``; ``expected``: (N, *S) in 0..1, the map of
    whatever organelle lies there; ``target`` as above; ``known``: (N, D) bool, whether that organelle is annotated in
    that image. Elsewhere than on its organelle a map is expected to be 0.
    """
    mine = _one_hot(target, organelle_ids) * expected[:, None].float()
    return masked_binary_cross_entropy(logits, mine, _weight(target, known))


def masked_binary_cross_entropy(logits: Tensor, expected: Tensor, weight: Tensor) -> Tensor:
    """Binary cross entropy, mean over the places with ``weight`` 1; all three have one shape."""
    loss = F.binary_cross_entropy_with_logits(logits.float(), expected, reduction="none")
    return (loss * weight).sum() / weight.sum().clamp(min=1)


# A CPU multiplies floats several times as fast as it combines or converts booleans: the masks below are 0.0 and 1.0.


def _one_hot(target: Tensor, ids: Tensor) -> Tensor:
    """Where ``target`` (N, *S) is which of the C ``ids``: (N, C, *S), 0.0 or 1.0."""
    found = torch.empty((len(target), len(ids), *target.shape[1:]), device=target.device)
    return torch.eq(target[:, None].float(), _per_pixel(ids[None].float(), found), out=found)


def _weight(target: Tensor, annotated: Tensor) -> Tensor:
    """1.0 where the pixel of ``target`` (N, *S) is known and its image has the organelle ``annotated`` (N, C)."""
    known = (target != IGNORE)[:, None].float()
    return known * _per_pixel(annotated.float(), known)


def _per_pixel(values: Tensor, like: Tensor) -> Tensor:
    """Give (N or 1, C) values the axes of ``like`` (N, C, *S)."""
    return values[(...,) + (None,) * (like.ndim - 2)]
