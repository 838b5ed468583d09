"""Imaging set-ups: how electron density becomes the grey values of a microscope. A set-up is data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from dataset_builder.phantom.grid import FloatArray, Grid, NoiseField
from em_bench_eval.schema import Domain


@dataclass(frozen=True)
class Setup:
    """One microscope with its settings; lengths in nm, brightness in grey values 0..255."""

    name: str
    modality: str
    domain: Domain
    voxel_nm: tuple[float, float, float]  # (z, y, x)
    subslices: int  # planes that are averaged into one slice: the depth from which signal comes
    blur_nm: tuple[float, float, float]  # standard deviation of the point spread function
    bright: float  # grey of empty resin
    dark: float  # grey of a membrane
    gamma: float  # > 1 spreads the bright half
    dose: float  # electrons per pixel at density 0: shot noise
    read_noise: float  # grey values
    noise_blur: float  # pixels: correlation of the shot noise
    slice_brightness: float  # grey values, from slice to slice
    shading: float  # grey values, slow gradient over the field of view
    processes_per_um2: float = 16.0  # neighbouring cells beyond the plasma membrane
    crowding: float = 1.0  # share of them that is there
    curtains: float = 0.0  # grey values: ion-milling stripes along y
    charging: float = 0.0  # grey values: bright streaks along x next to empty resin
    shift_px: int = 0  # largest misalignment of a slice; labels move with the image
    knife_marks: float = 0.0  # per slice
    folds: float = 0.0  # probability per slice
    dirt: float = 0.0  # stain precipitates per slice


SETUPS: dict[str, Setup] = {
    setup.name: setup
    for setup in (
        Setup(
            "fibsem8", "FIB-SEM", "in", (8.0, 8.0, 8.0), subslices=1, blur_nm=(4.0, 4.2, 4.2), bright=218, dark=48,
            gamma=1.0, dose=420, read_noise=3.0, noise_blur=0.4, slice_brightness=0.8, shading=3, curtains=1.6,
        ),
        Setup(
            "fibsem5", "FIB-SEM", "in", (5.0, 5.0, 5.0), subslices=1, blur_nm=(4.5, 5.0, 5.0), bright=198, dark=48,
            gamma=0.9, dose=160, read_noise=4.0, noise_blur=0.6, slice_brightness=1.5, shading=5, curtains=2.5,
        ),
        Setup(
            "sbfsem", "SBF-SEM", "in", (30.0, 10.0, 10.0), subslices=3, blur_nm=(9.0, 6.0, 6.0), bright=212, dark=66,
            gamma=0.8, dose=330, read_noise=3.5, noise_blur=0.5, slice_brightness=2.5, shading=7, crowding=0.3,
            charging=11,
        ),
        Setup(
            "sstem", "ssTEM", "out", (50.0, 5.0, 5.0), subslices=4, blur_nm=(4.0, 2.8, 2.8), bright=250, dark=-24,
            gamma=1.0, dose=75, read_noise=6.0, noise_blur=0.6, slice_brightness=9.0, shading=10,
            processes_per_um2=26, shift_px=2, knife_marks=0.5, folds=0.12, dirt=1.2,
        ),
    )
}  # fmt: skip


def acquire(density: FloatArray, grid: Grid, setup: Setup, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Turn density on a grid of sub-slices, ``(z * subslices, y, x)``, into a ``(z, y, x)`` uint8 image."""
    sigma = [blur / voxel for blur, voxel in zip(setup.blur_nm, grid.voxel_nm, strict=True)]
    blurred = ndimage.gaussian_filter(density, sigma, truncate=3)
    depth, height, width = density.shape[0] // setup.subslices, density.shape[1], density.shape[2]
    seen = blurred.reshape(depth, setup.subslices, height, width).mean(axis=1)
    transmitted = np.clip(1 - seen, 0.0, 1.0) ** np.float32(setup.gamma)

    shape = (depth, height, width)
    electrons = rng.poisson(transmitted * setup.dose + 0.15 * setup.dose).astype(np.float32)
    signal = electrons / np.float32(setup.dose) - np.float32(0.15)
    grain = setup.read_noise * rng.standard_normal(shape, dtype=np.float32)
    noisy = ndimage.gaussian_filter(signal, (0, setup.noise_blur, setup.noise_blur)) if setup.noise_blur else signal
    image = setup.dark + (setup.bright - setup.dark) * noisy + grain

    image += setup.slice_brightness * rng.standard_normal((depth, 1, 1), dtype=np.float32)
    image = (image - 128) * (
        1 + 0.01 * setup.slice_brightness * rng.standard_normal((depth, 1, 1), dtype=np.float32)
    ) + 128
    image += setup.shading * _field(rng, shape, (max(12.0, depth / 2), 150.0, 150.0))
    if setup.curtains:
        image += setup.curtains * _curtains(rng, shape)
    if setup.charging:
        image += setup.charging * _charging(seen)
    for slice_image in image:
        _scratch(slice_image, setup, rng)
    return np.asarray(np.clip(np.rint(image), 0, 255), dtype=np.uint8)


