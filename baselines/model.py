"""What a baseline is: one file of ``baselines/models`` that defines a ``Baseline`` and declares it as ``MODEL``.

Training, tiling, prediction and the Hub know only this interface. A model turns gray images into heads, heads and a
batch into losses, and images into what is combined over overlapping tiles: maps that are averaged, or masks that are
linked. ``*S`` is (H, W), or (D, H, W) for a model with ``ndim = 3``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict

import torch
from torch import Tensor, nn

from baselines.recipe import Recipe
from em_bench_eval import registry
from em_bench_eval.errors import InputError, unknown_name
from em_bench_eval.schema import ORGANELLES, TARGET_PIXEL_SIZE_NM

if TYPE_CHECKING:
    from baselines.masks import Mask

PACKAGE = "baselines.models"


class Batch(TypedDict):
    """A batch of aligned crops."""

    image: Tensor  # (N, 1, *S) float32, normalised
    semantic: Tensor  # (N, *S) int64, 0 background, 1..5 Organelle.label_id, losses.IGNORE unknown
    instances: Tensor  # (N, *S) int64, ids of the whole image, 0 none; one id may lie in several pieces
    distance: Tensor  # (N, *S) float32 in 0..1, normalised distance to the border of the pixel's own instance
    annotated: Tensor  # (N, 5) bool, in the order of ORGANELLES


@dataclass(frozen=True)
class BaselineConfig:
    """What every checkpoint records about its input and output; each model adds its architecture."""

    organelles: tuple[str, ...] = ORGANELLES  # semantic channels after background
    trained_organelles: tuple[str, ...] = ()  # those annotated anywhere in the training data; only they are predicted
    pixel_size_nm: float = TARGET_PIXEL_SIZE_NM  # of the images that the network sees
    normalisation: str = "percentile-1-99"  # key of baselines.preprocess.NORMALISATIONS


DEFAULT_CONFIG = BaselineConfig()


class Baseline(nn.Module):
    """Base class of the models."""

    name: ClassVar[str]  # file name in baselines/models
    config_class: ClassVar[type[BaselineConfig]]
    ndim: ClassVar[int] = 2  # 3: crops and tiles are volumes
    multiple: ClassVar[int] = 32  # edges of tiles that the network need not pad
    output: ClassVar[Literal["maps", "masks"]] = "maps"  # which of the two methods below it has
    sees_its_size: ClassVar[bool] = False  # True: predicts best from tiles as large as its training crops

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.config = config
        self.training_info: dict[str, Any] = {}  # recipe, dataset, versions; goes into the checkpoint's config.json

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map (N, 1, *S) float images of any size to raw outputs by head."""
        raise NotImplementedError

    def loss(self, heads: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return scalar losses by name; ``"loss"`` is their weighted sum, the one to minimise.

        Takes heads rather than images because under data parallelism only ``forward`` synchronises gradients.
        """
        raise NotImplementedError

    @property
    def map_names(self) -> tuple[str, ...]:
        """Channels of ``maps``: trained organelles, then further maps by the prefixes of ``baselines.decode``."""
        raise NotImplementedError

    def maps(self, image: Tensor) -> Tensor:
        """Map (N, 1, *S) to (N, len(map_names), *S) float32 in 0..1; what is not in ``map_names`` is background."""
        raise NotImplementedError

    def masks(self, image: Tensor) -> list[list[Mask]]:
        """Map (N, 1, H, W) to the instances of each image, where they may overlap."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return what is trained: ``params`` and the factor ``lr_factor`` on the recipe's learning rate."""
        return [{"params": [p for p in self.parameters() if p.requires_grad], "lr_factor": 1.0}]

    @classmethod
    def config_for_weights(cls, config: Any, path: str | os.PathLike[str]) -> Any:
        """Return the architecture that others' weights need, where they decide it; else ``config`` as it is."""
        return config

    def data_notes(self, rows: Any, crop: int) -> list[str]:
        """Return what the training data mean for this model, in crops of ``crop`` aligned pixels.

        ``rows`` are dataset rows, of which no image is read.
        """
        return []

    def load_encoder_weights(self, path: str | os.PathLike[str]) -> str:
        """Start from weights of others; returns what was loaded, for the records."""
        raise InputError(
            f"{self.name} takes no encoder weights",
            found=os.fspath(path),
            expected="a model with an encoder that others have pre-trained",
            remedy="leave --encoder-weights away, or train another model",
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write ``config.json``, ``README.md`` (model card) and ``model.safetensors``; see ``baselines.pretrained``."""
        from baselines.pretrained import save_pretrained

        save_pretrained(self, folder)

    @classmethod
    def from_pretrained(
        cls, checkpoint: str | os.PathLike[str], *, revision: str | None = None, token: str | None = None
    ) -> Any:
        """Load a checkpoint folder or Hub repository of this model; see ``baselines.pretrained``."""
        from baselines.pretrained import load_pretrained

        return load_pretrained(checkpoint, expected=cls, revision=revision, token=token)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the checkpoint with its model card, private by default; see ``baselines.pretrained.push_to_hub``."""
        from baselines.pretrained import push_to_hub

        return push_to_hub(self, repo_id, **options)


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
    trainable: bool = True  # False: `em-bench train` refuses it; its weights come from elsewhere

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
    """Return the number of trainable and frozen parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def normalised_map(values: Tensor) -> Tensor:
    """Detach, float32, and clip rounding errors: what ``maps`` returns."""
    return torch.clamp(values.detach().float(), 0.0, 1.0)
