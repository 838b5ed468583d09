"""How a baseline is trained: the numbers of a preset and the learning rate over time. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """Training hyperparameters; one preset of a model names all of them.

    ``crop`` is in pixels of 8 nm (Scale Alignment, paper section 4.1). Adam is AdamW with ``weight_decay=0``.
    """

    steps: int | None  # None: until the time budget is used up
    batch_size: int  # crops per optimisation step and process
    crop: int  # edge of the square crop, pixels at the aligned pixel size
    lr: float  # peak learning rate
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 0
    weight_decay: float = 0.01
    clip: float | None = 1.0  # maximal norm of the gradient
    ema_decay: float | None = 0.999  # None: the final weights are those of the last step
    foreground: float = 0.67  # share of crops that are centred on an instance, organelles equally often
    augment: bool = True

    def learning_rate(self, step: int, progress: float) -> float:
        """Learning rate of a step: linear warm-up by steps, then cosine to 1 % of the peak by ``progress`` (0..1)."""
        warmup = min(1.0, (step + 1) / (self.warmup_steps + 1))
        if self.schedule == "constant":
            return self.lr * warmup
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
        return self.lr * warmup * (0.01 + 0.99 * cosine)
