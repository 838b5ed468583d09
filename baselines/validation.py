"""Validation while training: semantic Dice per organelle on a fixed handful of images, cheap enough to repeat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from baselines.aligned_rows import AlignedRows
from baselines.data import crop_plane, read_index
from baselines.model import DEFAULT_CONFIG, Baseline, BaselineConfig
from baselines.preprocess import IGNORE
from em_bench_eval.schema import ORGANELLES, Organelle


class Validation:
    """Up to ``images`` rows, evenly spaced over the split, each the central ``edge`` x ``edge`` aligned pixels."""

    def __init__(self, rows: Any, config: BaselineConfig = DEFAULT_CONFIG, images: int = 8, edge: int = 512) -> None:
        annotated = read_index(rows).annotated
        usable = [row for row, flags in enumerate(annotated) if flags.any()]
        chosen = sorted({usable[round(i)] for i in np.linspace(0, len(usable) - 1, images)}) if usable else []
        self.annotated = [annotated[row] for row in chosen]
        aligned, self.images, self.semantic = AlignedRows(rows, config), [], []
        for row in chosen:
            whole = aligned[row]
            size = whole.image.shape
            corner = (max(0, size[0] - edge) // 2, max(0, size[1] - edge) // 2)
            cut = min(edge, max(size))
            self.images.append(crop_plane(whole.image, corner, cut, None).astype(np.float32))
            self.semantic.append(crop_plane(whole.semantic, corner, cut, IGNORE))

    def dice(self, model: Baseline, device: torch.device) -> dict[str, float]:
        """Dice of ``p > 0.5`` per trained organelle, pixels pooled over the images.

        An organelle that neither occurs nor is predicted there has no Dice and is left out.
        """
        return dice_over(model, zip(self.images, self.semantic, self.annotated, strict=True), device)


def dice_over(model: Baseline, known: Iterable[tuple[Any, Any, Any]], device: torch.device) -> dict[str, float]:
    """Dice per trained organelle over (image, semantic, annotated flags), pixels pooled."""
    names = model.config.trained_organelles
    overlap, size = np.zeros(len(names)), np.zeros(len(names))
    was_training = model.training
    model.eval()
    for image, semantic, annotated in known:
        predicted_of = predicted_pixels(model, torch.from_numpy(image)[None, None].to(device))
        for channel, name in enumerate(names):
            if not annotated[ORGANELLES.index(name)]:
                continue
            predicted = predicted_of[name] & (semantic != IGNORE)
            reference = semantic == Organelle(name).label_id
            overlap[channel] += 2 * np.count_nonzero(predicted & reference)
            size[channel] += np.count_nonzero(predicted) + np.count_nonzero(reference)
    model.train(was_training)
    return {name: float(o / s) for name, o, s in zip(names, overlap, size, strict=True) if s > 0}


def predicted_pixels(model: Baseline, image: torch.Tensor) -> dict[str, Any]:
    """Pixels ``(y, x)`` of each trained organelle in one image (1, 1, H, W): ``p > 0.5``, or the union of its masks."""
    names = model.config.trained_organelles
    if model.output == "maps":
        return dict(zip(names, (model.maps(image)[0] > 0.5).cpu().numpy(), strict=False))
    pixels = {name: np.zeros(tuple(image.shape[-2:]), bool) for name in names}
    for mask in model.masks(image)[0]:
        if mask.organelle in pixels:
            (y, x), (height, width) = mask.corner, mask.mask.shape
            pixels[mask.organelle][y : y + height, x : x + width] |= mask.mask
    return pixels


def mean_dice(dice: Mapping[str, float]) -> float:
    """Unweighted mean over the organelles that occur."""
    return sum(dice.values()) / len(dice)
