"""The loss of mask transformers (Cheng et al. 2022, Mask2Former) for partially annotated images.

Each ground-truth instance is matched to one query (Hungarian algorithm on class and mask costs); matched queries learn
class and mask, all others learn "no object". What nobody labelled neither rewards nor punishes:

- ignored pixels take part neither in the matching nor in the mask losses: points are sampled where the truth is known;
- in an image where an organelle is not annotated, "no object" means "no object or one of the organelles that were not
  annotated" (the marginal likelihood of ``baselines.losses``), so a query may go on saying "er" there;
- an unmatched query whose mask lies for the most part on ignored pixels is not charged at all, as detections on
  COCO's crowd regions are not: what it found may well be there.

Instead of one plane per instance this keeps one plane of numbers per image, from which points read their label: memory
does not grow with the number of instances, and a point has the label of its pixel (the original interpolates labels).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from baselines.losses import IGNORE


@dataclass(frozen=True)
class QueryLossWeights:
    """Weights and sampling of the loss; the defaults are Mask2Former's."""

    classification: float = 2.0
    mask: float = 5.0
    dice: float = 5.0
    no_object: float = 0.1  # of an unmatched query in the mean of the classification loss
    points: int = 12544  # where masks are compared, 112 x 112
    oversample: float = 3.0  # uncertain points are the best of so many times as many
    importance: float = 0.75  # share of uncertain points; the others are uniform


@dataclass(frozen=True)
class QueryTargets:
    """Ground truth of one image: T instances."""

    numbers: Tensor  # (H, W) int64, 1..T on the instances, 0 elsewhere
    known: Tensor  # (H, W) bool
    labels: Tensor  # (T,) int64, index of the organelle, 0..C-1


def query_targets(semantic: Tensor, instances: Tensor, *, pieces: bool, min_pixels: int = 1) -> list[QueryTargets]:
    """Make the targets of a batch from ``semantic`` and ``instances``, (N, H, W) as in ``Batch``.

    ``pieces``: every 8-connected piece of an id is an instance of its own; otherwise one query has to find all pieces
    of an id that lie in the crop. Instances of fewer than ``min_pixels`` known pixels become ignored pixels.
    """
    result = []
    for plane, ids in zip(semantic.cpu().numpy(), instances.cpu().numpy(), strict=True):
        numbers, known, labels = _targets(plane, ids, pieces, min_pixels)
        tensors = (torch.from_numpy(array).to(semantic.device) for array in (numbers, known, labels))
        result.append(QueryTargets(*tensors))
    return result


