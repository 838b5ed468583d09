"""RETINA's pre-training (Xing et al. 2025): TransUNet without its head restores an image from a spoilt one.

The decoder with its skips is the one that segments; one 3x3 convolution to a gray value follows it. The loss is the
mean squared error over all pixels, not only the spoilt ones. RETINA's code keeps the unused segmentation head in the
module; here it is left out.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.model import count_parameters
from baselines.models.transunet import Decoder, Encoder, TransUNetConfig
from baselines.pretrained import CONFIG, WEIGHTS, with_tuples, write_checkpoint
from baselines.weight_files import read_content
from em_bench_eval import __version__
from em_bench_eval.errors import InputError

NAME = "transunet-reconstruction"  # in config.json


class Reconstruction(nn.Module):
    """Encoder and decoder of a TransUNet and a convolution to one channel."""

    def __init__(self, config: TransUNetConfig) -> None:
        super().__init__()
        self.config = config
        self.training_info: dict[str, Any] = {}
        self.encoder = Encoder(config)
        self.decoder = Decoder(config, self.encoder.trunk.skip_channels)
        self.reconstruct = nn.Conv2d(self.decoder.out_channels, 1, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        """Map (N, 1, H, W), edges multiples of 32, to the restored image of the same shape."""
        restored: Tensor = self.reconstruct(self.decoder(*self.encoder(image)))
        if restored.shape[-2:] != image.shape[-2:]:  # a decoder that ends at half resolution
            restored = F.interpolate(restored, size=image.shape[-2:], mode="bilinear")
        return restored


def reconstruction_loss(restored: Tensor, target: Tensor) -> Tensor:
    """Mean squared error over all pixels."""
    return F.mse_loss(restored.float(), target.float())


def save_reconstruction(model: Reconstruction, folder: str | os.PathLike[str]) -> None:
    """Write weights, ``config.json`` and card into ``folder``, each whole or not at all, the weights last."""
    stored = {
        "model": NAME,
        "em_organelle_wild": __version__,
        "config": dataclasses.asdict(model.config),
        "training": model.training_info,
    }
    write_checkpoint(folder, model, stored, _card(model))


def load_reconstruction(folder: str | os.PathLike[str]) -> Reconstruction:
    """Load what ``save_reconstruction`` wrote, in evaluation mode; raises ``InputError`` for anything else."""
    place = Path(folder)
    try:
        stored = json.loads((place / CONFIG).read_text())
        values: dict[str, Any] = {key: with_tuples(value) for key, value in stored["config"].items()}
        if stored["model"] != NAME:
            raise ValueError(f"model {stored['model']}")
        model = Reconstruction(TransUNetConfig(**values))
        model.load_state_dict(read_content(place / WEIGHTS, WEIGHTS))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(
            f"{place} holds no pre-trained encoder",
            found=f"{type(error).__name__}: {error}",
            expected="a folder written by `em-bench pretrain`",
        ) from error
    model.training_info = stored.get("training", {})
    return model.eval()


def _card(model: Reconstruction) -> str:
    rows = [(key, value) for key, value in model.training_info.items() if not isinstance(value, (dict, list))]
    facts = "\n".join(f"| {key.replace('_', ' ')} | {value} |" for key, value in rows)
    config = model.config
    return f"""---
library_name: em-organelle-wild
pipeline_tag: image-feature-extraction
tags: [electron-microscopy, biology, self-supervised, transunet]
---

# TransUNet encoder, pre-trained on electron microscopy without labels

Restores images from spoilt ones, as RETINA is pre-trained (Xing et al. 2025). {count_parameters(model):,} parameters;
transformer of width {config.hidden}, {config.layers} blocks. Input: one gray channel, normalised by
`{config.normalisation}`. It segments nothing by itself.

| pre-training | |
|---|---|
{facts}

    em-bench train --model transunet --encoder-weights FOLDER --dataset em-organelle-wild --out runs/transunet

`reconstruction.png` shows inputs, targets and what was restored, of images that were held out (where there were at
least twenty).
"""


@torch.no_grad()
def restored_images(model: Reconstruction, images: Tensor) -> Tensor:
    """Restore (N, 1, H, W) one at a time, in evaluation mode; the model's mode is as before afterwards."""
    was_training = model.training
    model.eval()
    restored = torch.cat([model(image[None]).float() for image in images])
    model.train(was_training)
    return restored
