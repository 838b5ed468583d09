"""Tiny raw data in the published layout of every source that needs a download, written on the fly.

One writer per source, keyed by the source's name; ``test_sources.py`` fails for a source without one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

specimen = 0  # other numbers give other tissue: a build of several sources must not look like one specimen twice


def _random(seed: int) -> np.random.Generator:
    return np.random.default_rng([specimen, seed] if specimen else seed)


def blobs(shape: tuple[int, int, int], seed: int, share: float = 0.25) -> np.ndarray:
    """A ``(z, y, x)`` mask of smooth blobs that covers about ``share`` of the volume."""
    field = ndimage.gaussian_filter(_random(seed).normal(size=shape), (2, 4, 4), mode="wrap")
    return field > np.quantile(field, 1 - share)


def em_like(mask: np.ndarray, seed: int) -> np.ndarray:
    """A gray image in which the mask is darker, with correlated and white noise; uint8."""
    rng = _random(seed)
    texture = ndimage.gaussian_filter(rng.normal(size=mask.shape), 1.5) * 60
    soft = ndimage.gaussian_filter(mask.astype(float), 0.7)
    return np.clip(150 - 70 * soft + texture + rng.normal(0, 6, mask.shape), 0, 255).astype(np.uint8)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def lucchipp(raw: Path, shape: tuple[int, int, int] = (40, 64, 64), part: str = "train", seed: int = 1) -> Path:
    folder = raw / "lucchipp_fibsem_mito"
    mask = blobs(shape, seed)
    for z, (image, label) in enumerate(zip(em_like(mask, seed), mask, strict=True)):
        save(folder / part / "raw" / f"{z:04d}.png", image)
        save(folder / part / "label" / f"{z:04d}.png", label.astype(np.uint8) * 255)
    return folder


def vnc_sstem(raw: Path, shape: tuple[int, int, int] = (12, 72, 64), seed: int = 2) -> Path:
    folder = raw / "vnc_sstem"
    mask = blobs(shape, seed)
    others = np.random.default_rng(seed).choice([0, 32, 64, 96, 128, 159, 223, 255], size=shape)
    labels = np.where(mask, 191, others).astype(np.uint8)
    for z, (image, label) in enumerate(zip(em_like(mask, seed), labels, strict=True)):
        save(folder / "stack1" / "raw" / f"{z:02d}.png", image)
        save(folder / "stack1" / "labels" / f"labels{z:08d}.png", label)
        # the published folder mixes 1-bit and 8-bit files
        save(folder / "stack1" / "mitochondria" / f"{z:02d}.png", mask[z] if z % 2 else mask[z].astype(np.uint8) * 80)
    return folder


def hela_sbfsem(raw: Path, side: int = 220, seed: int = 3) -> Path:
    folder = raw / "hela_sbfsem_mito2d"
    for number in (1, 30):
        mask = blobs((1, side, side), seed + number)[0]
        mask[:, : side // 2] = False  # only the right half is the central cell
        mask[: side // 2 + 20] = False
        nucleus = np.zeros((side, side), np.uint16)
        nucleus[side // 2 + 40 : side // 2 + 80, side // 2 + 40 : side // 2 + 80] = 7
        mito = np.where(nucleus > 0, 0, ndimage.label(mask)[0]).astype(np.uint16)
        save(folder / "raw" / f"z{number:04d}.png", em_like(mask, seed + number))
        save(folder / "mito_instance" / f"z{number:04d}.png", mito * 3)
        if number == 30:
            save(folder / "nucleus_instance" / f"z{number:04d}.png", nucleus)
    return folder


WRITERS: dict[str, Callable[[Path], Path]] = {
    "lucchipp": lucchipp,
    "vnc_sstem": vnc_sstem,
    "hela_sbfsem": hela_sbfsem,
}