def _targets(
    semantic: npt.NDArray[np.int64], instances: npt.NDArray[np.int64], pieces: bool, min_pixels: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    import cc3d

    known = semantic != IGNORE
    ids = cc3d.connected_components(instances.astype(np.uint32), connectivity=8) if pieces else instances
    labelled = known & (instances > 0) & (semantic > 0)
    found, first, count = np.unique(ids[labelled], return_index=True, return_counts=True)
    large = count >= min_pixels
    known &= ~(labelled & np.isin(ids, found[~large]))
    numbers = np.zeros(ids.shape, np.int64)
    inside = labelled & known
    numbers[inside] = np.searchsorted(found[large], ids[inside]) + 1
    return numbers, known, semantic[labelled][first[large]] - 1


def query_loss(
    class_logits: Sequence[Tensor],
    mask_logits: Sequence[Tensor],
    targets: Sequence[QueryTargets],
    annotated: Tensor,
    weights: QueryLossWeights = QueryLossWeights(),
) -> dict[str, Tensor]:
    """Losses of all decoder layers, each matched anew.

    ``class_logits``: for each layer (N, Q, C + 1), the last channel is "no object"; ``mask_logits``: (N, Q, h, w), of
    any resolution; ``annotated``: (N, C) bool. Returns ``classification``, ``mask`` and ``dice`` (weighted sums over
    the layers), ``loss`` (their sum), and ``beyond_queries``: ground-truth instances per image that no query was left
    for, to be watched and not minimised.
    """
    masks = [logits.float() for logits in mask_logits]
    classes = [logits.float() for logits in class_logits]
    matches = match(classes, masks, targets, weights)
    instances = _mean_over_processes(sum(len(target.labels) for target in targets), masks[0])
    parts = {"classification": masks[0].new_zeros(()), "mask": masks[0].new_zeros(()), "dice": masks[0].new_zeros(())}
    for layer, (image, query, number) in enumerate(matches):
        truth = torch.full(classes[layer].shape[:2], classes[layer].shape[-1] - 1, device=image.device)
        if len(image):
            offsets = np.cumsum([0, *(len(target.labels) for target in targets)])
            start = torch.from_numpy(offsets[:-1]).to(image.device)
            truth[image, query] = torch.cat([target.labels for target in targets])[start[image] + number - 1]
        charged = _charged(masks[layer], targets)
        charged[image, query] = True
        parts["classification"] = parts["classification"] + weights.classification * class_loss(
            classes[layer], truth, annotated, charged, weights.no_object
        )
        mask, dice = _mask_losses(masks[layer][image, query], targets, image, number, weights)
        parts["mask"] = parts["mask"] + weights.mask * mask / instances
        parts["dice"] = parts["dice"] + weights.dice * dice / instances
    queries = class_logits[0].shape[1]
    beyond = sum(max(0, len(target.labels) - queries) for target in targets) / len(targets)
    return {"loss": torch.stack(list(parts.values())).sum(), **parts, "beyond_queries": masks[0].new_tensor(beyond)}


def class_loss(logits: Tensor, truth: Tensor, annotated: Tensor, charged: Tensor, no_object: float) -> Tensor:
    """Weighted mean of the negative log-likelihoods of the queries that are charged.

    ``logits``: (N, Q, C + 1); ``truth``: (N, Q) in 0..C, C is "no object"; ``charged``: (N, Q) bool. For "no object"
    the probabilities of "no object" and of the organelles that are not annotated in the image are added up.
    """
    log_p = F.log_softmax(logits, dim=-1)
    may_hide = torch.cat([~annotated, torch.ones_like(annotated[:, :1])], dim=1)[:, None, :]
    log_nothing = torch.logsumexp(log_p.masked_fill(~may_hide, -torch.inf), dim=-1)
    nothing = truth == logits.shape[-1] - 1
    log_likelihood = torch.where(nothing, log_nothing, log_p.gather(-1, truth[..., None])[..., 0])
    weight = torch.where(nothing, no_object, 1.0) * charged
    return -(weight * log_likelihood).sum() / weight.sum().clamp(min=1e-6)


@torch.no_grad()
def match(
    class_logits: Sequence[Tensor],
    mask_logits: Sequence[Tensor],
    targets: Sequence[QueryTargets],
    weights: QueryLossWeights,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """For each layer the matched pairs: image, query and number (1..T) of the instance, three (M,) int64 tensors.

    All layers see an image at the same random points. The costs go to the CPU in one piece, because each transfer
    waits for the device.
    """
    from scipy.optimize import linear_sum_assignment

    costs = []
    for index, target in enumerate(targets):
        place = torch.rand(weights.points, 2, device=mask_logits[0].device)
        number, known = _at(target.numbers, place), _at(target.known, place)
        wanted = torch.arange(1, len(target.labels) + 1, device=place.device)
        truth = ((number[:, None] == wanted) & known[:, None]).float()  # (P, T)
        for classes, masks in zip(class_logits, mask_logits, strict=True):
            logits = _sampled(masks[index, None], place[None])[0]  # (Q, P)
            cost = -weights.classification * classes[index].softmax(-1)[:, target.labels]
            cost += weights.mask * _pairwise_cross_entropy(logits, truth, known)
            cost += weights.dice * _pairwise_dice_loss(logits, truth, known)
            costs.append(cost.nan_to_num(nan=1e6, posinf=1e6, neginf=1e6))
    flat = torch.cat([cost.flatten() for cost in costs]).cpu().numpy()
    layers, end = len(mask_logits), 0
    pairs: list[list[npt.NDArray[np.int64]]] = [[] for _ in range(layers)]
    for position, cost in enumerate(costs):
        start, end = end, end + cost.numel()
        query, number = linear_sum_assignment(flat[start:end].reshape(cost.shape))
        pairs[position % layers].append(np.stack([np.full_like(query, position // layers), query, number + 1]))
    device = mask_logits[0].device
    result = []
    for found in pairs:
        image, query, number = torch.from_numpy(np.concatenate(found, axis=1).astype(np.int64)).to(device)
        result.append((image, query, number))
    return result


def _pairwise_cross_entropy(logits: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """(Q, P) logits against (P, T) labels -> (Q, T) mean binary cross entropy over the known points."""
    weight = known.float()
    base = F.softplus(logits) @ weight  # -log(1 - p), summed
    return (base[:, None] - logits @ truth) / weight.sum().clamp(min=1)


def _pairwise_dice_loss(logits: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    p = logits.sigmoid() * known
    return 1 - (2 * p @ truth + 1) / (p.sum(1)[:, None] + truth.sum(0)[None] + 1)


def _mask_losses(
    logits: Tensor, targets: Sequence[QueryTargets], image: Tensor, number: Tensor, weights: QueryLossWeights
) -> tuple[Tensor, Tensor]:
    """Binary cross entropy and Dice loss of M matched masks (M, h, w), each at its own points; sums over the masks."""
    if not len(logits):  # keeps the graph whole: every parameter gets a gradient, which is zero
        return logits.sum(), logits.sum()
    numbers = torch.stack([target.numbers for target in targets])
    known = torch.stack([target.known for target in targets])
    place = _training_points(logits.detach(), known, image, weights)
    truth = (_at_each(numbers, image, place) == number[:, None]).float()
    weight = _at_each(known, image, place).float()
    at_points = _sampled(logits[:, None], place)[:, 0]
    entropy = F.binary_cross_entropy_with_logits(at_points, truth, reduction="none") * weight
    p, truth = at_points.sigmoid() * weight, truth * weight
    dice = 1 - (2 * (p * truth).sum(1) + 1) / (p.sum(1) + truth.sum(1) + 1)
    return (entropy.sum(1) / weight.sum(1).clamp(min=1)).sum(), dice.sum()


@torch.no_grad()
def _training_points(logits: Tensor, known: Tensor, image: Tensor, weights: QueryLossWeights) -> Tensor:
    """Points (M, P, 2) where to compare M masks: the most uncertain known ones of many, and uniform ones."""
    many, uncertain = int(weights.points * weights.oversample), int(weights.points * weights.importance)
    place = torch.rand(len(logits), many, 2, device=logits.device)
    certainty = _sampled(logits[:, None], place)[:, 0].abs()
    certainty = certainty.masked_fill(~_at_each(known, image, place), torch.inf)
    chosen = certainty.topk(uncertain, dim=1, largest=False).indices
    best = place.gather(1, chosen[..., None].expand(-1, -1, 2))
    return torch.cat([best, torch.rand(len(logits), weights.points - uncertain, 2, device=logits.device)], dim=1)


def _charged(mask_logits: Tensor, targets: Sequence[QueryTargets]) -> Tensor:
    """(N, Q) bool: False for a query whose mask lies for the most part on ignored pixels."""
    known = torch.stack([target.known for target in targets])[:, None].to(mask_logits.dtype)
    with torch.no_grad():
        share = F.interpolate(known, size=mask_logits.shape[-2:], mode="area")[:, 0]  # (N, h, w)
        inside = (mask_logits > 0).to(share.dtype)
        on_known = torch.einsum("nqhw,nhw->nq", inside, share)
        return 2 * on_known >= inside.sum((2, 3))


def _sampled(planes: Tensor, place: Tensor) -> Tensor:
    """Bilinear values of (B, K, h, w) planes at (B, P, 2) places (x, y) in 0..1 -> (B, K, P)."""
    return F.grid_sample(planes, 2 * place[:, :, None] - 1, align_corners=False)[..., 0]


def _at(plane: Tensor, place: Tensor) -> Tensor:
    """Values of an (H, W) plane in the pixels that contain the (P, 2) places."""
    height, width = plane.shape
    return plane[(place[:, 1] * height).long().clamp(max=height - 1), (place[:, 0] * width).long().clamp(max=width - 1)]


def _at_each(planes: Tensor, image: Tensor, place: Tensor) -> Tensor:
    """The same for M masks: (N, H, W) planes, (M,) number of the plane, (M, P, 2) places -> (M, P)."""
    height, width = planes.shape[1:]
    y = (place[..., 1] * height).long().clamp(max=height - 1)
    x = (place[..., 0] * width).long().clamp(max=width - 1)
    return planes[image[:, None], y, x]


def _mean_over_processes(count: int, like: Tensor) -> Tensor:
    """Mean number of instances per process, at least 1: gradients are averaged over processes, so sums share it."""
    total = like.new_tensor(float(count))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(total)
        total = total / torch.distributed.get_world_size()
    return total.clamp(min=1)
