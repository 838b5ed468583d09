"""2D U-Net (Ronneberger et al. 2015) with group normalisation, a semantic head and inner-distance heads.

The distance heads give watershed its landscape: for mitochondria and endosomes, which touch, each pixel's distance to
the border of its own instance, divided by the largest such distance in the instance (the scaled form of the deep
watershed idea; Bai and Urtasun 2017, StarDist and micro-SAM use relatives of it).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.decode import DISTANCE
from baselines.losses import distance_loss, partial_cross_entropy, soft_dice_loss
from baselines.model import Baseline, BaselineConfig, Batch, Model, Preset, normalised_map
from baselines.recipe import Recipe


@dataclass(frozen=True)
class UNetConfig(BaselineConfig):
    """``width`` channels on the finest level, doubled on each of ``depth`` levels below.

    ``stride`` is the edge, in input pixels, of what one pixel of the finest level covers: 2 computes at 16 nm instead
    of 8, for a quarter of the time, and interpolates the logits.
    """

    width: int = 32
    depth: int = 4
    stride: int = 1
    groups: int = 8  # of the group normalisation
    distance_organelles: tuple[str, ...] = ("mito", "endo")


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


class UNet(Baseline):
    """The baseline ``unet``; heads ``semantic`` (1 + 5 logits) and ``distance`` (one logit per distance organelle)."""

    name = "unet"
    config_class = UNetConfig
    config: UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        widths = [config.width * 2**level for level in range(config.depth + 1)]
        self.down = nn.ModuleList(
            _Block(inputs, outputs, config.groups)
            for inputs, outputs in zip([config.stride**2, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(below, here, 2, stride=2) for here, below in _pairs(widths))
        self.merge = nn.ModuleList(_Block(2 * here, here, config.groups) for here, _ in _pairs(widths))
        self.semantic = nn.Conv2d(widths[0], 1 + len(config.organelles), 1)
        self.distance = nn.Conv2d(widths[0], len(config.distance_organelles), 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map (N, 1, H, W) to logits; any H and W, padded at the right and bottom to a multiple of stride * 2^depth."""
        height, width = image.shape[-2:]
        stride = self.config.stride
        multiple = stride * 2**self.config.depth
        x = F.pad(image, (0, -width % multiple, 0, -height % multiple), mode="replicate")
        x = F.pixel_unshuffle(x, stride)
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, reversed(skips[:-1]), strict=True):
            x = merge(torch.cat([skip, up(x)], dim=1))
        heads = {"semantic": self.semantic(x), "distance": self.distance(x)}
        if stride > 1:
            heads = {name: F.interpolate(y, scale_factor=stride, mode="bilinear") for name, y in heads.items()}
        return {name: y[..., :height, :width] for name, y in heads.items()}

    def loss(self, heads: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Partial-label cross entropy + soft Dice + distance, each masked by ``annotated`` and ``ignore``."""
        semantic, annotated = batch["semantic"], batch["annotated"]
        channels = [self.config.organelles.index(name) for name in self.config.distance_organelles]
        parts = {
            "cross_entropy": partial_cross_entropy(heads["semantic"], semantic, annotated),
            "dice": soft_dice_loss(heads["semantic"], semantic, annotated),
            "distance": distance_loss(
                heads["distance"],
                batch["distance"],
                semantic,
                annotated[:, channels],
                torch.tensor(channels, device=semantic.device) + 1,
            ),
        }
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    @property
    def map_names(self) -> tuple[str, ...]:
        """Trained organelles, then ``distance:<organelle>`` for those of them that have a distance."""
        trained = self.config.trained_organelles
        return (*trained, *(DISTANCE + name for name in self.config.distance_organelles if name in trained))

    @torch.no_grad()
    def maps(self, image: Tensor) -> Tensor:
        """Return probabilities and distances of the trained organelles, (N, len(map_names), H, W) in 0..1.

        A channel that was never annotated in training has learnt to share the background's probability in no
        particular way (see ``losses``), so it is left out here and thereby counted as background.
        """
        heads = self(image)
        trained = self.config.trained_organelles
        channels = [1 + self.config.organelles.index(name) for name in trained]
        distances = [index for index, name in enumerate(self.config.distance_organelles) if name in trained]
        probability = heads["semantic"].float().softmax(dim=1)[:, channels]
        distance = heads["distance"].float().sigmoid()[:, distances]
        return normalised_map(torch.cat([probability, distance], dim=1))


def _pairs(widths: list[int]) -> list[tuple[int, int]]:
    """(channels of a level, channels of the level below it), from the bottom up."""
    return [(widths[level], widths[level + 1]) for level in reversed(range(len(widths) - 1))]


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
        "paper": Preset(
            UNetConfig(width=64),
            Recipe(
                steps=9000,
                batch_size=64,
                crop=512,
                lr=5e-3,
                schedule="constant",
                weight_decay=0.0,
                clip=None,
                ema_decay=None,
            ),
            "Adam, lr 0.005, 9000 iterations, batch 64, as the paper says",
        ),
        "smoke": Preset(
            UNetConfig(width=4, depth=2, groups=2),
            Recipe(steps=4, batch_size=2, crop=64, lr=1e-2, ema_decay=0.9),
            "seconds on a CPU, to see that everything runs; learns nothing",
        ),
    },
)
