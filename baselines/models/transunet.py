"""TransUNet with the encoder R50-ViT-B/16 (Chen et al. 2021), and the configuration of RETINA (Xing et al. 2025).

A convolutional trunk down to 1/16, a vision transformer on what is left, and a U-Net's decoder. The published model has
105.28 M parameters for images of 224 x 224 and 105.91 M for 512 x 512 (the position embedding is the difference), with
one 3x3 convolution from 16 features to the classes as its head. Ours is that convolution, to the channels of
``DenseConfig.groups``: 145 parameters each, so the body has 105.28 M, too. RETINA's code also builds a version with a
transformer of width 192: 22.20 M.

Images of another size than ``image_size`` get an interpolated position embedding. That works, but the network is at its
best on tiles of the size of its training crops, which the published inference keeps to.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.dense import DenseBaseline, DenseConfig
from baselines.model import Model, Preset
from baselines.networks.resnet_v2 import HybridTrunk, Padding
from baselines.networks.vit import Embedding, Transformer
from baselines.recipe import Recipe, paper_recipe

STRIDE = 16  # of the transformer's tokens


@dataclass(frozen=True)
class TransUNetConfig(DenseConfig):
    """The architecture, and what is done with pre-trained weights.

    ``transfer="vit"`` takes the transformer's blocks from ``--encoder-weights``, as RETINA's paper says;
    ``"all_encoder"`` also the trunk and the embeddings, as its code and TransUNet do. ``freeze="vit"`` keeps the blocks
    as they were loaded; without loaded weights nothing is ever frozen.
    """

    image_size: int = 224  # of the position embedding, pixels
    trunk_width: int = 64
    trunk_units: tuple[int, ...] = (3, 4, 9)
    hidden: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072
    dropout: float = 0.1
    decoder_inputs: int = 512
    decoder_channels: tuple[int, ...] = (256, 128, 64, 16)  # each at twice the resolution; three end at half
    padding: Padding = "torch"  # "tf_same" pads as Google's weights were trained
    projection_groups: int = 0  # 0: one per channel, as TransUNet; Google's weights were trained with 32
    transfer: Literal["vit", "all_encoder"] = "vit"
    freeze: Literal["vit", "none"] = "vit"


class Encoder(nn.Module):
    """Trunk, embeddings and transformer; what pre-training trains and others' weights are loaded into."""

    def __init__(self, config: TransUNetConfig) -> None:
        super().__init__()
        self.trunk = HybridTrunk(config.trunk_width, config.trunk_units, config.padding, config.projection_groups)
        grid = config.image_size // STRIDE
        self.embedding = Embedding(self.trunk.out_channels, config.hidden, grid, config.dropout)
        self.vit = Transformer(config.hidden, config.layers, config.heads, config.mlp, config.dropout)

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Map (N, 1, H, W), H and W multiples of 16, to (N, hidden, H / 16, W / 16) and skips at 1/8, 1/4 and 1/2."""
        x, skips = self.trunk(image.expand(-1, 3, -1, -1))
        tokens = self.vit(self.embedding(x))
        return tokens.transpose(1, 2).unflatten(2, x.shape[-2:]), skips


class Decoder(nn.Module):
    """TransUNet's cascaded upsampler: 3x3 convolutions with batch norm, twice at each resolution, after the skip."""

    def __init__(self, config: TransUNetConfig, skip_channels: list[int]) -> None:
        super().__init__()
        self.first = _convolution(config.hidden, config.decoder_inputs)
        self.blocks = nn.ModuleList()
        below = config.decoder_inputs
        for level, channels in enumerate(config.decoder_channels):
            skip = skip_channels[level] if level < len(skip_channels) else 0
            self.blocks.append(nn.Sequential(_convolution(below + skip, channels), _convolution(channels, channels)))
            below = channels
        self.out_channels = below

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """Map (N, hidden, h, w) to (N, out_channels, h * 2^blocks, w * 2^blocks)."""
        x = self.first(x)
        for level, block in enumerate(self.blocks):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = block(torch.cat([x, skips[level]], dim=1) if level < len(skips) else x)
        return x


