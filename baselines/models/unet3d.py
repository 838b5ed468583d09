"""3D U-Net (Çiçek et al. 2016) with group normalisation; pooling and kernels may leave a coarse z axis alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from baselines.dense import DenseBaseline, DenseConfig
from baselines.model import Model, Preset
from baselines.recipe import Recipe, paper_recipe

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class UNet3DConfig(DenseConfig):
    """``width`` channels on the finest level, doubled on each level below.

    ``pools`` is one factor ``(z, y, x)`` per level below the finest. A level above the first pooling along z convolves
    in the plane only (kernel 1 x 3 x 3), as is usual for anisotropic voxels (Isensee et al. 2021, nnU-Net).
    """

    voxel_size_nm: tuple[float, float, float] = (8.0, 8.0, 8.0)  # of the volumes that the network sees
    width: int = 24
    pools: tuple[Triple, ...] = ((2, 2, 2), (2, 2, 2), (2, 2, 2))
    norm_groups: int = 8
    crop_depth: int | None = None  # z voxels of a training crop; None: as many as along y and x


class _Block(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, flat: bool, groups: int) -> None:
        kernel, padding = ((1, 3, 3), (0, 1, 1)) if flat else ((3, 3, 3), (1, 1, 1))
        layers: list[nn.Module] = []
        for channels in (inputs, outputs):
            layers += [
                nn.Conv3d(channels, outputs, kernel, padding=padding, bias=False),
                nn.GroupNorm(min(groups, outputs), outputs),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)


class UNet3D(DenseBaseline):
    """The baseline ``unet3d``."""

    name = "unet3d"
    ndim = 3
    config_class = UNet3DConfig
    config: UNet3DConfig

    def __init__(self, config: UNet3DConfig) -> None:
        super().__init__(config)
        widths = [config.width * 2**level for level in range(len(config.pools) + 1)]
        depths = [math.prod(pool[0] for pool in config.pools[:level]) for level in range(len(widths))]
        flat = [depth == 1 and any(pool[0] == 1 for pool in config.pools) for depth in depths]
        groups = config.norm_groups
        self.down = nn.ModuleList(
            _Block(inputs, outputs, flat[level], groups)
            for level, (inputs, outputs) in enumerate(zip([1, *widths], widths, strict=False))
        )
        self.pool = nn.ModuleList(nn.MaxPool3d(pool) for pool in config.pools)
        levels = list(reversed(range(len(config.pools))))
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(widths[level + 1], widths[level], config.pools[level], stride=config.pools[level])
            for level in levels
        )
        self.merge = nn.ModuleList(_Block(2 * widths[level], widths[level], flat[level], groups) for level in levels)
        self.make_head(widths[0])

    @property
    def pad_multiple(self) -> Triple:
        """The coarsest level's voxel in voxels of the finest, ``(z, y, x)``."""
        z, y, x = (math.prod(pool[axis] for pool in self.config.pools) for axis in range(3))
        return z, y, x

    def features(self, image: Tensor) -> Tensor:
        """Map (N, 1, D, H, W) to (N, width, D, H, W)."""
        x, skips = image, []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else self.pool[level - 1](x))
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips[:-1]), strict=True):
            x = merge(torch.cat([skip, up(x)], dim=1))
        return x


# nearest neighbours, and pairs further apart, after Lee et al. 2017 (Superhuman Accuracy on the SNEMI3D Challenge)
AFFINITIES: tuple[Triple, ...] = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (4, 0, 0), (0, 9, 0), (0, 0, 9))
ANISOTROPIC: dict[str, Any] = {
    "voxel_size_nm": (40.0, 8.0, 8.0),
    "pools": ((1, 2, 2), (1, 2, 2), (2, 2, 2)),
    "crop_depth": 16,
}

MODEL = Model(
    build=UNet3D,
    about="3D U-Net on volumes, semantic and distance heads; with affinities or for coarse z by preset",
    presets={
        "quick": Preset(
            UNet3DConfig(width=8, pools=((1, 2, 2), (2, 2, 2)), crop_depth=16, norm_groups=4),
            Recipe(steps=400, batch_size=2, crop=80, lr=5e-3, warmup_steps=10, ema_decay=0.98),
            "a few minutes on one CPU core",
        ),
        "official": Preset(
            UNet3DConfig(width=32),
            Recipe(
                *(250_000, 2, 128, 1e-2),
                optimizer="sgd",
                momentum=0.99,
                schedule="poly",
                weight_decay=3e-5,
                clip=12.0,
                ema_decay=None,
            ),
            "the recipe of nnU-Net's 3d_fullres: 1000 x 250 steps, SGD 0.01, poly (momentum without Nesterov here)",
        ),
        "affinity": Preset(
            UNet3DConfig(affinity_offsets=AFFINITIES),
            Recipe(steps=20_000, batch_size=4, crop=96, lr=1e-3, warmup_steps=200),
            "with affinities to 9 voxels",
        ),
        "anisotropic": Preset(
            UNet3DConfig(**ANISOTROPIC),
            Recipe(steps=20_000, batch_size=4, crop=192, lr=1e-3, warmup_steps=200),
            "for serial sections and SBF-SEM: voxels of 40 x 8 x 8 nm",
        ),
        "paper": Preset(
            UNet3DConfig(), paper_recipe(batch_size=4, crop=96), "the paper's Adam and rate; its batches are of images"
        ),
        "smoke": Preset(
            UNet3DConfig(width=4, pools=((1, 2, 2), (2, 2, 2)), norm_groups=2, crop_depth=8),
            Recipe(steps=4, batch_size=2, crop=16, lr=1e-2, ema_decay=0.9),
            "seconds on a CPU, to see that everything runs; learns nothing",
        ),
    },
)
