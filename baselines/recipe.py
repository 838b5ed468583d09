"""How a baseline is trained: the numbers of a preset and the learning rate over time. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """Training hyperparameters; one preset of a model names all of them.

    ``crop`` is in pixels of 8 nm (Scale Alignment, paper section 4.1). ``batch_size`` counts the crops of one
    optimisation step over all processes and accumulated passes, so a recipe means the same on 1 and on N GPUs.
    """

    steps: int | None  # None: until the time budget is used up
    batch_size: int
    crop: int  # edge of the square (cubic, for 3D models) crop, pixels at the aligned pixel size
    lr: float  # peak learning rate
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    momentum: float = 0.9  # of sgd
    schedule: Literal["cosine", "constant", "poly"] = "cosine"
    warmup_steps: int = 0
    weight_decay: float = 0.01
    clip: float | None = 1.0  # maximal norm of the gradient
    ema_decay: float | None = 0.999  # None: the final weights are those of the last step
    foreground: float = 0.67  # share of crops that are centred on an instance, organelles equally often
    augment: bool = True
    patience: int | None = None  # stop after this many validations without a better Dice, and keep the best weights

    def learning_rate(self, step: int, progress: float) -> float:
        """Learning rate of a step: linear warm-up by steps, then the schedule by ``progress`` (0..1)."""
        left = 1.0 - min(max(progress, 0.0), 1.0)
        factor: float = {
            "constant": 1.0,
            "cosine": 0.01 + 0.99 * 0.5 * (1.0 - math.cos(math.pi * left)),  # to 1 % of the peak
            "poly": float(left**0.9),  # Chen et al. 2017 (DeepLab), as TransUNet and RETINA train
        }[self.schedule]
        return self.lr * min(1.0, (step + 1) / (self.warmup_steps + 1)) * factor


def paper_recipe(**changes: object) -> Recipe:
    """Return the benchmark paper's recipe: Adam, lr 0.005, 9000 iterations, batch 64, 512 x 512 crops at 8 nm."""
    values: dict[str, object] = {
        "steps": 9000,
        "batch_size": 64,
        "crop": 512,
        "lr": 5e-3,
        "optimizer": "adam",
        "schedule": "constant",
        "weight_decay": 0.0,
        "clip": None,
        "ema_decay": None,
    }
    return Recipe(**(values | changes))  # type: ignore[arg-type]
