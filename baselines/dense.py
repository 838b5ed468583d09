"""Models that say something about every pixel: one convolution as head, its channels in named groups.

A subclass computes features; losses, partial labels and maps are the same for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.decode import AFFINITY, BOUNDARY, DISTANCE
from baselines.losses import masked_binary_cross_entropy, organelle_map_loss, partial_cross_entropy, soft_dice_loss
from baselines.model import Baseline, BaselineConfig, Batch, normalised_map
from baselines.targets import affinity_target, boundary_target


@dataclass(frozen=True)
class DenseConfig(BaselineConfig):
    """What is predicted beside the organelles' probabilities; each group may be empty.

    The inner distance gives watershed its landscape: each pixel's distance to the border of its own instance, divided
    by the largest such distance in the instance (the scaled form of the deep watershed idea; Bai and Urtasun 2017).
    Affinities say whether a pixel and the one at an offset, in pixels along each axis, belong to one instance.
    """

    distance_organelles: tuple[str, ...] = ("mito", "endo")
    boundary_organelles: tuple[str, ...] = ()
    affinity_offsets: tuple[tuple[int, ...], ...] = ()

    @property
    def groups(self) -> dict[str, int]:
        """Channels of the head, in order."""
        return {
            "semantic": 1 + len(self.organelles),
            "distance": len(self.distance_organelles),
            "boundary": len(self.boundary_organelles),
            "affinity": len(self.affinity_offsets),
        }


class DenseBaseline(Baseline):
    """Base class; a subclass calls ``make_head`` when it is built, and implements ``features``."""

    config: DenseConfig

    def make_head(self, channels: int, kernel: int = 1) -> None:
        """Make the convolution from ``channels`` features to all groups."""
        convolution = nn.Conv2d if self.ndim == 2 else nn.Conv3d
        self.head = convolution(channels, sum(self.config.groups.values()), kernel, padding=kernel // 2)

    @property
    def pad_multiple(self) -> int | tuple[int, ...]:
        """What the edges of the image that ``features`` gets are multiples of; one number, or one for each axis."""
        return self.multiple

    def features(self, image: Tensor) -> Tensor:
        """Map (N, 1, *S) to (N, channels, *s), ``s`` being ``S`` or a whole fraction of it."""
        raise NotImplementedError

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Map (N, 1, *S) to logits by group, each (N, channels, *S), interpolated where features are coarser.

        Any ``S``: the image is continued at its far edges to a multiple of ``pad_multiple``, and the logits are cut.
        """
        size = image.shape[2:]
        multiples = self.pad_multiple if isinstance(self.pad_multiple, tuple) else (self.pad_multiple,) * self.ndim
        missing = [-edge % multiple for edge, multiple in zip(size, multiples, strict=True)]
        if any(missing):
            image = F.pad(image, [part for after in reversed(missing) for part in (0, after)], mode="replicate")
        logits = self.head(self.features(image))
        if logits.shape[2:] != image.shape[2:]:
            mode = "bilinear" if self.ndim == 2 else "trilinear"
            logits = F.interpolate(logits, size=image.shape[2:], mode=mode)
        logits = logits[(..., *(slice(0, edge) for edge in size))]
        groups = self.config.groups
        return dict(zip(groups, logits.split(list(groups.values()), dim=1), strict=True))

    def loss(self, heads: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Partial-label cross entropy and soft Dice, and a cross entropy for each further group; all masked."""
        semantic, annotated = batch["semantic"], batch["annotated"]
        parts = {
            "cross_entropy": partial_cross_entropy(heads["semantic"], semantic, annotated),
            "dice": soft_dice_loss(heads["semantic"], semantic, annotated),
        }
        config = self.config
        if config.distance_organelles:
            ids, known = self._of(config.distance_organelles, annotated)
            parts["distance"] = organelle_map_loss(heads["distance"], batch["distance"], semantic, known, ids)
        if config.boundary_organelles:
            ids, known = self._of(config.boundary_organelles, annotated)
            expected = boundary_target(batch["instances"])
            parts["boundary"] = organelle_map_loss(heads["boundary"], expected, semantic, known, ids)
        if config.affinity_offsets:
            expected, known = affinity_target(batch["instances"], semantic, config.affinity_offsets)
            parts["affinity"] = masked_binary_cross_entropy(heads["affinity"], expected, known.float())
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    @property
    def map_names(self) -> tuple[str, ...]:
        """Trained organelles, then the further maps of those, then affinities."""
        trained, config = self.config.trained_organelles, self.config
        return (
            *trained,
            *(DISTANCE + name for name in config.distance_organelles if name in trained),
            *(BOUNDARY + name for name in config.boundary_organelles if name in trained),
            *(AFFINITY + ",".join(map(str, offset)) for offset in config.affinity_offsets),
        )

    @torch.no_grad()
    def maps(self, image: Tensor) -> Tensor:
        """Return ``map_names`` as (N, len(map_names), *S) in 0..1.

        A channel that was never annotated in training has learnt to share the background's probability in no
        particular way (see ``losses``), so it is left out here and thereby counted as background.
        """
        heads, config = self(image), self.config
        trained = config.trained_organelles
        channels = [1 + config.organelles.index(name) for name in trained]
        parts = [heads["semantic"].float().softmax(dim=1)[:, channels]]
        for group, organelles in (("distance", config.distance_organelles), ("boundary", config.boundary_organelles)):
            parts.append(heads[group].float().sigmoid()[:, [i for i, n in enumerate(organelles) if n in trained]])
        parts.append(heads["affinity"].float().sigmoid())
        return normalised_map(torch.cat(parts, dim=1))

    def _of(self, organelles: tuple[str, ...], annotated: Tensor) -> tuple[Tensor, Tensor]:
        """Label ids of organelles, and where they are annotated, (N, len(organelles))."""
        channels = [self.config.organelles.index(name) for name in organelles]
        return torch.tensor(channels, device=annotated.device) + 1, annotated[:, channels]
