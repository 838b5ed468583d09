"""The EM image of a volume: boxes of one stored array as 8-bit gray, heavy metal dark."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dataset_builder.harmonise import Window, contrast_of
from dataset_builder.openorganelle.grids import Axis, Box, Grid
from dataset_builder.openorganelle.layers import Layer, Lazy3D
from em_bench_eval.errors import InputError

MEASURED_VOXELS = 2**24  # at most, to find a window where none is declared


@dataclass(frozen=True)
class Gray:
    """How stored intensities become 8-bit gray."""

    window: Window  # of a 16-bit image; its ends swapped where it is inverted
    inverted: bool

    def apply(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.uint8]:
        """Map intensities to uint8."""
        gray = self.window.apply(values)
        return 255 - gray if self.inverted and self.window.dtype == "uint8" else gray


def gray_of(layer: Layer, coarse: Layer, declared: tuple[float, float] | None, inverted: bool) -> Gray:
    """Choose the mapping to 8 bits: none for 8-bit images, else the declared window or one measured on ``coarse``.

    ``coarse`` is a level of the same image with at most ``MEASURED_VOXELS`` voxels where the pyramid has one; of a
    larger one the centre is measured. Padding does not count (``harmonise.contrast_of``), nor does any voxel with the
    value 0, which is what chunks that are not stored read as.
    """
    if layer.dtype == np.uint8:
        return Gray(Window(0.0, 255.0, "uint8"), inverted)
    low, high = declared or _measure(coarse)
    return Gray(Window(high, low, layer.dtype.name) if inverted else Window(low, high, layer.dtype.name), inverted)


def _measure(layer: Layer) -> tuple[float, float]:
    edges = list(layer.grid.shape)
    while np.prod(edges, dtype=float) > MEASURED_VOXELS:
        edges[int(np.argmax(edges))] //= 2
    z, y, x = (
        slice((size - edge) // 2, (size + edge) // 2) for size, edge in zip(layer.grid.shape, edges, strict=True)
    )
    values, _ = layer.read((z, y, x))
    low, high = contrast_of(values[values != 0]) or (0.0, 1.0)
    return low, max(high, low + 1)


class EmImage(Lazy3D):
    """A box of an EM array on an output grid: as stored on its own grid, interpolated linearly on a finer one.

    Missing voxels are 0 and ``absent`` marks them.
    """

    def __init__(self, layer: Layer, gray: Gray, grid: Grid):
        self.shape, self.dtype = grid.shape, np.dtype(np.uint8)
        self._layer, self._gray, self._grid = layer, gray, grid
        self._same = all(_is_part(part, whole) for part, whole in zip(grid.axes, layer.grid.axes, strict=True))

    def read(self, box: Box) -> npt.NDArray[np.uint8]:
        """Read a box, uint8."""
        axes, lookup = zip(*self._positions(box), strict=True)
        stored, absent = self._layer.read((axes[0], axes[1], axes[2]))
        gray = self._gray.apply(stored)
        if absent is not None:
            if not self._layer.checked:
                raise InputError(
                    f"{self._layer.key} has missing chunks",
                    found=f"{int(absent.sum())} voxels that are not stored in the box {box} of the volume",
                    expected="a complete image: the region is too large to ask for every chunk beforehand",
                    remedy="build smaller regions (region_nm): chunks that are missing there are ignored",
                )
            gray[absent] = 0
        if self._same:
            return gray
        values = gray.astype(np.float32)
        for axis, positions in enumerate(lookup):
            values = _interpolate(values, positions, axis)
        return np.rint(values).astype(np.uint8)

    def absent(self, box: Box) -> npt.NDArray[np.bool_]:
        """Mark the voxels whose chunk is not stored; uses what ``Layer.check`` found and reads nothing."""
        mask = np.zeros([part.stop - part.start for part in box], bool)
        if not self._layer.missing:
            return mask
        chunks = []
        for axis, part, edge, own in zip(
            self._grid.axes, box, self._layer.chunk_shape, self._layer.grid.axes, strict=True
        ):
            nearest = own.nearest(axis.centres_nm(part)).clip(0, own.size - 1)
            chunks.append((own.size - 1 - nearest if own.flipped else nearest) // edge)
        for number in self._layer.missing:
            mask[np.ix_(*(chunk == n for chunk, n in zip(chunks, number, strict=True)))] = True
        return mask

    def _positions(self, box: Box) -> list[tuple[slice, npt.NDArray[np.float64]]]:
        """For each axis: the stored voxels that are needed, and where the output voxels are among them."""
        found = []
        for axis, part, own in zip(self._grid.axes, box, self._layer.grid.axes, strict=True):
            fraction = own.fraction(axis.centres_nm(part)).clip(0, own.size - 1)
            low, high = int(np.floor(fraction[0])), int(np.ceil(fraction[-1])) + 1
            found.append((slice(low, high), fraction - low))
        return found


def _is_part(part: Axis, whole: Axis) -> bool:
    """True if the voxels of ``part`` are voxels of ``whole``."""
    first = float(whole.fraction(np.array([part.first_nm]))[0])
    return part.step_nm == whole.step_nm and first.is_integer()


def _interpolate(
    values: npt.NDArray[np.float32], positions: npt.NDArray[np.float64], axis: int
) -> npt.NDArray[np.float32]:
    below = np.minimum(np.floor(positions).astype(np.intp), max(values.shape[axis] - 2, 0))
    above = np.minimum(below + 1, values.shape[axis] - 1)
    shape = [1, 1, 1]
    shape[axis] = -1
    share = (positions - below).astype(np.float32).reshape(shape)
    return np.asarray(values.take(below, axis) * (1 - share) + values.take(above, axis) * share)
