"""The clock and the averaged weights of a training: what a checkpoint holds besides Accelerate's own state."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PROGRESS_FILE, AVERAGE_FILE = "progress.json", "average.safetensors"


class Progress:
    """Steps, crops and seconds so far; a resumed training goes on at the time of its checkpoint."""

    def __init__(self, steps: int | None, max_minutes: float | None) -> None:
        if steps is None and max_minutes is None:
            raise ValueError("a training needs a number of steps or a time budget")
        self.steps, self.max_minutes = steps, max_minutes
        self.step = 0
        self.crops = 0
        self._before = 0.0
        self._since = time.monotonic()

    @property
    def seconds(self) -> float:
        """Training time, that of interrupted runs up to their last checkpoint included."""
        return self._before + time.monotonic() - self._since

    def fraction(self, accelerator: Any) -> float:
        """Share of the budget that is used, 0..1; a time budget runs on the first process's clock."""
        by_steps = 0.0 if self.steps is None else self.step / self.steps
        if self.max_minutes is None:
            return by_steps
        used = torch.tensor(self.seconds / (60 * self.max_minutes), device=accelerator.device)
        if accelerator.num_processes > 1:
            from accelerate.utils import broadcast

            used = broadcast(used)
        return max(float(used), by_steps)

    def save(self, folder: Path) -> None:
        """Write ``progress.json``."""
        state = {"step": self.step, "crops": self.crops, "seconds": self.seconds}
        (folder / PROGRESS_FILE).write_text(json.dumps(state) + "\n")

    def restore(self, folder: Path) -> None:
        """Go on from ``progress.json``."""
        state = json.loads((folder / PROGRESS_FILE).read_text())
        self.step, self.crops, self._before = state["step"], state["crops"], state["seconds"]
        self._since = time.monotonic()


def step_seed(seed: int, step: int, process: int) -> int:
    """Seed of torch's generator for a step of a process: a resumed training drops and samples what it would have."""
    return int(np.random.SeedSequence((seed, step, process)).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Average:
    """Exponential moving average of a model's weights, warmed up so that the first steps do not linger in it."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {n: tensor.detach().clone() for n, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the weights after optimisation step ``step`` = 0, 1, ..."""
        rate = 1.0 - min(self.decay, (1.0 + step) / (10.0 + step))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                self.weights[name].lerp_(tensor, rate)
            else:
                self.weights[name].copy_(tensor)

    def save(self, folder: Path) -> None:
        """Write ``average.safetensors``."""
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in self.weights.items()}, folder / AVERAGE_FILE)

    def restore(self, folder: Path) -> None:
        """Go on from ``average.safetensors``."""
        from safetensors.torch import load_file

        for name, tensor in load_file(folder / AVERAGE_FILE).items():
            self.weights[name].copy_(tensor)
