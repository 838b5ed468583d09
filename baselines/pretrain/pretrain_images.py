"""Gray images without labels, for pre-training: a folder of PNG and TIFF files, or the images of a dataset.

CEM500K (Conrad and Narayan 2021, EMPIAR-10592) is such a folder: half a million TIFF files of 224 x 224 in folders by
source. A TIFF stack counts as many images as it has planes. What cannot be read is left out and listed, never guessed.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from baselines.training_data import of_sources
from em_bench_eval.align import align_image
from em_bench_eval.errors import InputError
from em_bench_eval.rows import decode_png, open_rows, row_id
from em_bench_eval.schema import TARGET_PIXEL_SIZE_NM

Gray = npt.NDArray[np.float32]  # (y, x), 0..255
SUFFIXES = (".png", ".tif", ".tiff")
STACK_BYTES = 1 << 20  # a smaller TIFF is taken for one image without opening it
LOOKED_AT = 500  # images that are read before the start, evenly spaced, to find bad ones early
SMALLEST_EDGE = 32  # smaller ones would be magnified beyond recognition


class UnusableImage(ValueError):
    """One image cannot be read or is no gray image; the message says why."""


class Images(Protocol):
    """Numbered gray images."""

    def __len__(self) -> int: ...

    def name(self, number: int) -> str:
        """Name of an image for a list of bad ones, without the path to the folder."""
        ...

    def read(self, number: int) -> npt.NDArray[Any]:
        """Return gray values of 0 to 255, (y, x); raises ``UnusableImage``."""
        ...


class ImageFolder:
    """The PNG and TIFF files of a folder and the folders in it, in the order of their names."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.items: list[tuple[str, int | None]] = []  # path below the folder, plane of a stack
        others = 0
        for file in tqdm(_files(self.folder), desc="list images", unit="file", disable=None):
            if not file.lower().endswith(SUFFIXES):
                others += 1
                continue
            planes = _planes(self.folder / file)
            self.items += [(file, None)] if planes is None else [(file, plane) for plane in range(planes)]
        self.items.sort(key=lambda item: (item[0], item[1] or 0))
        if not self.items:
            raise InputError(
                f"there are no images in {self.folder}",
                found=f"{others} files of other kinds" if others else "an empty folder",
                expected=f"files that end in {', '.join(SUFFIXES)}, in any folders below",
                remedy="convert the images, or build a dataset of them: em-bench build --help",
            )

    def __len__(self) -> int:
        return len(self.items)

    def name(self, number: int) -> str:
        """Path below the folder, and the plane of a stack."""
        file, plane = self.items[number]
        return file if plane is None else f"{file} plane {plane}"

    def read(self, number: int) -> Gray:
        """Read one image or plane."""
        file, plane = self.items[number]
        path = self.folder / file
        try:
            array = _read_png(path) if file.lower().endswith(".png") else _read_tiff(path, plane)
        except Exception as error:  # decoders raise whatever their library does
            reason = _first_line(error).replace(str(path), file)
            raise UnusableImage(f"cannot be read: {type(error).__name__}: {reason}") from error
        return gray_values(array)


class DatasetImages:
    """Images of a dataset's training split at 8 nm per pixel; never of those that judge a network."""

    def __init__(self, dataset: str, config: str, sources: Sequence[str] = ()) -> None:
        rows = of_sources(open_rows(dataset, config, "train"), sources)
        self.rows = rows.select_columns(["image", "pixel_size_nm", "volume_id", "axis", "slice", "offset"])

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, number: int) -> str:
        """Record id."""
        return row_id(self.rows[number])

    def read(self, number: int) -> Gray:
        """Decode and align one image."""
        row = self.rows[number]
        size = (float(row["pixel_size_nm"][0]), float(row["pixel_size_nm"][1]))
        try:
            aligned = align_image(decode_png(row["image"]), size, TARGET_PIXEL_SIZE_NM)
        except (OSError, ValueError) as error:
            raise UnusableImage(f"cannot be read: {type(error).__name__}: {_first_line(error)}") from error
        return gray_values(aligned, scaled=False)


class PreparedImages:
    """Images after a function of gray values, as 8 bits; each data-loading worker keeps those that it used last.

    Reading a whole slice for every crop of it would otherwise take longer than training on it.
    """

    def __init__(self, images: Images, to_gray: Callable[[Gray], Gray], cache_bytes: int = 256 << 20) -> None:
        self.images, self.to_gray, self.cache_bytes = images, to_gray, cache_bytes
        self._cache: OrderedDict[int, npt.NDArray[np.uint8]] = OrderedDict()  # least recently used first
        self._held = 0

    def __len__(self) -> int:
        return len(self.images)

    def name(self, number: int) -> str:
        """Name of the image."""
        return self.images.name(number)

    def read(self, number: int) -> npt.NDArray[np.uint8]:
        """Return an image, (y, x); raises ``UnusableImage``."""
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        image = np.rint(self.to_gray(self.images.read(number))).astype(np.uint8)
        self._cache[number] = image
        self._held += image.nbytes
        while self._held > self.cache_bytes and len(self._cache) > 1:
            self._held -= self._cache.popitem(last=False)[1].nbytes
        return image


