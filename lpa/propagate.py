"""The paper's label propagation, as written (section 3.2): the readable reference for ``lpa.label``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lpa.connectivity import offsets, per_class
from lpa.semantic import as_semantic


def propagate(semantic: npt.ArrayLike, connectivity: int | Mapping[str, int] = 26) -> npt.NDArray[np.uint64]:
    """Propagate minimum labels until nothing changes.

    ``L0(p)`` is the linear index of ``p`` + 1 where ``semantic(p) > 0`` and 0 elsewhere; each iteration replaces every
    label by the minimum of itself and its same-class neighbours. Takes as many iterations as the longest geodesic path
    from the first voxel of a component: for reference and tests, not for real volumes.

    Args:
        semantic: ``(z, y, x)`` or ``(y, x)`` integers or booleans, 0 = background.
        connectivity: 6, 18 or 26, for all classes or per organelle.

    Returns:
        uint64 labels of the same shape.
    """
    array = as_semantic(semantic)
    volume = array if array.ndim == 3 else array[np.newaxis]
    labels = np.where(volume > 0, np.arange(1, volume.size + 1, dtype=np.uint64).reshape(volume.shape), 0)
    neighbours_of = per_class(connectivity, [int(value) for value in np.unique(volume) if value])
    while True:
        updated = labels.copy()
        for value, neighbours in neighbours_of.items():
            for offset in offsets(neighbours):
                here, there = _overlap(volume.shape, offset)
                same = (volume[here] == value) & (volume[there] == value)
                updated[here] = np.where(same, np.minimum(updated[here], labels[there]), updated[here])
        if np.array_equal(updated, labels):
            return labels.astype(np.uint64).reshape(array.shape)
        labels = updated


def _overlap(shape: tuple[int, ...], offset: tuple[int, ...]) -> tuple[Any, Any]:
    """Slices of the voxels that have a neighbour at ``offset`` inside the volume, and of those neighbours."""
    here = tuple(slice(max(0, -step), size - max(0, step)) for size, step in zip(shape, offset, strict=True))
    there = tuple(slice(max(0, step), size - max(0, -step)) for size, step in zip(shape, offset, strict=True))
    return here, there
