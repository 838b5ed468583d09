"""U-Net on a ResNet-50: random or pre-trained encoder (ImageNet, CEM500K, CEM1.5M), trained or frozen.

The baseline of CEM500K (Conrad and Narayan 2021) and of RETINA: the encoder of He et al. 2016 with its stride in the
3 x 3 convolution, as in torchvision, and the decoder of segmentation_models_pytorch: five steps of nearest-neighbour
doubling, each with the encoder's features of that size and two 3 x 3 convolutions; 32.5 million parameters.

What RETINA's tables call random initialisation is a *frozen* random encoder: CEM500K's evaluation freezes the whole
encoder for every initialisation, while its batch normalisation goes on taking statistics. The preset ``frozen`` is that
row (without ``--encoder-weights``, the random one; with them, the pre-trained ones), ``official`` trains the encoder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.dense import DenseBaseline, DenseConfig
from baselines.model import Model, Preset
from baselines.networks.backbone_weights import read_encoder_weights
from baselines.networks.resnet_weights import load_exactly
from baselines.recipe import Recipe, paper_recipe


@dataclass(frozen=True)
class UNetR50Config(DenseConfig):
    """The encoder's four stages, and the decoder's steps from H/16 up; with four steps, features stay at H/2."""

    depths: tuple[int, ...] = (3, 4, 6, 3)  # residual blocks per stage
    widths: tuple[int, ...] = (256, 512, 1024, 2048)  # channels per stage
    stem_width: int = 64
    block: str = "bottleneck"  # or "basic", as in ResNet-18
    decoder_widths: tuple[int, ...] = (256, 128, 64, 32, 16)
    freeze_encoder: bool = False  # weights only: batch normalisation goes on taking statistics


class UNetR50(DenseBaseline):
    """The baseline ``unet_r50``."""

    name = "unet_r50"
    config_class = UNetR50Config
    config: UNetR50Config

    def __init__(self, config: UNetR50Config) -> None:
        super().__init__(config)
        from transformers import ResNetBackbone, ResNetConfig

        # no colours to repeat: the first convolution takes the one channel
        self.encoder = ResNetBackbone(
            ResNetConfig(
                num_channels=1,
                embedding_size=config.stem_width,
                hidden_sizes=list(config.widths),
                depths=list(config.depths),
                layer_type=config.block,
            )
        )
        skips = [*reversed(config.widths[:-1]), config.stem_width, 0]
        inputs = [config.widths[-1], *config.decoder_widths]
        self.decoder = nn.ModuleList(
            _Step(below + skip, here) for below, skip, here in zip(inputs, skips, config.decoder_widths, strict=False)
        )
        self.make_head(config.decoder_widths[-1], kernel=3)
        if config.freeze_encoder:
            self.encoder.requires_grad_(False)

    def features(self, image: Tensor) -> Tensor:
        """Map (N, 1, H, W) to (N, decoder_widths[-1], H, W), or to half that size with four decoder steps."""
        x: Tensor = self.encoder.embedder.embedder(
            image
        )  # H/2; what transformers calls the stem comes after the pooling
        skips = [x]
        x = self.encoder.embedder.pooler(x)
        for stage in self.encoder.encoder.stages:
            x = stage(x)
            skips.append(x)
        x = skips.pop()
        for step in self.decoder:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = step(torch.cat([x, skips.pop()], dim=1) if skips else x)
        return x

    def load_encoder_weights(self, path: str | os.PathLike[str]) -> str:
        """Start from published ResNet weights, see ``baselines.networks.backbone_weights``; returns what was loaded."""
        weights = read_encoder_weights(path, "resnet")
        count = load_exactly(self.encoder, weights.tensors, path)
        return f"{weights.about}, {count} tensors, {'frozen' if self.config.freeze_encoder else 'trained'}"


class _Step(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            convolution = nn.Conv2d(channels, outputs, 3, padding=1, bias=False)
            nn.init.kaiming_uniform_(convolution.weight, nonlinearity="relu")
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        super().__init__(*layers)


_SMALL: dict[str, Any] = {"block": "basic", "depths": (1, 1, 1, 1)}
# warm-up and cosine stand in for OneCycle, which also cycles the momentum
_OFFICIAL = Recipe(
    steps=10_000, batch_size=16, crop=512, lr=3e-3, weight_decay=0.1, warmup_steps=3000, clip=None, ema_decay=None
)

MODEL = Model(
    build=UNetR50,
    about="U-Net on a ResNet-50, from random, ImageNet or CEM500K weights, trained or frozen",
    presets={
        "quick": Preset(
            UNetR50Config(stem_width=16, widths=(16, 32, 64, 128), decoder_widths=(64, 32, 32, 16), **_SMALL),
            Recipe(steps=1000, batch_size=4, crop=192, lr=5e-3, warmup_steps=10, ema_decay=0.99),
            "two to three minutes on one CPU core: a small residual encoder, features at 16 nm",
        ),
        "official": Preset(
            UNetR50Config(),
            _OFFICIAL,
            "CEM500K's fine-tuning recipe (AdamW, lr 0.003, weight decay 0.1, 10000 iterations, batch 16); all trained",
        ),
        "frozen": Preset(
            UNetR50Config(freeze_encoder=True),
            _OFFICIAL,
            "the same with a frozen encoder, as CEM500K and RETINA report it for every initialisation",
        ),
        "paper": Preset(
            UNetR50Config(),
            paper_recipe(),
            "Adam, lr 0.005, 9000 iterations, batch 64, as the paper says",
        ),
        "smoke": Preset(
            UNetR50Config(stem_width=8, widths=(8, 8, 16, 16), decoder_widths=(16, 16, 8, 8, 8), **_SMALL),
            Recipe(steps=4, batch_size=2, crop=64, lr=1e-2, ema_decay=0.9),
            "seconds on a CPU, to see that everything runs; learns nothing",
        ),
    },
)
