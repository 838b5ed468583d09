"""Exact 3D label propagation: semantic volume in, instance volume out (paper, section 3.2).

The paper starts every foreground voxel with its linear index + 1 and lets each take the minimum of its same-class
neighbours until nothing changes. The fixed point is known without iterating: every voxel ends with the minimum over
its same-class connected component. So components are found by union-find over runs of voxels (``lpa/runs.py``) and
named by their first voxel; ``lpa.propagate`` is the iteration as written, and the tests hold the two equal.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from em_bench_eval.errors import InputError, unknown_name
from em_bench_eval.schema import ORGANELLES
from lpa.connectivity import per_class
from lpa.engine import label_into
from lpa.semantic import as_semantic

Relabel = Literal["min_index", "compact"]

MAX_THREADS = 16  # the work is bound by memory bandwidth long before
VOXELS_PER_THREAD = 2**20  # below this, starting a thread costs more than it gains


def label(
    semantic: npt.ArrayLike,
    connectivity: int | Mapping[str, int] = 26,
    relabel: Relabel = "min_index",
    threads: int | None = None,
    out: npt.NDArray[Any] | None = None,
) -> npt.NDArray[Any]:
    """Label the same-class connected components of ``semantic``.

    The first call compiles (several seconds, cached on disk); it releases the GIL while it works.

    Args:
        semantic: ``(z, y, x)`` or ``(y, x)`` integers or booleans, 0 = background. Touching voxels of different classes
            never share a label. Class values up to 255 are compared as bytes, larger ones as uint32 (slower; a
            temporary copy unless the input is uint32 itself).
        connectivity: 6, 18 or 26 neighbours, for all classes or per organelle (``{"mito": 6, "er": 26}``).
        relabel: ``"min_index"`` names a component by the linear index + 1 of its first voxel (the paper's
            representative label): uint32, or uint64 where the volume needs it. ``"compact"`` numbers components 1..N
            in that order, as uint32.
        threads: threads to use; default: the CPUs of this process, at most 16. The result is the same for any number.
        out: array to write to, of the shape of ``semantic``, C-contiguous, uint32 (uint64 where the volume needs it,
            and where the caller wants it).

    Returns:
        ``out``, or a new C-contiguous array of the shape of ``semantic``; 0 where that is 0.

    Raises:
        InputError: floats, negative classes, another number of axes, an unknown connectivity, an unusable ``out``.
    """
    if relabel not in ("min_index", "compact"):
        raise unknown_name("relabel", str(relabel), ("min_index", "compact"))
    array = as_semantic(semantic)
    volume = as_classes(array if array.ndim == 3 else array[np.newaxis])
    connectivity_of = _connectivity_of(volume, connectivity)
    threads = _usable_threads(volume.size) if threads is None else _checked_threads(threads)
    dtype = np.dtype(np.uint64 if relabel == "min_index" and volume.size >= 2**32 else np.uint32)
    labels = np.zeros(array.shape, dtype) if out is None else _checked_out(out, array, dtype)
    if volume.size:
        compact = relabel == "compact"
        label_into(labels, volume, connectivity_of, compact=compact, threads=threads, blank=out is None)
    return labels


def as_classes(volume: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the volume as uint8 where all values fit, else as uint32; a view where possible.

    Only equality of values matters, so values beyond uint32 are replaced by their rank.
    """
    if volume.dtype.itemsize == 1:
        return volume.view(np.uint8)
    largest = int(volume.max()) if volume.size else 0
    if largest <= 255:
        return volume.astype(np.uint8)
    if largest >= 2**32:
        values, ranks = np.unique(volume, return_inverse=True)
        volume = ranks.reshape(volume.shape) + int(values[0] != 0)
    return volume.astype(np.uint32, copy=False)


def _connectivity_of(volume: npt.NDArray[Any], connectivity: int | Mapping[str, int]) -> dict[int, int]:
    if not isinstance(connectivity, Mapping):
        return per_class(connectivity, [1])
    if volume.size and int(volume.max()) > len(ORGANELLES):  # an error: name the values
        return per_class(connectivity, [int(value) for value in np.unique(volume) if value])
    return per_class(connectivity, range(1, len(ORGANELLES) + 1))


def _usable_threads(voxels: int) -> int:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cpus, MAX_THREADS, voxels // VOXELS_PER_THREAD))


def _checked_threads(threads: int) -> int:
    if threads < 1:
        raise InputError("cannot label without a thread", found=f"threads={threads}", expected="1 or more, or None")
    return threads


def _checked_out(out: npt.NDArray[Any], array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    usable = isinstance(out, np.ndarray) and out.shape == array.shape and out.dtype in (dtype, np.dtype(np.uint64))
    if not usable or not out.flags.c_contiguous or not out.flags.writeable or np.may_share_memory(out, array):
        found = f"{out.dtype} {out.shape}, flags\n{out.flags}" if isinstance(out, np.ndarray) else type(out).__name__
        raise InputError(
            "labels cannot be written to out",
            found=found,
            expected=f"a writeable C-contiguous {dtype} array of shape {array.shape} apart from the semantic volume",
            remedy="let label allocate it once, and hand that array back in",
        )
    return out