def open_images(place: str, config: str, sources: Sequence[str] = ()) -> Images:
    """Open a dataset folder, a Hub dataset or a folder of images; raises ``InputError`` if it is none of them.

    ``config`` and ``sources`` (all if empty) choose the rows of a dataset; a folder of images has neither.
    """
    folder = Path(place)
    if folder.is_dir() and not ((folder / "README.md").is_file() and (folder / "data").is_dir()):
        if sources:
            raise InputError(f"{folder} is a folder of images, which has no sources", remedy="leave --source away")
        return ImageFolder(folder)
    if not folder.exists() and place.count("/") != 1:
        raise InputError(
            f"there are no images at {place!r}",
            found="no such folder",
            expected=f"a folder of {', '.join(SUFFIXES)} files, a dataset folder, or <org>/<dataset> on the Hub",
        )
    if folder.is_file():
        raise InputError(f"{place} is a file", expected="the folder that holds it", remedy=f"name {folder.parent}")
    return DatasetImages(place, config, sources)


def find_bad(images: Images, report: Callable[[str, str], None]) -> set[int]:
    """Read up to ``LOOKED_AT`` images, evenly spaced, and report name and reason of those that are unusable.

    Returns their numbers; raises ``InputError`` if not one of them is usable.
    """
    count = min(len(images), LOOKED_AT)
    numbers = sorted({round(position) for position in np.linspace(0, len(images) - 1, count)})
    bad: dict[int, str] = {}
    for number in tqdm(numbers, desc="look at images", unit="image", disable=None):
        try:
            images.read(number)
        except UnusableImage as error:
            bad[number] = str(error)
            report(images.name(number), str(error))
    if len(bad) == len(numbers):
        first = next(iter(bad))
        raise InputError(
            "none of the images can be used",
            found=f"{len(bad)} of {len(numbers)} looked at; {images.name(first)} {bad[first]}",
            expected=f"gray images of at least {SMALLEST_EDGE} x {SMALLEST_EDGE} pixels",
        )
    return set(bad)


def gray_values(array: npt.NDArray[Any], *, scaled: bool = True) -> Gray:
    """Bring an image to gray values of 0 to 255; raises ``UnusableImage`` if it is none.

    8-bit values stay. Other types have no agreed range and are stretched between their 0.1 and 99.9 percentiles, unless
    ``scaled`` is off. Colours are averaged; transparency is dropped.
    """
    array = np.squeeze(array)
    if array.ndim == 3 and array.shape[-1] in (3, 4):
        array = array[..., :3].mean(-1).astype(np.uint8 if array.dtype == np.uint8 else np.float32)
    if array.ndim != 2:
        raise UnusableImage(f"has shape {array.shape}, expected (y, x)")
    if min(array.shape) < SMALLEST_EDGE:
        raise UnusableImage(f"is too small: {array.shape}, expected at least {SMALLEST_EDGE} pixels each way")
    values = array.astype(np.float32)
    if array.dtype == np.uint8 or not scaled:
        return values
    if array.dtype == np.bool_:
        return values * np.float32(255)
    if not np.isfinite(values).all():
        raise UnusableImage("holds values that are no finite numbers")
    low, high = np.percentile(values, (0.1, 99.9))
    if high <= low:
        return np.zeros_like(values)
    return np.clip((values - np.float32(low)) * np.float32(255 / (high - low)), 0, 255)


def _files(folder: Path) -> Sequence[str]:
    """Paths below a folder, hidden ones left out."""
    found = []
    for place, inside, files in os.walk(folder):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        below = os.path.relpath(place, folder)
        found += [name if below == "." else os.path.join(below, name) for name in files if not name.startswith(".")]
    return found


def _planes(path: Path) -> int | None:
    """Number of planes of a TIFF stack, None for a file of one image and for what cannot be opened."""
    if path.suffix.lower() == ".png" or path.stat().st_size < STACK_BYTES:
        return None
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            count = len(file.pages)
    except Exception:  # reported when it is read
        return None
    return count if count > 1 else None


def _read_png(path: Path) -> npt.NDArray[Any]:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB") if image.mode == "P" else image)


def _read_tiff(path: Path, plane: int | None) -> npt.NDArray[Any]:
    import tifffile

    with tifffile.TiffFile(path) as file:
        array: npt.NDArray[Any] = file.pages[plane or 0].asarray()  # type: ignore[union-attr,unused-ignore]
        return array


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0]
