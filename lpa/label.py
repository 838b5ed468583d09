"""Exact 3D label propagation: semantic volume in, instance volume out (paper, section 3.2).

The paper starts every foreground voxel with its linear index + 1 and lets each take the minimum of its same-class
neighbours until nothing changes. The fixed point is known without iterating: every voxel ends with the minimum over
its same-class connected component. So components are found by union-find (cc3d) and named by their first voxel;
``lpa.propagate`` is the iteration as written, and the tests hold the two equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import cc3d
import numpy as np
import numpy.typing as npt

from em_bench_eval.errors import unknown_name
from lpa.connectivity import per_class
from lpa.semantic import as_semantic

Relabel = Literal["min_index", "compact"]


def label(
    semantic: npt.ArrayLike,
    connectivity: int | Mapping[str, int] = 26,
    relabel: Relabel = "min_index",
) -> npt.NDArray[Any]:
    """Label the same-class connected components of ``semantic``.

    Args:
        semantic: ``(z, y, x)`` or ``(y, x)`` integers or booleans, 0 = background. Touching voxels of different classes
            never share a label.
        connectivity: 6, 18 or 26 neighbours, for all classes or per organelle (``{"mito": 6, "er": 26}``).
        relabel: ``"min_index"`` names a component by the linear index + 1 of its first voxel (the paper's
            representative label): uint32, or uint64 where the volume needs it. ``"compact"`` numbers components 1..N
            in that order, as uint32.

    Returns:
        A C-contiguous array of the shape of ``semantic``, 0 where it is 0.

    Raises:
        InputError: floats, negative classes, another number of axes, an unknown connectivity.
    """
    if relabel not in ("min_index", "compact"):
        raise unknown_name("relabel", str(relabel), ("min_index", "compact"))
    array = as_semantic(semantic)
    volume = array.reshape((-1, *array.shape[-2:]))
    components, first = _components(volume, connectivity)
    if relabel == "min_index":
        dtype = np.uint32 if volume.size < 2**32 else np.uint64
        names = np.concatenate([[0], first + 1]).astype(dtype)
    else:
        names = np.zeros(len(first) + 1, np.uint32)
        names[1 + np.argsort(first)] = np.arange(1, len(first) + 1, dtype=np.uint32)
    return names[components].reshape(array.shape)


def _components(
    volume: npt.NDArray[Any], connectivity: int | Mapping[str, int]
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """Return components 1..N in any order, and the linear index of the first voxel of each."""
    if not volume.size:
        return np.zeros(volume.shape, np.uint32), np.zeros(0, np.int64)
    if isinstance(connectivity, Mapping):
        neighbours_of = per_class(connectivity, [int(value) for value in np.unique(volume) if value])
    else:
        neighbours_of = per_class(connectivity, [1])
    components = np.zeros(volume.shape, np.uint32)
    count = 0
    for neighbours in sorted(set(neighbours_of.values())):
        part = volume
        if len(set(neighbours_of.values())) > 1:
            keep = [value for value, other in neighbours_of.items() if other == neighbours]
            part = np.where(np.isin(volume, keep), volume, np.zeros_like(volume))
        found, number = cc3d.connected_components(part, connectivity=neighbours, return_N=True, out_dtype=np.uint32)
        found = found.reshape(volume.shape)
        components += np.where(found, found + np.uint32(count), np.uint32(0))
        count += int(number)
    return components, _first_voxels(components, count)


def _first_voxels(components: npt.NDArray[np.uint32], count: int) -> npt.NDArray[np.int64]:
    """Linear index of the first voxel of each component; only voxels that differ from their left one can be first."""
    flat = components.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))[::-1]
    first = np.zeros(count + 1, np.int64)
    first[flat[starts]] = starts  # the last assignment wins, and starts run backwards
    return first[1:]
