"""NIfTI-1 and -2: stored (x, y, z), read (z, y, x) with ``nibabel``; compressed files are unpacked once."""

from __future__ import annotations

import gzip
import math
import tempfile
import threading
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .opened import Box, Opened
from .spacing import in_nm, of_float32
from .volume_files import unreadable

BLOCK_BYTES = 2**20  # unpacked at a time


def open_nifti(location: str, path: Path, inside: str | None = None) -> Opened:
    """Open a NIfTI file; the order of its axes is turned round, its orientation (affine) is not applied."""
    import nibabel

    try:
        image: Any = nibabel.load(path)
        proxy = image.dataobj
        shape, stored = tuple(proxy.shape), np.dtype(image.get_data_dtype())
    except Exception as error:  # nibabel's readers raise errors of many kinds for damaged headers
        raise unreadable(path, "NIfTI", error) from error
    if len(shape) < 3 or min(shape) < 1 or math.prod(shape[3:]) != 1:
        raise InputError(
            f"{path} is not one 3D volume",
            found=f"shape {shape} (x, y, z, ...)",
            expected="three axes of 1 or more voxels, and any others of length 1",
            remedy="store one time point or channel as a file of its own",
        )
    if stored.kind not in "buif":
        raise InputError(f"{path} holds no numbers that are voxels", found=str(stored), expected="integers or floats")
    packed = path.suffix.lower() == ".gz"
    size, offset = path.stat().st_size, int(proxy.offset)
    needed = offset + math.prod(shape) * stored.itemsize
    promised = f"{needed:,} bytes: {offset:,}, then {' x '.join(map(str, shape))} voxels (x, y, z) of {stored}"
    if not packed and size < needed:
        raise unreadable(path, "NIfTI", f"its header promises {promised}")
    unit = image.header.get_xyzt_units()[0]
    zooms = [float(zoom) for zoom in image.header.get_zooms()[2::-1]]
    voxel_size, note = in_nm(zooms, unit, default=1.0)
    if unit == "unknown" and zooms != [1.0, 1.0, 1.0]:
        note = f"a voxel of {' x '.join(f'{zoom:g}' for zoom in zooms)} (z, y, x) is stated without a unit"
    notes = [note] if note else []
    if packed:
        notes.append(
            f"compressed as one piece: the first read unpacks all of it ({needed / 1e6:,.0f} MB, temporary file)"
        )
    slope, inter = proxy.slope, proxy.inter
    scaled = (slope, inter) != (1, 0)
    if scaled:
        notes.append(f"values are stored as {stored} and scaled by {slope:g} x + {inter:g}, which makes them float")
    unpack = partial(_unpacked, path, proxy, needed, promised) if packed else None
    pixels = _Voxels(path, proxy, unpack, np.dtype(np.float64) if scaled else stored)
    if image.header["pixdim"].dtype.itemsize == 4:  # NIfTI-1
        voxel_size = of_float32(voxel_size)
    return Opened(location, "NIfTI", pixels, voxel_size, None, {"zooms": zooms, "unit": unit}, tuple(notes))


class _Voxels:
    """The voxels of a NIfTI file, turned round to ``(z, y, x)``."""

    def __init__(self, path: Path, proxy: Any, unpack: Callable[[], Any] | None, dtype: np.dtype[Any]):
        x, y, z = proxy.shape[:3]
        self.shape, self.dtype = (z, y, x), dtype
        self.chunk_shape = (1, 1, 1)
        self._path, self._proxy, self._unpack = path, proxy, unpack
        self._lock = threading.Lock()

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Read a box: its own bytes of a plain file."""
        with self._lock:
            if self._unpack is not None:
                self._proxy, self._unpack = self._unpack(), None
        try:
            index = (*box[::-1], *(0 for _ in self._proxy.shape[3:]))
            return np.array(np.asarray(self._proxy[index]).T, dtype=self.dtype)
        except (OSError, ValueError, EOFError) as error:
            raise unreadable(self._path, "NIfTI", error) from error


def _unpacked(path: Path, proxy: Any, needed: int, promised: str) -> Any:
    """Unpack the ``needed`` bytes into a file without a name, which the system deletes with the object returned.

    A stream of any other length is refused, and one that is longer is not read on: a megabyte can hold a gigabyte.
    """
    from nibabel.arrayproxy import ArrayProxy

    plain = tempfile.TemporaryFile()  # noqa: SIM115  # as long as this volume
    size = 0
    try:
        with gzip.open(path) as packed:
            # one byte more than promised: the end of the stream, where its checksum is compared, or one too many
            while size <= needed and (block := packed.read(min(BLOCK_BYTES, needed + 1 - size))):
                size += plain.write(block)
        ends = "" if size == needed else f"more than {needed:,} bytes" if size > needed else f"{size:,} bytes"
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        ends = f"{size:,} bytes, then: {error}"
    except OSError as error:
        raise InputError(
            f"{path} cannot be unpacked into {tempfile.gettempdir()}",
            found=str(error),
            remedy="name a folder with more room in the environment variable TMPDIR, or gunzip the file yourself",
        ) from error
    if ends:
        raise InputError(
            f"{path} does not unpack to what its header promises",
            found=ends,
            expected=promised,
            remedy="it is truncated or damaged: copy or export it again",
        )
    return ArrayProxy(plain, (proxy.shape, proxy.dtype, proxy.offset, proxy.slope, proxy.inter), mmap=False, order="F")
