"""Opening one result as an array of its case, whatever its format, axes and pixel size; nothing in it is trusted."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from baselines.external.row_boxes import Triple, triple
from em_bench_eval.align import resize_image
from em_bench_eval.errors import InputError
from em_bench_eval.opened import Box, Opened
from em_bench_eval.volume_io import open_volume

NPZ_KEYS = ("probabilities", "softmax")  # nnU-Net 2, and 1
CONTAINERS = (".h5", ".hdf5", ".hdf")


@dataclass(frozen=True)
class Turned:
    """An array whose file lists its axes in another order than ``(z, y, x)``."""

    values: Opened
    axes: str  # of the file: "xyz"

    @property
    def shape(self) -> Triple:
        """Size in voxels, ``(z, y, x)``."""
        return triple(self.values.shape[self.axes.index(axis)] for axis in "zyx")

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type."""
        return self.values.dtype

    @property
    def chunk_shape(self) -> Triple:
        """Smallest box that is read as one."""
        return triple(self.values.chunk_shape[self.axes.index(axis)] for axis in "zyx")

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Read a box, turned to ``(z, y, x)``."""
        values = self.values[tuple(box["zyx".index(axis)] for axis in self.axes)]
        return np.transpose(values, [self.axes.index(axis) for axis in "zyx"])


def open_result(path: Path, inside: str | None, axes: str) -> Opened:
    """Open a result lazily; ``inside`` names the array in HDF5, zarr and N5, ``axes`` the order of the file's axes."""
    location = str(path)
    if inside and path.name.lower().endswith(CONTAINERS):
        location += f":{inside}"
    elif inside and path.is_dir():
        location += f"/{inside.strip('/')}"
    opened = open_volume(location)
    return opened if axes == "zyx" else Opened(location, opened.format, Turned(opened, axes), None, None)


def read_nearest(opened: Opened, native: Triple, box: Box, ratio: Sequence[float]) -> npt.NDArray[Any]:
    """Read ``box`` of the native grid from a label map that may be aligned to other pixels, by the nearest centre.

    ``ratio`` is the edge of a native voxel in voxels of the file, along each axis.
    """
    indices = []
    for side, size, stored, step in zip(box, native, opened.shape, ratio, strict=True):
        places = np.arange(size)[side]
        indices.append(places if step == 1 else np.minimum(((places + 0.5) * step).astype(np.intp), stored - 1))
    first = [int(index[0]) for index in indices]
    part = opened[tuple(slice(at, int(index[-1]) + 1) for at, index in zip(first, indices, strict=True))]
    if any(step != 1 for step in ratio):
        part = part[np.ix_(*(index - at for index, at in zip(indices, first, strict=True)))]
    return np.asarray(part)


def npz_shape(path: Path) -> tuple[int, ...]:
    """Return ``(class, z, y, x)`` of nnU-Net's probabilities, from the header; unpickles nothing."""
    return _npz(path)[1]


def read_npz(path: Path, native: Triple, ratio: Sequence[float]) -> npt.NDArray[np.float32]:
    """Read nnU-Net's probabilities ``(class, z, y, x)`` on the native grid; planes are interpolated linearly."""
    key, shape = _npz(path)
    try:
        with np.load(path, allow_pickle=False) as content:
            values = content[key]
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise _unreadable(path, str(error)) from error
    result = np.empty((shape[0], *native), np.float32)
    for channel in range(shape[0]):
        for plane in range(native[0]):
            result[channel, plane] = resize_image(values[channel, plane], native[1:], ratio[1:])
    return result


def read_maps(maps: Sequence[Opened], native: Triple, ratio: Sequence[float]) -> npt.NDArray[np.float32]:
    """Read one probability map an organelle on the native grid, and put the rest, the background's, before them."""
    result = np.empty((len(maps) + 1, *native), np.float32)
    for channel, opened in enumerate(maps, start=1):
        for plane in range(native[0]):
            values = opened[plane]
            if values.dtype.kind != "f" and values.dtype != np.uint8:
                raise _no_map(opened, str(values.dtype))
            scaled = values.astype(np.float32) / np.float32(255 if values.dtype == np.uint8 else 1)
            if not (scaled.min(initial=0) >= 0 and scaled.max(initial=0) <= 1):
                raise _no_map(opened, f"values of {scaled.min():g} to {scaled.max():g}")
            result[channel, plane] = resize_image(scaled, native[1:], ratio[1:])
    result[0] = 1 - result[1:].sum(axis=0)
    return result


def _no_map(opened: Opened, found: str) -> InputError:
    return InputError(
        f"{opened.location} holds no probabilities",
        found=found,
        expected="floats from 0 to 1, or bytes from 0 to 255",
        remedy="apply the sigmoid to logits first; label maps are read without --probabilities",
    )


def _npz(path: Path) -> tuple[str, tuple[int, ...]]:
    try:
        with zipfile.ZipFile(path) as archive:
            key = next((key for key in NPZ_KEYS if f"{key}.npy" in archive.namelist()), None)
            if key is None:
                raise _unreadable(path, f"arrays {', '.join(archive.namelist()[:5])}")
            with archive.open(f"{key}.npy") as file:
                formats: Any = np.lib.format
                read = {(1, 0): formats.read_array_header_1_0, (2, 0): formats.read_array_header_2_0}
                shape, _, dtype = read[formats.read_magic(file)](file)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise _unreadable(path, str(error)) from error
    if dtype.kind != "f" or len(shape) != 4:
        raise _unreadable(path, f"{dtype} of shape {shape}")
    return key, tuple(int(size) for size in shape)


def _unreadable(path: Path, found: str) -> InputError:
    return InputError(
        f"{path} holds no probabilities",
        found=found,
        expected="what `nnUNetv2_predict --save_probabilities` writes: floats (class, z, y, x), called 'probabilities'",
    )
