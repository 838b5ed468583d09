"""The best weights so far by validation Dice, and when to stop waiting for better ones."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor

BEST_FILE, BEST_WEIGHTS = "best.json", "best.safetensors"


class Best:
    """Keeps the weights with the highest mean Dice; ``patience`` validations without a better one are enough."""

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.dice = -1.0
        self.step = 0
        self.waited = 0
        self.weights: dict[str, Tensor] = {}

    @property
    def is_over(self) -> bool:
        """True when waiting longer is pointless."""
        return self.waited >= self.patience

    def see(self, dice: float, step: int, weights: dict[str, Tensor]) -> None:
        """Take the result of a validation; the weights are copied if they are the best."""
        if dice <= self.dice:
            self.waited += 1
            return
        self.dice, self.step, self.waited = dice, step, 0
        self.weights = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}

    def save(self, folder: Path) -> None:
        """Write ``best.json`` and, once there are any, ``best.safetensors``."""
        from safetensors.torch import save_file

        state = {"dice": self.dice, "step": self.step, "waited": self.waited}
        (folder / BEST_FILE).write_text(json.dumps(state) + "\n")
        if self.weights:
            save_file({name: tensor.contiguous() for name, tensor in self.weights.items()}, folder / BEST_WEIGHTS)

    def restore(self, folder: Path) -> None:
        """Go on from a checkpoint."""
        from safetensors.torch import load_file

        state = json.loads((folder / BEST_FILE).read_text())
        self.dice, self.step, self.waited = state["dice"], state["step"], state["waited"]
        if self.step:
            self.weights = load_file(folder / BEST_WEIGHTS)