def _convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class TransUNet(DenseBaseline):
    """The baseline ``transunet``; edges are continued to multiples of 32, so that no norm sees a single value."""

    name = "transunet"
    sees_its_size = True
    config_class = TransUNetConfig
    config: TransUNetConfig

    def __init__(self, config: TransUNetConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config, self.encoder.trunk.skip_channels)
        self.make_head(self.decoder.out_channels, kernel=3)

    def features(self, image: Tensor) -> Tensor:
        """Map (N, 1, H, W) to (N, 16, H, W), or to half the size where the decoder has three levels."""
        features: Tensor = self.decoder(*self.encoder(image))
        return features

    def load_encoder_weights(self, path: str | os.PathLike[str]) -> str:
        """Load what ``config.transfer`` says from ``path``, freeze what ``config.freeze`` says, and say so.

        Takes Google's ``R50+ViT-B_16.npz``, timm's ``vit_base_r50_s16_224``, RETINA's and TransUNet's ``.pth``, and the
        folders of ``em-bench pretrain`` and of a trained ``transunet``. To be repeated before a training is resumed,
        because freezing is no part of a checkpoint. Raises ``InputError`` if the weights do not fit.
        """
        from baselines.networks.transunet_weights import load_into, read_encoder_weights

        weights = read_encoder_weights(path)
        loaded = load_into(self.encoder, weights, self.config)
        if self.config.freeze == "vit":
            self.encoder.vit.requires_grad_(False)
            return f"{loaded}; its transformer blocks are frozen"
        return f"{loaded}; all trained further"

    @classmethod
    def config_for_weights(cls, config: TransUNetConfig, path: str | os.PathLike[str]) -> TransUNetConfig:
        """Return ``config`` with the width and depth that the tensors in ``path`` have."""
        from baselines.networks.transunet_weights import read_encoder_weights

        return dataclasses.replace(config, **read_encoder_weights(path).architecture())


RETINA = TransUNetConfig(normalisation="cem500k")
QUICK = TransUNetConfig(
    image_size=192,
    trunk_width=16,
    trunk_units=(1, 1, 2),
    hidden=96,
    layers=3,
    heads=4,
    mlp=192,
    decoder_inputs=64,
    decoder_channels=(48, 32, 16),
    transfer="all_encoder",
    freeze="none",
)
SMOKE = TransUNetConfig(
    image_size=64,
    trunk_width=8,
    trunk_units=(1, 1, 1),
    hidden=32,
    layers=2,
    heads=4,
    mlp=64,
    decoder_inputs=32,
    decoder_channels=(32, 16, 8, 8),
)

MODEL = Model(
    build=TransUNet,
    about="TransUNet R50-ViT-B/16; takes ImageNet and RETINA encoders",
    presets={
        "quick": Preset(
            QUICK,
            Recipe(steps=600, batch_size=4, crop=192, lr=3e-3, warmup_steps=20, ema_decay=0.99),
            "three minutes on one CPU core: a small network that ends at half resolution",
        ),
        "official": Preset(
            TransUNetConfig(transfer="all_encoder", freeze="none"),
            Recipe(
                steps=14_000,  # 150 epochs of 2211 slices, as published for Synapse
                batch_size=24,
                crop=224,
                lr=0.01,
                optimizer="sgd",
                schedule="poly",
                weight_decay=1e-4,
                clip=None,
                ema_decay=None,
            ),
            "as TransUNet was published; give ImageNet's weights with --encoder-weights",
        ),
        "retina": Preset(
            RETINA,
            Recipe(
                steps=10_000,  # RETINA: 1000 to 10 000, by data set
                batch_size=16,  # not published
                crop=224,
                lr=0.003,
                optimizer="sgd",
                schedule="poly",
                weight_decay=1e-4,
                clip=None,
                ema_decay=None,
            ),
            "as RETINA is fine-tuned; give the weights of `em-bench pretrain` with --encoder-weights",
        ),
        "retina-192": Preset(
            dataclasses.replace(RETINA, hidden=192, mlp=768),
            Recipe(
                steps=10_000,
                batch_size=16,
                crop=224,
                lr=0.003,
                optimizer="sgd",
                schedule="poly",
                weight_decay=1e-4,
                clip=None,
                ema_decay=None,
            ),
            "the same with the transformer of width 192 that RETINA's fine-tuning code builds",
        ),
        "paper": Preset(
            TransUNetConfig(image_size=512),
            paper_recipe(),
            "the benchmark paper's recipe: Adam, lr 0.005, 9000 iterations, batch 64, 512 x 512",
        ),
        "smoke": Preset(
            SMOKE,
            Recipe(steps=4, batch_size=2, crop=64, lr=1e-2, ema_decay=0.9),
            "seconds on a CPU, to see that everything runs; learns nothing",
        ),
    },
)
