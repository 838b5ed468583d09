"""From crops as they lie in memory to a batch: types, the plane's symmetries, and what microscopes vary.

Runs on the device that trains. What happens to a crop depends on (seed, number of the crop) alone, not on the batch or
the process that it is in; the numbers drawn are the same on every device, except the noise.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from baselines.model import Batch
from baselines.preprocess import Normalisation

SYMMETRIC = ("image", "semantic", "instances", "distance")


def to_batch(crops: Mapping[str, Tensor], device: torch.device) -> Batch:
    """Move collated crops to the device, and there to the types of ``Batch``."""
    moved = {name: value.to(device, non_blocking=True) for name, value in crops.items()}
    return {
        "image": moved["image"].float(),
        "semantic": moved["semantic"].long(),
        "instances": moved["instances"].long(),
        "distance": moved["distance"].float() / 255,
        "annotated": moved["annotated"],
    }


def augmented(batch: Batch, numbers: Tensor, seed: int, normalisation: Normalisation) -> Batch:
    """Turn, mirror and vary each crop of a batch by its own random numbers; targets follow the image."""
    generators = [np.random.default_rng((seed, int(number), 1)) for number in numbers]
    planes = {name: batch[name] for name in SYMMETRIC}  # type: ignore[literal-required]
    parts: dict[str, list[Tensor]] = {name: [] for name in SYMMETRIC}
    for index, generator in enumerate(generators):
        one = {name: values[index] for name, values in planes.items()}
        for name, value in random_symmetry(one, generator).items():
            parts[name].append(value)
    images = [
        random_intensity(image, generator, seed, int(number), normalisation)
        for image, generator, number in zip(parts["image"], generators, numbers, strict=True)
    ]
    return {
        "image": torch.stack(images),
        "semantic": torch.stack(parts["semantic"]),
        "instances": torch.stack(parts["instances"]),
        "distance": torch.stack(parts["distance"]),
        "annotated": batch["annotated"],
    }


def random_symmetry(arrays: Mapping[str, Tensor], generator: np.random.Generator) -> dict[str, Tensor]:
    """Apply one of the eight symmetries of the ``(y, x)`` square to all arrays alike, and to volumes a flip along z."""
    turns, mirror, flip_z = int(generator.integers(4)), bool(generator.integers(2)), bool(generator.integers(2))
    result = {}
    for name, array in arrays.items():
        turned = torch.rot90(array.flip(-1) if mirror else array, turns, (-2, -1))
        is_volume = turned.ndim == (4 if name == "image" else 3)
        result[name] = turned.flip(-3) if is_volume and flip_z else turned
    return result


def random_intensity(
    image: Tensor, generator: np.random.Generator, seed: int, number: int, normalisation: Normalisation
) -> Tensor:
    """Vary gamma, contrast, brightness, focus and noise of an image (1, *S), within its normalisation's range."""
    span = normalisation.high - normalisation.low
    unit = (image - normalisation.low) / span
    if generator.random() < 0.5:
        unit = unit.clamp(0, 1) ** float(np.exp(generator.uniform(-0.35, 0.35)))
    if generator.random() < 0.7:
        unit = (unit - 0.5) * generator.uniform(0.75, 1.3) + 0.5 + generator.uniform(-0.07, 0.07)
    if generator.random() < 0.2:
        unit = blurred(unit, generator.uniform(0.5, 1.2))
    if generator.random() < 0.5:
        noise = torch.Generator(image.device).manual_seed(hash((seed, number)) & 0x7FFFFFFFFFFFFFFF)
        sigma = generator.uniform(0.0, 0.07)
        unit = unit + sigma * torch.randn(unit.shape, generator=noise, device=image.device)
    return unit.clamp(0, 1) * span + normalisation.low


def blurred(image: Tensor, sigma: float) -> Tensor:
    """Blur (1, *S) by a Gaussian along the last two axes; reflected at the edges."""
    radius = int(np.ceil(3 * sigma))
    line = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=image.device) / sigma) ** 2)
    line = (line / line.sum()).to(image)
    planes = image.reshape(-1, 1, *image.shape[-2:])
    planes = F.pad(planes, (radius, radius, radius, radius), mode="reflect")
    planes = F.conv2d(F.conv2d(planes, line.view(1, 1, 1, -1)), line.view(1, 1, -1, 1))
    return planes.reshape(image.shape)
