"""One block of a larger volume: its own components, their faces, and its labels once every component has a name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from em_bench_eval.schema import ORGANELLES, Organelle
from lpa import components, engine, paint
from lpa.bits import kernel
from lpa.connectivity import DEFAULT_CONNECTIVITY, per_class
from lpa.label import as_classes
from lpa.semantic import as_semantic

Connectivity = int | Mapping[str, int] | str  # "default": per organelle for the values 1 to 5, 26 for any other

# the six faces of a block, named by axis and side
FACES = ("z0", "z1", "y0", "y1", "x0", "x1")


class Block:
    """The components of one block, numbered 1..N in the order of their first voxels.

    Attributes:
        first: ``(N,)`` int64, linear index in the block of the first voxel of each component, ascending.
        classes: ``(N,)`` the semantic value of each, in the dtype of the volume (booleans: True).
    """

    def __init__(self, semantic: npt.NDArray[Any], connectivity: Connectivity):
        """Label ``semantic``, ``(z, y, x)`` integers or booleans; raises ``InputError`` as ``lpa.label`` does."""
        volume = as_semantic(semantic)
        depth, height, width = volume.shape
        self._shape = (depth, height, width)
        flat = as_classes(volume).reshape(-1)
        touching = engine.contacts(_neighbours_of_codes(volume, connectivity), flat.dtype)
        rows = depth * height
        # the kernels of lpa/engine.py on one slab; of the arrays, only what the runs need is ever touched
        dtype = np.uint32 if flat.size < 2**32 else np.uint64
        parents, names = np.empty(flat.size, dtype), np.empty(flat.size, dtype)
        row_first = np.empty(rows + 1, np.uint64)
        count = int(
            components.link_planes(flat, self._shape, 0, depth, 0, flat.size, parents, names, row_first, touching)
        )
        first = names[:count][parents[:count] == np.arange(count)].astype(np.int64)
        components.number_roots(parents, names, 0, count, 0)
        components.resolve(parents, names, 0, count)
        self._flat, self._row_first, self._component = flat, row_first, names[:count].copy()
        self.first = first - 1
        self.classes = volume.reshape(-1)[self.first]

    def faces(self) -> dict[str, npt.NDArray[np.uint32]]:
        """Return the six border planes as component numbers, 0 = background; axes in the order ``z, y, x``."""
        depth, height, width = self._shape
        shapes = ((height, width), (height, width), (depth, width), (depth, width), (depth, height), (depth, height))
        planes = [np.zeros(shape, np.uint32) for shape in shapes]
        _cut_faces(self._flat, self._shape, self._row_first.view(np.int64), self._component, *planes)
        return dict(zip(FACES, planes, strict=True))

    def write(self, names: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
        """Write the label volume: ``names[k]`` where component ``k + 1`` is, 0 elsewhere."""
        depth, height, width = self._shape
        names_of_runs = np.asarray(names, out.dtype)[self._component]
        labels = out.reshape(-1)
        paint.write_labels(
            self._flat, width, 0, depth * height, self._row_first, names_of_runs, labels, (0, labels.size), (0, 0)
        )


def connectivity_of(connectivity: Connectivity, values: list[int]) -> dict[int, int]:
    """Resolve a setting to ``{semantic value: connectivity}``; ``"default"`` gives other values than organelles 26."""
    if connectivity == "default":
        named = {Organelle(name).label_id: neighbours for name, neighbours in DEFAULT_CONNECTIVITY.items()}
        return {value: named.get(value, 26) for value in values}
    assert not isinstance(connectivity, str)
    return per_class(connectivity, values)


def _neighbours_of_codes(volume: npt.NDArray[Any], connectivity: Connectivity) -> dict[int, int]:
    """Resolve a setting for the values of ``as_classes(volume)``."""
    if isinstance(connectivity, int):
        return per_class(connectivity, [1])
    largest = int(volume.max())
    if largest <= len(ORGANELLES):
        return connectivity_of(connectivity, list(range(1, len(ORGANELLES) + 1)))
    values = [int(value) for value in np.unique(volume) if value]
    neighbours = connectivity_of(connectivity, values).values()
    codes = range(1, len(values) + 1) if largest >= 2**32 else values  # as_classes replaces values beyond uint32
    return dict(zip(codes, neighbours, strict=True))


@kernel
def _cut_row(
    volume: npt.NDArray[Any], begin: int, width: int, run: int, component: npt.NDArray[Any], out: npt.NDArray[Any]
) -> None:
    """Write the component numbers + 1 of one row, whose first run is ``run``."""
    run -= 1
    before = volume.dtype.type(0)
    for x in range(width):
        value = volume[begin + x]
        if value != 0:
            if value != before:
                run += 1
            out[x] = component[run] + 1
        before = value


@kernel
def _cut_faces(
    volume: npt.NDArray[Any],
    shape: tuple[int, int, int],
    row_first: npt.NDArray[np.int64],
    component: npt.NDArray[Any],
    z0: npt.NDArray[Any],
    z1: npt.NDArray[Any],
    y0: npt.NDArray[Any],
    y1: npt.NDArray[Any],
    x0: npt.NDArray[Any],
    x1: npt.NDArray[Any],
) -> None:
    """Copy the border rows and the ends of all rows, as component numbers from 1."""
    depth, height, width = shape
    for z in range(depth):
        for y in range(height):
            row = z * height + y
            run = row_first[row]
            begin = row * width
            if z == 0:
                _cut_row(volume, begin, width, run, component, z0[y])
            if z == depth - 1:
                _cut_row(volume, begin, width, run, component, z1[y])
            if y == 0:
                _cut_row(volume, begin, width, run, component, y0[z])
            if y == height - 1:
                _cut_row(volume, begin, width, run, component, y1[z])
            if volume[begin] != 0:
                x0[z, y] = component[run] + 1
            if volume[begin + width - 1] != 0:
                x1[z, y] = component[row_first[row + 1] - 1] + 1
