"""A folder of 2D image files as one lazy ``(z, y, x)`` volume; every fault names its file."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from em_bench_eval.errors import InputError

IMAGE_SUFFIXES = (".png", ".tif", ".tiff")
Decode = Callable[[npt.NDArray[Any], Path], npt.NDArray[Any]]
Read = Callable[[Path], npt.NDArray[Any]]


class ImageStack:
    """Slices of one volume, read when they are indexed.

    ``decode(array, path)`` turns the pixels of one file into what the volume holds: the image itself, a semantic map,
    instance ids. The shape is taken from the first file and every other file must have it. ``read(path)`` reads one
    file, by default ``read_gray``.
    """

    def __init__(self, files: Sequence[Path], dtype: npt.DTypeLike, decode: Decode, read: Read | None = None):
        self.files = list(files)
        self.dtype = np.dtype(dtype)
        self._decode = decode
        self._read = read or read_gray
        self.shape = (len(self.files), *self._read(self.files[0]).shape)

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        z, *inside = index if isinstance(index, tuple) else (index,)
        if isinstance(z, (int, np.integer)):
            return np.asarray(self._slice(int(z))[tuple(inside)])
        slices = [self._slice(number)[tuple(inside)] for number in range(*z.indices(self.shape[0]))]
        return np.stack(slices) if slices else np.zeros((0, *self.shape[1:]), self.dtype)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)

    def _slice(self, z: int) -> npt.NDArray[Any]:
        path = self.files[z]
        pixels = self._read(path)
        if pixels.shape != self.shape[1:]:
            raise InputError(
                f"{path} has another size than its volume",
                found=f"{pixels.shape} (y, x)",
                expected=f"{self.shape[1:]} as in {self.files[0].name}",
                remedy="download or export this slice again",
            )
        return self._decode(pixels, path).astype(self.dtype, copy=False)


def read_gray(path: Path) -> npt.NDArray[Any]:
    """Read one gray image file, 1, 8, 16 or 32 bit; colour, alpha, palettes and broken files are ``InputError``."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if len(image.getbands()) > 1 or image.mode == "P":
                raise InputError(
                    f"{path} is not a gray image",
                    found=f"mode {image.mode}, channels {', '.join(image.getbands())}",
                    expected="one gray channel (EM images and label maps have no colour)",
                    remedy="export it as grayscale; for colour-coded labels, map the colours to ids first",
                )
            return np.asarray(image)
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing", expected="a slice of the volume", remedy="download it again") from error
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InputError(
            f"{path} cannot be read",
            found=f"{path.stat().st_size} bytes; {error}",
            expected="a complete PNG or TIFF file",
            remedy="the file is truncated or no image: download it again",
        ) from error


def read_gray_in_colour(path: Path) -> npt.NDArray[np.uint8]:
    """Read a gray image that was stored as RGB or RGBA (some label sets are); real colours are ``InputError``."""
    from PIL import Image

    with Image.open(path) as image:
        if image.mode not in ("RGB", "RGBA"):
            return read_gray(path)
        pixels = np.asarray(image)[..., :3]
    if not (pixels == pixels[..., :1]).all():
        raise InputError(
            f"{path} has colours",
            found="red, green and blue that differ",
            expected="gray, stored as gray or as colour",
            remedy="download the published label again",
        )
    return np.asarray(pixels[..., 0])


def list_slices(folder: Path) -> dict[int, Path]:
    """Find the image files of a folder by the number at the end of their name, in that order.

    Raises ``InputError`` for a missing folder, a folder without images, a file without a number and two files with the
    same number.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is missing", expected="a folder of slices", remedy="check --raw and the download")
    slices: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith("."):
            continue
        number = re.search(r"(\d+)$", path.stem)
        if number is None or int(number[1]) in slices:
            raise InputError(
                f"{path} has no place in the stack",
                found="no number at the end of its name" if number is None else f"{slices[int(number[1])].name} too",
                expected="one file per slice, numbered",
                remedy="move files that are no slices elsewhere",
            )
        slices[int(number[1])] = path
    if not slices:
        raise InputError(
            f"{folder} holds no slices",
            found=f"{sum(1 for _ in folder.iterdir())} other files",
            expected=f"files ending in {', '.join(IMAGE_SUFFIXES)}",
            remedy="check the download",
        )
    return dict(sorted(slices.items()))


def complete_stack(folder: Path) -> list[Path]:
    """List the files of a contiguous stack; a hole in the numbering is an ``InputError`` that names what is missing."""
    slices = list_slices(folder)
    first, last = min(slices), max(slices)
    missing = sorted(set(range(first, last + 1)) - set(slices))
    if missing:
        raise InputError(
            f"{folder} has missing slices",
            found=f"{len(slices)} files, none numbered {', '.join(map(str, missing[:10]))}",
            expected=f"every number from {first} to {last}",
            remedy="download the missing slices: a hole would shift everything behind it",
        )
    return list(slices.values())


def paired_stacks(images: Path, labels: Path) -> tuple[list[Path], list[Path]]:
    """List the files of an image stack and of its label stack, which must have the same number of slices."""
    image_files, label_files = complete_stack(images), complete_stack(labels)
    if len(image_files) != len(label_files):
        raise InputError(
            f"{labels} does not belong to {images}",
            found=f"{len(label_files)} label slices",
            expected=f"{len(image_files)}, one for each image",
            remedy=f"compare the folders: the last files are {image_files[-1].name} and {label_files[-1].name}",
        )
    return image_files, label_files


def gray_image(pixels: npt.NDArray[Any], path: Path) -> npt.NDArray[np.uint8]:
    """Decode an 8-bit EM image."""
    if pixels.dtype != np.uint8:
        raise InputError(
            f"{path} is not an 8-bit image",
            found=str(pixels.dtype),
            expected="uint8",
            remedy="use the published 8-bit images; this source has no other",
        )
    return pixels


def semantic_values(mapping: dict[int, int]) -> Decode:
    """Make a decoder from published label values to ``Organelle.label_id``; any other value is an ``InputError``."""
    table = np.full(256, 255, np.uint8)
    table[list(mapping)] = list(mapping.values())

    def decode(pixels: npt.NDArray[Any], path: Path) -> npt.NDArray[np.uint8]:
        values = pixels.astype(np.uint8) * np.uint8(255) if pixels.dtype == np.bool_ else pixels
        semantic = table[values] if values.dtype == np.uint8 else np.full(values.shape, 255, np.uint8)
        if (semantic == 255).any():
            unknown = sorted(set(np.unique(values).tolist()) - set(mapping))
            raise InputError(
                f"{path} has unknown label values",
                found=", ".join(map(str, unknown[:8])),
                expected=", ".join(map(str, sorted(mapping))),
                remedy="the file may have been resampled or converted: download the published label again",
            )
        return semantic

    return decode
