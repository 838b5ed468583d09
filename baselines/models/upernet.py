"""UperNet (Xiao et al. 2018) on a ConvNeXt, Swin or ResNet backbone: the parts of transformers, one gray channel.

Backbone features at 4, 8, 16 and 32 pixels; a pyramid pooling of the coarsest, a feature pyramid over all, logits at 4
pixels interpolated to 1. No auxiliary head (mmsegmentation adds one to the loss at weight 0.4), no dropout.

The pyramid pools over whatever the network sees at once, so an image's tiles do not quite agree with the whole image.
Its coarsest level is one value per channel and image, of which batch normalisation can make nothing in a batch of one:
there the running statistics normalise, in training too. For small batches set ``norm_groups``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from baselines.dense import DenseBaseline, DenseConfig
from baselines.model import Model, Preset
from baselines.networks.backbone_weights import STAGES, read_encoder_weights
from baselines.networks.resnet_weights import COUNTER, load_exactly
from baselines.recipe import Recipe, paper_recipe
from em_bench_eval.errors import InputError, unknown_name

NORMS = "hidden_states_norms."  # of the backbone's outputs


@dataclass(frozen=True)
class UperNetConfig(DenseConfig):
    """A backbone of four stages, and the head. The defaults are those of ConvNeXt-T."""

    backbone: str = "convnext"  # key of BACKBONES
    depths: tuple[int, ...] = (3, 3, 9, 3)  # blocks per stage
    widths: tuple[int, ...] = (96, 192, 384, 768)  # channels per stage; Swin's double
    attention_heads: tuple[int, ...] = (3, 6, 12, 24)  # per stage; Swin only
    window: int = 7  # edge of the attention's windows, in tokens; Swin only
    stem_width: int = 64  # ResNet only
    layer_scale: float = 1e-6  # initial factor on every block's output, 0 for none; ConvNeXt only
    drop_path: float = 0.0  # share of blocks that a training step skips, rising to this; ConvNeXt and Swin
    head_width: int = 512
    pool_scales: tuple[int, ...] = (1, 2, 3, 6)  # edges of the pooled maps
    norm_groups: int | None = None  # of the head's group normalisation; None: batch normalisation, as published


def _convnext(config: UperNetConfig) -> Any:
    from transformers import ConvNextBackbone, ConvNextConfig

    return ConvNextBackbone(
        ConvNextConfig(
            num_channels=1,
            hidden_sizes=list(config.widths),
            depths=list(config.depths),
            layer_scale_init_value=config.layer_scale,
            drop_path_rate=config.drop_path,
            out_features=STAGES,
        )
    )


def _swin(config: UperNetConfig) -> Any:
    from transformers import SwinBackbone, SwinConfig

    doubled = tuple(config.widths[0] * 2**stage for stage in range(len(config.widths)))
    if config.widths != doubled:
        raise InputError("Swin doubles its channels from stage to stage", found=config.widths, expected=doubled)
    backbone = SwinBackbone(
        SwinConfig(
            num_channels=1,
            embed_dim=config.widths[0],
            depths=list(config.depths),
            num_heads=list(config.attention_heads),
            window_size=config.window,
            drop_path_rate=config.drop_path,
            out_features=STAGES,
        )
    )
    model = getattr(backbone, "swin", backbone)
    if hasattr(model, "layernorm"):  # of a classifier; without gradients, training on several GPUs would wait for it
        model.layernorm = nn.Identity()
    return backbone


def _resnet(config: UperNetConfig) -> Any:
    from transformers import ResNetBackbone, ResNetConfig

    return ResNetBackbone(
        ResNetConfig(
            num_channels=1,
            embedding_size=config.stem_width,
            hidden_sizes=list(config.widths),
            depths=list(config.depths),
            out_features=STAGES,
        )
    )


BACKBONES: dict[str, Callable[[UperNetConfig], Any]] = {"convnext": _convnext, "swin": _swin, "resnet": _resnet}


class UperNet(DenseBaseline):
    """The baseline ``upernet``."""

    name = "upernet"
    sees_its_size = True
    config_class = UperNetConfig
    config: UperNetConfig

    def __init__(self, config: UperNetConfig) -> None:
        super().__init__(config)
        if config.backbone not in BACKBONES:
            raise unknown_name("backbone", config.backbone, BACKBONES)
        from transformers import UperNetConfig as HeadConfig
        from transformers.models.upernet.modeling_upernet import UperNetHead

        self.backbone = BACKBONES[config.backbone](config)
        settings = HeadConfig(hidden_size=config.head_width, pool_scales=list(config.pool_scales), num_labels=1)
        self.decode_head = UperNetHead(settings, in_channels=list(config.widths))
        self.decode_head.classifier = nn.Identity()  # the head of all dense models takes its place
        for module in self.decode_head.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        for module in list(self.decode_head.modules()):
            if isinstance(getattr(module, "batch_norm", None), nn.BatchNorm2d):
                module.batch_norm = _norm(config.head_width, config.norm_groups)
        self.make_head(config.head_width)

    def features(self, image: Tensor) -> Tensor:
        """Map (N, 1, H, W) to (N, head_width, H / 4, W / 4)."""
        features: Tensor = self.decode_head(self.backbone(image).feature_maps)
        return features

    def load_encoder_weights(self, path: str | os.PathLike[str]) -> str:
        """Start from published weights; returns what was loaded.

        What is read, see ``networks.backbone_weights``; colours are summed to gray. Of a UperNet's head, tensors of
        this head's shapes are taken over. Raises ``InputError`` unless all of the backbone fits.
        """
        weights = read_encoder_weights(path, self.config.backbone)
        # a classifier has no norms behind its stages: they stay as they are
        kept = {n: t for n, t in self.backbone.state_dict().items() if n.startswith(NORMS) and n not in weights.tensors}
        count = load_exactly(self.backbone, kept | weights.tensors, path) - len(kept)
        own = {name: t for name, t in self.decode_head.state_dict().items() if not name.endswith(COUNTER)}
        if self.config.norm_groups is not None:  # group normalisation's weights mean something else
            own = {name: t for name, t in own.items() if ".batch_norm." not in name}
        head = {n: weights.head[n] for n, t in own.items() if n in weights.head and weights.head[n].shape == t.shape}
        self.decode_head.load_state_dict(head, strict=False)
        return f"{weights.about}, {count} tensors of the backbone, {len(head)} of {len(own)} of the head"


class _BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that falls back to its running statistics where a channel has a single value."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.numel() == input.shape[1]:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


def _norm(channels: int, groups: int | None) -> nn.Module:
    return _BatchNorm(channels) if groups is None else nn.GroupNorm(gcd(groups, channels), channels)


_OFFICIAL = Recipe(
    steps=40_000,
    batch_size=16,
    crop=512,
    lr=1e-4,
    schedule="poly",
    warmup_steps=1500,
    weight_decay=0.05,
    clip=None,
    ema_decay=None,
)

MODEL = Model(
    build=UperNet,
    about="UperNet of transformers on ConvNeXt, Swin or ResNet",
    presets={
        "quick": Preset(
            UperNetConfig(
                backbone="resnet",
                depths=(1, 1, 1, 1),
                widths=(32, 64, 128, 256),
                stem_width=16,
                head_width=32,
                norm_groups=8,
            ),
            Recipe(steps=1000, batch_size=4, crop=192, lr=1e-2, warmup_steps=10, ema_decay=0.99),
            "two to three minutes on one CPU core: a small ResNet",
        ),
        "official": Preset(
            UperNetConfig(drop_path=0.4),
            _OFFICIAL,
            "ConvNeXt-T as mmsegmentation trains it, but 40000 of 160000 steps and no layer-wise learning rates; meant "
            "for --encoder-weights",
        ),
        "swin": Preset(
            UperNetConfig(backbone="swin", depths=(2, 2, 6, 2), drop_path=0.3),
            _OFFICIAL,
            "the same with Swin-T",
        ),
        "resnet": Preset(
            UperNetConfig(backbone="resnet", depths=(3, 4, 6, 3), widths=(256, 512, 1024, 2048)),
            _OFFICIAL,
            "the same with ResNet-50, for ImageNet and CEM500K weights",
        ),
        "paper": Preset(
            UperNetConfig(),
            paper_recipe(),
            "Adam, lr 0.005, 9000 iterations, batch 64, as the paper says",
        ),
        "smoke": Preset(
            UperNetConfig(depths=(1, 1, 1, 1), widths=(8, 8, 16, 16), layer_scale=0.0, head_width=16, norm_groups=4),
            Recipe(steps=4, batch_size=2, crop=64, lr=1e-2, ema_decay=0.9),
            "seconds on a CPU, to see that everything runs; learns nothing",
        ),
    },
)
