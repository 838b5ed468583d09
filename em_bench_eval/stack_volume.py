"""A folder of 2D images as one volume, and a single image as a volume of one slice; planes are read when needed."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .opened import Box, Opened
from .tiff_volume import check_complete, check_gray, chunk_of, not_gray, parse, read_page
from .volume_files import format_of_name, unreadable

PLANE_FORMATS = ("TIFF", "PNG")
TIME = 100_000  # from here on a number in a name may be a time
SCALED_PNG = {"L;2": 85, "L;4": 17}  # Pillow stretches 2 and 4 bits to 8, which would change label values
PNG_MODES = {"1": "bool", "L": "uint8", "P": "uint8", "I": "uint16", "I;16": "uint16", "I;16B": "uint16"}


class Plane(NamedTuple):
    """What the header of a 2D image says."""

    shape: tuple[int, int]  # (y, x)
    dtype: np.dtype[Any]
    chunk: tuple[int, int]  # what is read as one
    palette: bool = False


def open_image(location: str, path: Path, inside: str | None = None) -> Opened:
    """Open one PNG image as a volume of one slice."""
    return _opened(location, [path], "PNG")


def open_stack(location: str, folder: Path) -> Opened:
    """Open the TIFF or PNG files of a folder, in the natural order of their names, as one volume.

    Hidden files and files of other kinds (Thumbs.db, logs) are passed over. Raises ``InputError`` for no images, both
    kinds at once, a hole in the numbering, other than one page a file, colour, and differing sizes or types.
    """
    return _opened(location, *plane_files(folder))


def holds_planes(folder: Path) -> bool:
    """Tell whether a folder has TIFF or PNG files in it."""
    return folder.is_dir() and any(_kind(path) for path in folder.iterdir())


def is_stack(folder: Path) -> bool:
    """Tell whether the images of a folder are meant as the slices of one volume, faulty or not.

    They are several, of one kind, and one of the first two has one page; files of many pages are volumes themselves.
    """
    kinds = _by_kind(folder)
    paths = next(iter(kinds.values()), [])
    return len(kinds) == 1 and len(paths) > 1 and any(map(_has_one_page, paths[:2]))


def _has_one_page(path: Path) -> bool:
    try:
        return _kind(path) != "TIFF" or len(parse(path).pages) == 1
    except InputError:
        return False


def _by_kind(folder: Path) -> dict[str, list[Path]]:
    kinds: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir(), key=lambda path: natural(path.name)):
        if kind := _kind(path):
            kinds.setdefault(kind, []).append(path)
    return kinds


def plane_files(folder: Path) -> tuple[list[Path], str]:
    """List the image files of a folder in natural order, and say which format they have."""
    kinds = _by_kind(folder)
    if len(kinds) != 1:
        raise InputError(
            f"{folder} is not one stack of images",
            found=", ".join(f"{len(paths)} {kind} files ({paths[0].name}, ...)" for kind, paths in kinds.items())
            or "no images",
            expected="files of one kind, TIFF or PNG, one for each slice",
            remedy="move what is no slice elsewhere",
        )
    ((kind, paths),) = kinds.items()
    if hole := missing_after(paths):
        raise InputError(
            f"{folder} has missing slices",
            found=f"{len(paths)} files; between {hole[0].name} and {hole[1].name} the numbers jump",
            expected="numbers at equal distances",
            remedy="copy the missing files: a hole would shift everything behind it. Slices that are meant to lie "
            "apart are volumes of their own: name each file",
        )
    return paths, kind


def natural(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key by which ``z9.png`` comes before ``z10.png``."""
    return [(1, int(part), part) if part.isdecimal() else (0, 0, part) for part in re.split(r"(\d+)", name) if part]


def missing_after(paths: Sequence[Path]) -> tuple[Path, Path] | None:
    """Return the files on both sides of the first hole in the numbering, if the names number the slices.

    A number in the names counts the slices if it has one step everywhere, or most of the time; the latter has a hole.
    Small numbers at all distances are slices that lie apart. Long ones (times of acquisition) are taken as they are.
    """
    numbers = [[int(number) for number in re.findall(r"\d+", path.stem)] for path in paths]
    if len(paths) < 3 or len({len(found) for found in numbers}) != 1:
        return None
    broken: tuple[Path, Path] | None = None
    for column in reversed(range(len(numbers[0]))):
        steps = [after[column] - before[column] for before, after in itertools.pairwise(numbers)]
        ((usual, count),) = Counter(steps).most_common(1)
        if usual == 0:
            continue
        if count == len(steps):
            return None
        counts = 2 * count > len(steps) or max(number[column] for number in numbers) < TIME
        if broken is None and usual > 0 and counts:
            place = next(place for place, step in enumerate(steps) if step != usual)
            broken = (paths[place], paths[place + 1])
    return broken


