"""TIFF: multi-page, OME, ImageJ, BigTIFF, tiled, compressed; only the strips, tiles or mapped rows in a box are read.

``tifffile`` parses the structure and decodes the segments; ``imagecodecs`` has the rarer codecs.
"""

from __future__ import annotations

import logging
import math
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .opened import Box, Mapped, Opened, Pixels
from .schema import VoxelSize
from .spacing import nanometres
from .volume_files import unreadable

MOST_CHANNELS = 4  # an axis C of at most so many is colour, a longer one a stack that was saved without a name


def open_tiff(location: str, path: Path, inside: str | None = None) -> Opened:
    """Open a TIFF file of gray pages; ``inside`` is the number of a series where the file holds several."""
    file = parse(path)
    series = _series(file, path, inside)
    keyframe = series.keyframe
    check_gray(keyframe, path)
    axes = _stack_axes(series, path)
    notes = []
    if axes not in ("YX", "ZYX", "IYX", "QYX"):
        notes.append(f"the stack's axis is called {axes[0]} in the file; it is read as z")
    if keyframe.photometric == 0:
        notes.append("white is zero in this file: programs show it inverted; the values are read as stored")
    attributes: dict[str, Any] = {"photometric": getattr(keyframe.photometric, "name", str(keyframe.photometric))}
    if keyframe.photometric == 3:
        attributes["palette"] = True
        notes.append("the file has a colour table; the values are read as stored")
    name, voxel_size, more = _voxel_size(file)
    return Opened(
        location,
        name,
        _pixels(file, series, path),
        voxel_size,
        None,
        {**attributes, "compression": getattr(keyframe.compression, "name", str(keyframe.compression))},
        (*notes, *more),
    )


def parse(path: Path) -> Any:
    """Return the ``tifffile.TiffFile`` of a file, closed when it is forgotten; raises ``InputError``."""
    import tifffile

    with _no_silent_faults(path):
        file = tifffile.TiffFile(path)
        weakref.finalize(file, file.filehandle.close)
        file.filehandle.set_lock(True)
        len(file.pages)  # walks the chain of pages
    return file


def count_series(path: Path) -> int:
    """Return how many series of equal pages a file holds; raises ``InputError``."""
    file = parse(path)
    with _no_silent_faults(path):
        return len(file.series)


