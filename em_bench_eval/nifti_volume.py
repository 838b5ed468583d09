"""NIfTI-1 and -2: stored (x, y, z), read (z, y, x) with ``nibabel``; compressed files are unpacked once."""

from __future__ import annotations

import gzip
import math
import shutil
import tempfile
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .opened import Box, Opened
from .spacing import in_nm
from .volume_files import unreadable


def open_nifti(location: str, path: Path, inside: str | None = None) -> Opened:
    """Open a NIfTI file; the order of its axes is turned round, its orientation (affine) is not applied."""
    import nibabel

    try:
        image: Any = nibabel.load(path)
        proxy = image.dataobj
        shape, stored = tuple(proxy.shape), np.dtype(image.get_data_dtype())
    except Exception as error:  # nibabel's readers raise errors of many kinds for damaged headers
        raise unreadable(path, "NIfTI", error) from error
    if len(shape) < 3 or math.prod(shape[3:]) != 1:
        raise InputError(
            f"{path} is not one 3D volume",
            found=f"shape {shape} (x, y, z, ...)",
            expected="three axes, and any others of length 1",
            remedy="store one time point or channel as a file of its own",
        )
    if stored.kind not in "buif":
        raise InputError(f"{path} holds no numbers that are voxels", found=str(stored), expected="integers or floats")
    packed = path.suffix.lower() == ".gz"
    size, offset = path.stat().st_size, int(proxy.offset)
    needed = offset + math.prod(shape) * stored.itemsize
    if not packed and size < needed:
        raise unreadable(path, "NIfTI", f"its header promises {needed:,} bytes")
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
    pixels = _Voxels(path, proxy, packed, np.dtype(np.float64) if scaled else stored)
    return Opened(location, "NIfTI", pixels, voxel_size, None, {"zooms": zooms, "unit": unit}, tuple(notes))


class _Voxels:
    """The voxels of a NIfTI file, turned round to ``(z, y, x)``."""

    def __init__(self, path: Path, proxy: Any, packed: bool, dtype: np.dtype[Any]):
        x, y, z = proxy.shape[:3]
        self.shape, self.dtype = (z, y, x), dtype
        self.chunk_shape = (1, 1, 1)
        self._path, self._proxy, self._packed = path, proxy, packed
        self._lock = threading.Lock()

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Read a box: its own bytes of a plain file."""
        with self._lock:
            if self._packed:
                self._proxy, self._packed = self._unpacked(), False
        try:
            index = (*box[::-1], *(0 for _ in self._proxy.shape[3:]))
            return np.array(np.asarray(self._proxy[index]).T, dtype=self.dtype)
        except (OSError, ValueError, EOFError) as error:
            raise unreadable(self._path, "NIfTI", error) from error

    def _unpacked(self) -> Any:
        """Unpack into a file without a name, which the system deletes with this object."""
        from nibabel.arrayproxy import ArrayProxy

        plain = tempfile.TemporaryFile()  # noqa: SIM115  # as long as this volume
        try:
            with gzip.open(self._path) as packed:
                shutil.copyfileobj(packed, plain, 2**20)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise unreadable(self._path, "NIfTI", error) from error
        except OSError as error:
            raise InputError(
                f"{self._path} cannot be unpacked into {tempfile.gettempdir()}",
                found=str(error),
                remedy="name a folder with more room in the environment variable TMPDIR, or gunzip the file yourself",
            ) from error
        old = self._proxy
        stored = (old.shape, old.dtype, old.offset, old.slope, old.inter)
        return ArrayProxy(plain, stored, mmap=False, order="F")
