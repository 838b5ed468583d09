"""2D U-Net (Ronneberger et al. 2015) with group normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.dense import DenseBaseline, DenseConfig
from baselines.model import Model, Preset
from baselines.recipe import Recipe, paper_recipe


@dataclass(frozen=True)
class UNetConfig(DenseConfig):
    """``width`` channels on the finest level, doubled on each of ``depth`` levels below.

    ``stride`` is the edge, in input pixels, of what one pixel of the finest level covers: 2 computes at 16 nm instead
    of 8, for a quarter of the time, and interpolates the logits.
    """

    width: int = 32
    depth: int = 4
    stride: int = 1
    norm_groups: int = 8  # of the group normalisation


class _Block(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            layers += [
                nn.Conv2d(channels, outputs, 3, padding=1, bias=False),
                nn.GroupNorm(min(groups, outputs), outputs),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)


class UNet(DenseBaseline):
    """The baseline ``unet``."""

    name = "unet"
    config_class = UNetConfig
    config: UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        widths = [config.width * 2**level for level in range(config.depth + 1)]
        self.down = nn.ModuleList(
            _Block(inputs, outputs, config.norm_groups)
            for inputs, outputs in zip([config.stride**2, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(below, here, 2, stride=2) for here, below in _pairs(widths))
        self.merge = nn.ModuleList(_Block(2 * here, here, config.norm_groups) for here, _ in _pairs(widths))
        self.make_head(widths[0])

    @property
    def pad_multiple(self) -> int:
        """The coarsest level's pixel, in input pixels."""
        return self.config.stride << self.config.depth

    def features(self, image: Tensor) -> Tensor:
        """Map (N, 1, H, W) to (N, width, H / stride, W / stride)."""
        x = F.pixel_unshuffle(image, self.config.stride)
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips[:-1]), strict=True):
            x = merge(torch.cat([skip, up(x)], dim=1))
        return x


def _pairs(widths: list[int]) -> list[tuple[int, int]]:
    """(channels of a level, channels of the level below it), from the bottom up."""
    return [(widths[level], widths[level + 1]) for level in reversed(range(len(widths) - 1))]


# neighbours, which join, and pairs further apart, which part what touches; pixels of 8 nm
AFFINITIES = ((1, 0), (0, 1), (4, 0), (0, 4), (9, 0), (0, 9), (9, 9), (9, -9))
TOUCHING: dict[str, Any] = {"boundary_organelles": ("mito", "endo"), "affinity_offsets": AFFINITIES}

MODEL = Model(
    build=UNet,
    about="2D U-Net, semantic and distance heads, watershed",
    presets={
        "quick": Preset(
            UNetConfig(width=16, depth=3, stride=2),
            Recipe(steps=1000, batch_size=4, crop=192, lr=5e-3, warmup_steps=10, ema_decay=0.99),
            "two to three minutes on one CPU core: computes at 16 nm",
        ),
        "standard": Preset(
            UNetConfig(width=32),
            Recipe(steps=5000, batch_size=16, crop=512, lr=1e-3, warmup_steps=200),
            "AdamW and cosine, an hour or less on one GPU",
        ),
        "affinity": Preset(
            UNetConfig(width=32, **TOUCHING),
            Recipe(steps=5000, batch_size=16, crop=512, lr=1e-3, warmup_steps=200),
            "standard, with boundaries and affinities to 9 pixels for every decoder",
        ),
        "quick-affinity": Preset(
            UNetConfig(width=16, depth=3, stride=2, **TOUCHING),
            Recipe(steps=1000, batch_size=4, crop=192, lr=5e-3, warmup_steps=10, ema_decay=0.99),
            "quick, with the same",
        ),
        "paper": Preset(
            UNetConfig(width=64),
            paper_recipe(),
            "Adam, lr 0.005, 9000 iterations, batch 64, as the paper says",
        ),
        "smoke": Preset(
            UNetConfig(width=4, depth=2, norm_groups=2),
            Recipe(steps=4, batch_size=2, crop=64, lr=1e-2, ema_decay=0.9),
            "seconds on a CPU, to see that everything runs; learns nothing",
        ),
    },
)
