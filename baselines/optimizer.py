"""The optimiser that a recipe names, over the parameter groups that a model declares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from baselines.model import Baseline
from baselines.recipe import Recipe
from em_bench_eval.errors import InputError

OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], Recipe], torch.optim.Optimizer]] = {
    "adamw": lambda groups, recipe: torch.optim.AdamW(groups, lr=recipe.lr, weight_decay=recipe.weight_decay),
    "adam": lambda groups, recipe: torch.optim.Adam(groups, lr=recipe.lr, weight_decay=recipe.weight_decay),
    "sgd": lambda groups, recipe: torch.optim.SGD(
        groups, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    ),
}


def make_optimizer(model: Baseline, recipe: Recipe) -> torch.optim.Optimizer:
    """Return an optimiser whose groups keep the model's ``lr_factor``; raises ``InputError`` if all is frozen."""
    groups = [group for group in model.parameter_groups() if group["params"]]
    if not groups:
        raise InputError(f"nothing of {model.name} is left to train", remedy="unfreeze a part of it")
    return OPTIMIZERS[recipe.optimizer](groups, recipe)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its factor of ``lr``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
