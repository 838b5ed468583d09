"""Boundary and affinity targets, made from instance ids on the device that trains; for images and volumes alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from baselines.losses import IGNORE

BOUNDARY_WIDTH = 2  # pixels on the inner side of an instance's border


def boundary_target(instances: Tensor) -> Tensor:
    """Mark the pixels of an instance within two pixels of another id or of background.

    ``instances``: (N, *S) ids, 0 = none, below 2^24. Returns (N, *S) bool. The image's edge is no border.
    """
    ids = instances[:, None].float()
    pool = F.max_pool2d if ids.ndim == 4 else F.max_pool3d
    edge, margin = 2 * BOUNDARY_WIDTH + 1, BOUNDARY_WIDTH
    largest = pool(ids, edge, stride=1, padding=margin)
    smallest = -pool(-ids, edge, stride=1, padding=margin)
    return ((largest != smallest)[:, 0]) & (instances > 0)


def affinity_target(instances: Tensor, semantic: Tensor, offsets: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Say for every pixel and offset whether pixel and neighbour belong to one instance, and where that is known.

    ``instances``, ``semantic``: (N, *S); ``offsets``: one step per channel, in pixels along each axis of S. Returns
    (N, K, *S) float32 in {0, 1} and (N, K, *S) bool. Known is a pair with at least one labelled instance and no
    ignored pixel: two background pixels say nothing, and what an organelle that nobody labelled would say is unknown.
    """
    targets, known = [], []
    labelled = (instances > 0) & (semantic != IGNORE)
    for offset in offsets:
        other = shifted(instances, offset, 0)
        other_known = shifted(semantic, offset, IGNORE) != IGNORE
        same = (instances == other) & (instances > 0)
        some = labelled | ((other > 0) & other_known)
        targets.append(same.float())
        known.append(some & (semantic != IGNORE) & other_known)
    return torch.stack(targets, 1), torch.stack(known, 1)


def shifted(values: Tensor, offset: Sequence[int], fill: int) -> Tensor:
    """Return the value at ``pixel + offset`` for every pixel; ``fill`` beyond the edge. ``values``: (N, *S)."""
    result = torch.full_like(values, fill)
    here, there = [slice(None)], [slice(None)]
    for size, step in zip(values.shape[1:], offset, strict=True):
        here.append(slice(max(0, -step), max(0, min(size, size - step))))
        there.append(slice(max(0, step), max(0, min(size, size + step))))
    result[tuple(here)] = values[tuple(there)]
    return result
