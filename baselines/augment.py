"""Augmentation of a training crop: the plane's symmetries, and what microscopes vary - contrast, focus, noise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Plane = npt.NDArray[np.float32]


def random_symmetry(
    arrays: list[npt.NDArray[np.generic]], generator: np.random.Generator
) -> list[npt.NDArray[np.generic]]:
    """Apply one of the eight symmetries of the square to all ``(y, x)`` arrays alike."""
    turns, mirror = int(generator.integers(4)), bool(generator.integers(2))
    return [np.rot90(array[:, ::-1] if mirror else array, turns) for array in arrays]


def random_intensity(image: Plane, generator: np.random.Generator) -> Plane:
    """Vary gamma, contrast, brightness, focus and noise of a normalised ``(y, x)`` image; clipped at ±1.5."""
    if generator.random() < 0.5:
        unit = (image + 1.5) / 3.0
        image = np.power(unit, np.float32(np.exp(generator.uniform(-0.35, 0.35)))) * 3.0 - 1.5
    if generator.random() < 0.7:
        image = image * np.float32(generator.uniform(0.75, 1.3)) + np.float32(generator.uniform(-0.2, 0.2))
    if generator.random() < 0.2:
        image = ndimage.gaussian_filter(image, generator.uniform(0.5, 1.2))
    if generator.random() < 0.5:
        sigma = np.float32(generator.uniform(0.0, 0.2))
        image = image + sigma * generator.standard_normal(image.shape, dtype=np.float32)
    return np.clip(image, -1.5, 1.5).astype(np.float32)
