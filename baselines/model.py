"""What a baseline is: one file of ``baselines/models`` that defines a ``Baseline`` and declares it as ``MODEL``.

Training, tiling, prediction and the Hub know only this interface. A model turns gray images into heads, heads and a
batch into losses, and images into maps that may be averaged over overlapping tiles.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor, nn

from baselines.recipe import Recipe
from em_bench_eval import registry
from em_bench_eval.errors import unknown_name
from em_bench_eval.schema import ORGANELLES, TARGET_PIXEL_SIZE_NM

PACKAGE = "baselines.models"


class Batch(TypedDict):
    """A batch of aligned crops."""

    image: Tensor  # (N, 1, H, W) float32, normalised
    semantic: Tensor  # (N, H, W) int64, 0 background, 1..5 Organelle.label_id, losses.IGNORE unknown
    distance: Tensor  # (N, H, W) float32 in 0..1, normalised distance to the border of the pixel's own instance
    annotated: Tensor  # (N, 5) bool, in the order of ORGANELLES


@dataclass(frozen=True)
class BaselineConfig:
    """What every checkpoint records about its input and output; each model adds its architecture."""

    organelles: tuple[str, ...] = ORGANELLES  # semantic channels after background
    trained_organelles: tuple[str, ...] = ()  # those annotated anywhere in the training data; only they are predicted
    pixel_size_nm: float = TARGET_PIXEL_SIZE_NM  # of the images that the network sees
    normalisation: str = "percentile-1-99"  # key of baselines.preprocess.NORMALISATIONS


class Baseline(nn.Module):
    """Base class of the models."""

    name: ClassVar[str]  # file name in baselines/models
    config_class: ClassVar[type[BaselineConfig]]

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.config = config
        self.training_info: dict[str, Any] = {}  # recipe, dataset, versions; goes into the checkpoint's config.json

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map (N, 1, H, W) float images of any size to raw outputs by head, each (N, channels, H, W)."""
        raise NotImplementedError

    def loss(self, heads: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return scalar losses by name; ``"loss"`` is their weighted sum, the one to minimise.

        Takes heads rather than images because under data parallelism only ``forward`` synchronises gradients.
        """
        raise NotImplementedError

    @property
    def map_names(self) -> tuple[str, ...]:
        """Channels of ``maps``: trained organelles, then ``distance:<organelle>`` for those with a distance."""
        raise NotImplementedError

    def maps(self, image: Tensor) -> Tensor:
        """Map (N, 1, H, W) to (N, len(map_names), H, W) float32 in 0..1; what is not in ``map_names`` is background."""
        raise NotImplementedError

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``config.json``, ``README.md`` (model card) and ``model.safetensors``; see ``baselines.pretrained``."""
        from baselines.pretrained import save_pretrained

        save_pretrained(self, folder)

    @classmethod
    def from_pretrained(cls, checkpoint: str | os.PathLike[str]) -> Any:
        """Load a checkpoint folder or Hub repository of this model; see ``baselines.pretrained``."""
        from baselines.pretrained import load_pretrained

        return load_pretrained(checkpoint, expected=cls)

    def push_to_hub(self, repo_id: str, *, private: bool = False) -> str:
        """Upload the checkpoint with its model card; return the address of the commit."""
        from baselines.pretrained import push_to_hub

        return push_to_hub(self, repo_id, private=private)


@dataclass(frozen=True)
class Preset:
    """An architecture and how to train it."""

    config: BaselineConfig
    recipe: Recipe
    about: str


@dataclass(frozen=True)
class Model:
    """One file of ``baselines/models`` defines one of these as ``MODEL``."""

    build: type[Baseline]
    presets: Mapping[str, Preset] = field(default_factory=dict)
    about: str = ""

    def preset(self, name: str) -> Preset:
        """Return a preset; a misspelt name answers "did you mean ..."."""
        if name not in self.presets:
            raise unknown_name(f"preset of {self.build.name}", name, self.presets)
        return self.presets[name]


def load_model(name: str) -> Model:
    """Import one baseline's declaration; a misspelt name answers "did you mean ..."."""
    model = registry.load(PACKAGE, name, "model").MODEL
    if not isinstance(model, Model):
        raise TypeError(f"{PACKAGE}.{name}.MODEL is {type(model).__name__}, expected Model")
    return model


def count_parameters(model: nn.Module) -> int:
    """Number of trainable and frozen parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def normalised_map(values: Tensor) -> Tensor:
    """Detach, float32, and clip rounding errors: what ``maps`` returns."""
    return torch.clamp(values.detach().float(), 0.0, 1.0)
