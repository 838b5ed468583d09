"""A batch that every dense model can learn by heart in seconds, and how well one has."""

from __future__ import annotations

import numpy as np
import torch

from baselines.losses import IGNORE
from baselines.model import Baseline, Batch


def disc_batch(size: int = 64) -> Batch:
    """Bright discs are mitochondria, dark ones nuclei; half of the second image is unknown."""
    y, x = np.mgrid[:size, :size]
    disc = (y - size // 3) ** 2 + (x - size // 3) ** 2 < (size // 5) ** 2
    other = (y - 2 * size // 3) ** 2 + (x - 2 * size // 3) ** 2 < (size // 6) ** 2
    image = np.where(disc, 1.0, np.where(other, -1.0, 0.0)).astype(np.float32)
    semantic = np.where(disc, 1, np.where(other, 2, 0))
    unknown = semantic.copy()
    unknown[:, size // 2 :] = IGNORE
    depth = np.clip(1 - np.hypot(y - size // 3, x - size // 3) / (size // 5), 0, 1).astype(np.float32)
    return {
        "image": torch.from_numpy(np.stack([image, image]))[:, None],
        "semantic": torch.from_numpy(np.stack([semantic, unknown])),
        "instances": torch.from_numpy(np.stack([semantic, semantic])),
        "distance": torch.from_numpy(np.stack([depth, depth])),
        "annotated": torch.tensor([[True, True, False, False, False]] * 2),
    }


def overfit(model: Baseline, batch: Batch, steps: int, lr: float) -> list[float]:
    """Train on one batch; return the loss before every step."""
    model.train()
    optimizer = torch.optim.AdamW([p for group in model.parameter_groups() for p in group["params"]], lr=lr)
    history = []
    for _ in range(steps):
        loss = model.loss(model(batch["image"]), batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    return history


def mito_dice(model: Baseline, batch: Batch) -> float:
    """Dice of the first image's mitochondria at probability 0.5, as the model evaluates."""
    predicted = model.eval().maps(batch["image"])[0, model.map_names.index("mito")] > 0.5
    reference = batch["semantic"][0] == 1
    return float(2 * (predicted & reference).sum() / (predicted.sum() + reference.sum()))
