"""Colours for instances: far apart, equally strong to the eye, and a function of the index alone."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Rgb = tuple[int, int, int]

GOLDEN_ANGLE_DEGREES = 180.0 * (3.0 - math.sqrt(5.0))
# golden-angle hues nearly repeat after 8, 13, 21 and 34 indices; five steps in this order set those apart by lightness
LIGHTNESS_STEPS = (0.55, 0.76, 0.83, 0.62, 0.69)
MEDIUM_LIGHTNESS = 0.66
CHROMA = 0.19
OUTLINE_FACTOR = 0.72  # of the fill colour: darker, yet coloured against the dark membranes of EM

# OKLab (B. Ottosson, "A perceptual color space for image processing", 2020)
_OKLAB_TO_LMS = np.array(
    [[1.0, 0.3963377774, 0.2158037573], [1.0, -0.1055613458, -0.0638541728], [1.0, -0.0894841775, -1.2914855480]]
)
_LMS_TO_LINEAR_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def instance_colours(indices: Iterable[int]) -> dict[int, Rgb]:
    """Give every index a colour that depends on nothing else: golden-angle hues in OKLCH, five lightness steps."""
    wanted = np.unique(np.fromiter((int(index) for index in indices), dtype=np.int64))
    lightness = np.asarray(LIGHTNESS_STEPS, np.float64)[wanted % len(LIGHTNESS_STEPS)]
    rgb = _oklch_to_rgb(lightness, np.asarray(wanted * GOLDEN_ANGLE_DEGREES, np.float64))
    return {int(index): (int(r), int(g), int(b)) for index, (r, g, b) in zip(wanted, rgb, strict=True)}


def outline_colours(colours: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the darker colour ``(n, 3)`` that outlines each fill colour ``(n, 3)``."""
    return np.asarray(np.rint(colours * OUTLINE_FACTOR), np.uint8)


def _oklch_to_rgb(lightness: npt.NDArray[np.float64], hue_degrees: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Convert OKLCH (B. Ottosson, "A perceptual color space for image processing", 2020) to 8-bit sRGB.

    Where sRGB cannot show ``CHROMA`` at that lightness, both move towards what it can: less chroma, medium lightness.
    """
    angle = np.deg2rad(hue_degrees)
    chroma = np.full(lightness.shape, CHROMA)
    for _ in range(40):
        lab = np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=-1)
        linear = (lab @ _OKLAB_TO_LMS.T) ** 3 @ _LMS_TO_LINEAR_RGB.T
        outside = ((linear < -1e-4) | (linear > 1 + 1e-4)).any(axis=-1)
        if not outside.any():
            break
        chroma = np.where(outside, chroma * 0.97, chroma)
        lightness = np.where(outside, 0.96 * lightness + 0.04 * MEDIUM_LIGHTNESS, lightness)
    linear = np.clip(linear, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(encoded * 255), np.uint8)