def _field(rng: np.random.Generator, shape: tuple[int, int, int], scale: tuple[float, float, float]) -> FloatArray:
    """Smooth noise in voxel coordinates."""
    lines = [np.arange(n, dtype=np.float32) for n in shape]
    noise = NoiseField(rng, (0, 0, 0), shape, scale)
    return noise.on((lines[0][:, None, None], lines[1][None, :, None], lines[2][None, None, :]))


def _curtains(rng: np.random.Generator, shape: tuple[int, int, int]) -> FloatArray:
    """Stripes along y, narrow in x, that persist over some slices and fade along the beam."""
    stripes = _field(rng, shape, (5.0, 130.0, 1.6)) + 0.7 * _field(rng, shape, (9.0, 400.0, 7.0))
    return np.asarray(stripes * np.abs(_field(rng, shape, (20.0, 150.0, 60.0))) ** 0.5, dtype=np.float32)


def _charging(seen: FloatArray) -> FloatArray:
    """Bright smear along x at empty resin, which does not conduct, with a wide dark halo; sums to 0."""
    empty = (seen < 0.12).astype(np.float32)
    smear = ndimage.gaussian_filter(empty, (0, 0.8, 14))
    wide = ndimage.gaussian_filter(empty, (0, 12, 30))
    return np.asarray(smear - wide, dtype=np.float32)


def _scratch(image: FloatArray, setup: Setup, rng: np.random.Generator) -> None:
    """Add knife marks, a fold and stain precipitates to one ``(y, x)`` slice, in place."""
    height, width = image.shape
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None, :]
    for _ in range(int(rng.poisson(setup.knife_marks))):
        angle, offset = rng.normal(1.2, 0.08), rng.uniform(0, height + width) * 0.6
        across = np.abs(y * np.cos(angle) + x * np.sin(angle) - offset)
        image += rng.choice((-20.0, 14.0)) * np.exp(-((across / rng.uniform(0.8, 2.2)) ** 2))
    if rng.random() < setup.folds:
        angle, offset = rng.uniform(0, np.pi), rng.uniform(0.2, 0.8) * width
        along = -y * np.sin(angle) + x * np.cos(angle)
        across = np.abs(y * np.cos(angle) + x * np.sin(angle) - offset + 6 * np.sin(along / 35 + rng.uniform(0, 6)))
        image -= 75 * np.exp(-((across / rng.uniform(2.0, 4.0)) ** 4))
    for _ in range(int(rng.poisson(setup.dirt * height * width / 256**2))):
        cy, cx, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(0.8, 2.6)
        image -= 150 * np.exp(-((((y - cy) ** 2 + (x - cx) ** 2) / radius**2) ** 2))
