"""How ``em-bench pretrain`` trains: architectures and recipes by name."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from baselines.models.transunet import QUICK, RETINA, SMOKE, TransUNetConfig
from baselines.recipe import Recipe
from em_bench_eval.errors import unknown_name


@dataclass(frozen=True)
class PretrainPreset:
    """An architecture and how it is pre-trained.

    Without ``recipe.steps`` the training lasts ``epochs``. The learning rate follows a schedule ``stretch`` times as
    long as the training.
    """

    config: TransUNetConfig
    recipe: Recipe
    about: str
    epochs: float | None = None
    stretch: float = 1.0


RETINA_RECIPE = Recipe(
    steps=None,
    batch_size=256,
    crop=224,
    lr=0.003,
    optimizer="sgd",
    schedule="poly",
    weight_decay=1e-4,
    clip=None,
    ema_decay=None,
)
# RETINA's paper stops after 200 epochs, and its code's schedule lasts 5000: the learning rate hardly falls
PRESETS: dict[str, PretrainPreset] = {
    "retina": PretrainPreset(RETINA, RETINA_RECIPE, "as published, 16 GPUs: 200 epochs of CEM500K", 200, stretch=25),
    "retina-192": PretrainPreset(
        dataclasses.replace(RETINA, hidden=192, mlp=768), RETINA_RECIPE, "the same, 192 wide", 200, stretch=25
    ),
    "quick": PretrainPreset(
        QUICK,
        Recipe(steps=300, batch_size=8, crop=192, lr=3e-3, warmup_steps=20, ema_decay=None),
        "two minutes on one CPU core",
    ),
    "smoke": PretrainPreset(
        SMOKE, Recipe(steps=4, batch_size=2, crop=64, lr=3e-3, ema_decay=None), "seconds on a CPU; learns nothing"
    ),
}


def preset(name: str) -> PretrainPreset:
    """Return a preset; a misspelt name answers "did you mean ..."."""
    if name not in PRESETS:
        raise unknown_name("preset of em-bench pretrain", name, PRESETS)
    return PRESETS[name]
