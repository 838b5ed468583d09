"""Semantic volumes to measure with: synthetic ones of any size, and the real UroCell labels where they are.

Synthetic volumes are thresholded band-limited Gaussian noise. They are smoother than what a network predicts; speckle
moves figures toward ``noise``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Semantic = npt.NDArray[np.uint8]  # (z, y, x)
REAL_DATA = Path(os.environ.get("EM_BENCH_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def field(size: int, sigma_voxels: float, seed: int) -> npt.NDArray[np.float32]:
    """Gaussian noise, smoothed to ``sigma_voxels``, with unit variance."""
    noise = np.random.default_rng(seed).standard_normal((size,) * 3, dtype=np.float32)
    smooth = ndimage.gaussian_filter(noise, sigma_voxels, mode="wrap", truncate=3)
    return smooth / smooth.std()


def mito(size: int) -> Semantic:
    """One class of compact blobs: 14 % of the voxels."""
    return (field(size, 6, seed=1) > 1.08).astype(np.uint8)


def er(size: int) -> Semantic:
    """One class of connected sheets and tubules around a level set: 24 % of the voxels."""
    return (np.abs(field(size, 5, seed=2)) < 0.3).astype(np.uint8)


def five_classes(size: int) -> Semantic:
    """Blobs and sheets of five touching classes: about a third of the voxels."""
    semantic = np.zeros((size,) * 3, np.uint8)
    semantic[np.abs(field(size, 5, seed=3)) < 0.15] = 3  # er
    semantic[field(size, 6, seed=4) > 1.2] = 1  # mito
    semantic[field(size, 3, seed=5) > 2.0] = 4  # endo
    semantic[np.abs(field(size, 4, seed=6) - 2.0) < 0.2] = 5  # golgi
    semantic[field(size, 20, seed=7) > 1.6] = 2  # nucleus
    return semantic


def noise(size: int) -> Semantic:
    """Five classes drawn independently for 30 % of the voxels: nearly every voxel its own run."""
    rng = np.random.default_rng(8)
    drawn = rng.integers(0, 50, (size,) * 3, dtype=np.uint8)  # values 1..15 are foreground
    return np.where(drawn < 16, (drawn + 2) // 3, 0).astype(np.uint8)


SYNTHETIC: dict[str, Callable[[int], Semantic]] = {"mito": mito, "er": er, "five": five_classes, "noise": noise}


def urocell() -> dict[str, Path]:
    """The real UroCell volumes (256^3): expert masks of mitochondria and fusiform vesicles."""
    folder = REAL_DATA / "urocell_labels"
    found = sorted(folder.glob("mito/binary/*.nii.gz")) + sorted(folder.glob("fv/binary/*.nii.gz"))
    return {f"urocell-{path.parts[-3]}-{path.name.split('.')[0]}": path for path in found}


def read_nifti(path: Path) -> Semantic:
    """Read a NIfTI mask as uint8 ``(z, y, x)``, x fastest as it lies in the file."""
    import nibabel

    return np.ascontiguousarray(np.asarray(nibabel.load(path).dataobj).T > 0).astype(np.uint8)