@contextmanager
def _no_silent_faults(path: Path) -> Iterator[None]:
    """Raise ``InputError`` for every fault that tifffile finds; some it only logs, and gives a shorter stack."""
    logged: list[str] = []
    thread = threading.get_ident()

    class Faults(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread:
                logged.append(record.getMessage())

    handler, logger = Faults(logging.ERROR), logging.getLogger("tifffile")
    logger.addHandler(handler)
    try:
        yield
    except Exception as error:  # the metadata of every maker are parsed in their own way
        raise unreadable(path, "TIFF", error) from error
    finally:
        logger.removeHandler(handler)
    if logged:
        raise unreadable(path, "TIFF", logged[0])


def check_gray(page: Any, path: Path) -> None:
    """Raise ``InputError`` for a page with several samples a pixel, or of complex numbers."""
    if page.samplesperpixel != 1:
        raise not_gray(path, f"{page.samplesperpixel} values a pixel ({page.photometric.name})")
    if page.dtype is None or page.dtype.kind not in "buif":
        raise InputError(
            f"{path} holds no numbers that are voxels",
            found=str(page.dtype),
            expected="8-, 16- or 32-bit integers, or floats",
            remedy="export it with such a type",
        )


def not_gray(path: Path, found: str) -> InputError:
    """Build the error for a colour image."""
    return InputError(
        f"{path} is not a gray image",
        found=found,
        expected="one gray channel (EM images and label maps have no colour)",
        remedy="export it as grayscale; for colour-coded labels, map the colours to ids first",
    )


def _series(file: Any, path: Path, inside: str | None) -> Any:
    with _no_silent_faults(path):
        known = list(file.series)
    if not known:
        raise unreadable(path, "TIFF", "no image in it")
    listing = "; ".join(f"{number}: {tuple(one.shape)} {one.dtype}" for number, one in enumerate(known[:8]))
    if inside is None and len(known) == 1:
        return known[0].levels[0]
    if inside is None:
        raise InputError(
            f"{path} holds several images of different sizes",
            found=f"series {listing}{'; ...' if len(known) > 8 else ''}",
            expected="one stack of equal pages",
            remedy=f"name one by its number, as {path}:0",
        )
    if not (inside.isdecimal() and int(inside) < len(known)):
        raise InputError(f"{path}:{inside} is no series of this file", found=f"series {listing}", expected="a number")
    return known[int(inside)].levels[0]


def _stack_axes(series: Any, path: Path) -> str:
    """Return the axes longer than 1: ``YX``, or ``YX`` behind the one axis of the stack."""
    long = "".join(axis for axis, size in zip(series.axes, series.shape, strict=True) if size > 1 or axis in "YX")
    colour = long in ("CYX", "YXC") and series.shape[series.axes.index("C")] <= MOST_CHANNELS
    if "S" in long or colour:
        raise not_gray(path, f"shape {tuple(series.shape)}, axes {series.axes}")
    if not (long == "YX" or (len(long) == 3 and long.endswith("YX"))):
        raise InputError(
            f"{path} is not one 3D volume",
            found=f"shape {tuple(series.shape)}, axes {series.axes}",
            expected="one stack of gray pages (z, y, x), and any other axes of length 1",
            remedy="save one channel and one time point as a file of its own",
        )
    return long


def _pixels(file: Any, series: Any, path: Path) -> Pixels:
    height, width = series.keyframe.shape[-2:]
    shape = (math.prod(series.shape) // (height * width), height, width)
    size = path.stat().st_size
    if series.dataoffset is not None and not _is_spread(series):
        if series.dataoffset + series.nbytes > size:
            raise _truncated(path, size, series.dataoffset + series.nbytes)
        dtype = series.dtype.newbyteorder(file.byteorder)
        values = np.memmap(path, dtype, "r", series.dataoffset, shape)
        return Mapped(values)
    if len(series.pages) != shape[0] or any(page is None for page in series.pages):
        missing = [number for number, page in enumerate(series.pages) if page is None]
        raise InputError(
            f"{path} has missing pages",
            found=f"{len(series.pages) - len(missing)} pages; missing: {missing[:8]}",
            expected=f"{shape[0]} pages of {height} x {width} pixels",
            remedy="copy all files of the set into one folder, or export the stack again",
        )
    return Pages(series, shape, path)


def _is_spread(series: Any) -> bool:
    """True where tifffile's offset is that of the first of several files."""
    return len({page.parent.filehandle.path for page in series.pages if page is not None}) > 1


class Pages:
    """A stack of pages that are compressed, tiled or not one after the other."""

    def __init__(self, series: Any, shape: tuple[int, int, int], path: Path):
        self.shape, self.dtype, self._path = shape, np.dtype(series.dtype), path
        with _no_silent_faults(path):
            self._pages = list(series.pages)
        for page in self._pages:
            check_complete(page, path)
        self.chunk_shape = (1, *chunk_of(series.keyframe))
        self._file = series.keyframe.parent  # keeps the file open

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Read a box: of each page in it, the segments that it touches."""
        z, y, x = box
        pages = range(z.start, z.stop, z.step)
        return np.stack([read_page(self._pages[number], y, x, self._path) for number in pages])


def check_complete(page: Any, path: Path) -> None:
    """Raise ``InputError`` where the header of a page names a strip or tile beyond the end of the file."""
    size = page.parent.filehandle.size
    last = max(page.dataoffsets, default=0)
    end = last + page.databytecounts[page.dataoffsets.index(last)] if last else 0
    if end > size:
        raise _truncated(path, size, end)


def chunk_of(page: Any) -> tuple[int, int]:
    """Return the size of a page's segments, ``(y, x)`` pixels."""
    height, width = page.chunks[-2:]
    return int(height), int(width)


def read_page(page: Any, y: slice, x: slice, path: Path) -> npt.NDArray[Any]:
    """Read ``[y, x]`` of one gray page, decoding the strips or tiles that it touches and no others."""
    keyframe = page.keyframe
    (high, wide), across = chunk_of(keyframe), keyframe.chunked[-1]
    rows = range(y.start // high, -(-y.stop // high))
    columns = range(x.start // wide, -(-x.stop // wide))
    indices = [row * across + column for row in rows for column in columns]
    offsets = [page.dataoffsets[index] for index in indices]
    counts = [page.databytecounts[index] for index in indices]
    handle = page.parent.filehandle
    if max(map(sum, zip(offsets, counts, strict=True))) > handle.size or not all(counts):
        raise _truncated(path, handle.size, max(map(sum, zip(offsets, counts, strict=True))))
    arguments: dict[str, Any] = {}
    if keyframe.jpegtables is not None:
        arguments = {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader}
    top, left = rows.start * high, columns.start * wide
    out = np.zeros((len(rows) * high, len(columns) * wide), np.dtype(keyframe.dtype).newbyteorder("="))
    try:
        for data, number in handle.read_segments(offsets, counts, lock=handle.lock, flat=True):
            pixels, place, shape = keyframe.decode(data, indices[number], **arguments)
            at_y, at_x = place[2] - top, place[3] - left
            out[at_y : at_y + shape[1], at_x : at_x + shape[2]] = pixels[0, : shape[1], : shape[2], 0]
    except Exception as error:  # every codec has its own
        raise unreadable(path, "TIFF", error) from error
    return out[y.start - top : y.stop - top : y.step, x.start - left : x.stop - left : x.step]


def _truncated(path: Path, size: int, needed: int) -> InputError:
    return InputError(
        f"{path} is truncated",
        found=f"{size:,} bytes" if needed > size else "strips or tiles that were never written",
        expected=f"{needed:,} bytes or more" if needed > size else "every strip and tile",
        remedy="copy or export it again",
    )


def _voxel_size(file: Any) -> tuple[str, VoxelSize | None, tuple[str, ...]]:
    """Return what kind of TIFF this is, the voxel size that it states, and what to know about that."""
    if file.is_ome:
        return ("OME-TIFF", *_ome(file.ome_metadata or ""))
    page = file.pages[0]
    if file.is_imagej:
        known: Mapping[str, Any] = file.imagej_metadata or {}
        factor = nanometres(known.get("unit"))
        sizes = [known.get("spacing"), *_inverse(page.resolution[::-1])]
        return "ImageJ TIFF", *_in_nm([None if factor is None or s is None else float(s) * factor for s in sizes])
    kind = "BigTIFF" if file.is_bigtiff else "TIFF"
    per_metre = {3: 1e7}.get(int(page.resolutionunit))  # cm; inches are how large to print it
    plane = [None if per_metre is None or s is None else s * per_metre for s in _inverse(page.resolution[::-1])]
    return kind, *_in_nm([None, *plane])


def _inverse(resolution: tuple[float, ...]) -> list[float | None]:
    return [1 / value if value and value > 0 else None for value in resolution]


def _ome(xml: str) -> tuple[VoxelSize | None, tuple[str, ...]]:
    import tifffile

    image: Any = (tifffile.xml2dict(xml).get("OME") or {}).get("Image") or {}
    pixels = (image[0] if isinstance(image, list) else image).get("Pixels") or {}
    sizes: list[float | None] = []
    for axis in "ZYX":
        factor = nanometres(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        size = pixels.get(f"PhysicalSize{axis}")
        sizes.append(None if size is None or factor is None else float(size) * factor)
    return _in_nm(sizes)


def _in_nm(sizes: list[float | None]) -> tuple[VoxelSize | None, tuple[str, ...]]:
    z, y, x = (size if size is not None and math.isfinite(size) and size > 0 else None for size in sizes)
    if y is None or x is None:
        return None, ()
    if z is None:
        return None, (f"pixels of {y:g} x {x:g} nm (y, x) are stated, and no distance of the slices",)
    return VoxelSize(z, y, x), ()