def look(path: Path) -> Plane:
    """Read the header of a 2D gray image; raises ``InputError`` for colour, several pages and broken files."""
    return _look_tiff(path) if _kind(path) == "TIFF" else _look_png(path)


def read_plane(path: Path, y: slice, x: slice) -> npt.NDArray[Any]:
    """Read ``[y, x]`` of a 2D gray image: of TIFF only the strips and tiles in it."""
    if _kind(path) == "TIFF":
        file = parse(path)
        return read_page(file.pages[0], y, x, path)
    try:
        with _png(path) as image:
            stretched = SCALED_PNG.get(str(image.tile[0][3]), 1) if image.tile else 1
            pixels = np.asarray(image).astype(PNG_MODES[image.mode], copy=False)
    except (OSError, SyntaxError, ValueError) as error:
        raise unreadable(path, "PNG", error) from error
    return np.asarray(pixels // stretched if stretched > 1 else pixels)[y, x]


class Planes:
    """Image files, one for each slice."""

    def __init__(self, files: Sequence[Path]):
        self.files = list(files)
        first = look(self.files[0])
        for path in self.files[1:]:
            plane = look(path)
            if (plane.shape, plane.dtype) != (first.shape, first.dtype):
                raise InputError(
                    f"{path} has another size or type than its stack",
                    found=f"{plane.shape} (y, x), {plane.dtype}",
                    expected=f"{first.shape}, {first.dtype} as in {self.files[0].name}",
                    remedy="export this slice again, or move it elsewhere if it is none",
                )
        self.shape = (len(self.files), *first.shape)
        self.dtype = first.dtype
        self.chunk_shape = (1, *first.chunk)
        self.palette = first.palette

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Read a box: the files of its slices, and no others."""
        z, y, x = box
        return np.stack([self._plane(number, y, x) for number in range(z.start, z.stop, z.step)])

    def _plane(self, number: int, y: slice, x: slice) -> npt.NDArray[Any]:
        return read_plane(self.files[number], y, x)


def _opened(location: str, files: list[Path], kind: str) -> Opened:
    planes = Planes(files)
    many = len(files) > 1
    notes = ("the images have a colour table; the values are read as stored",) if planes.palette else ()
    return Opened(
        location,
        f"{kind} files" if many else kind,
        planes,
        None,
        None,
        {"files": len(files), "first": files[0].name, "last": files[-1].name}
        | ({"palette": True} if planes.palette else {}),
        notes,
    )


def _kind(path: Path) -> str | None:
    found = None if path.name.startswith(".") else format_of_name(path.name)
    return found.name if found is not None and found.name in PLANE_FORMATS and path.is_file() else None


def _look_tiff(path: Path) -> Plane:
    file = parse(path)
    page = file.pages[0]
    check_gray(page, path)
    check_complete(page, path)
    if len(file.pages) > 1 or len(page.shape) != 2:
        raise InputError(
            f"{path} is not one slice",
            found=f"{len(file.pages)} pages of shape {tuple(page.shape)}",
            expected="2D images in a folder, or one file with all slices",
            remedy=f"open the file instead of its folder: {path}",
        )
    height, width = page.shape
    return Plane((height, width), np.dtype(page.dtype), chunk_of(page), int(page.photometric) == 3)


def _look_png(path: Path) -> Plane:
    try:
        with _png(path) as image:
            mode, (width, height), bands = image.mode, image.size, image.getbands()
    except (OSError, SyntaxError, ValueError) as error:
        raise unreadable(path, "PNG", error) from error
    if mode not in PNG_MODES:
        raise not_gray(path, f"mode {mode}, channels {', '.join(bands)}")
    return Plane((height, width), np.dtype(PNG_MODES[mode]), (height, width), mode == "P")


def _png(path: Path) -> Any:
    from PIL import PngImagePlugin

    # not Image.open, which refuses images of more than 179 million pixels: EM mosaics are larger
    return PngImagePlugin.PngImageFile(path)
