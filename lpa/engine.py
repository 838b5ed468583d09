"""The fast labeller: slabs of planes in parallel threads, joined at their borders.

The kernels are in ``lpa/components.py`` and ``lpa/paint.py``; the idea is drawn in ``lpa/runs.py``. Steps::

    link      runs and contacts within each slab: union-find over runs                slabs in parallel
    stitch    contacts between the last plane of a slab and the first of the next     border after border
    write     names of components, and labels row by row                              slabs in parallel

The label volume holds the two arrays of the union-find until its voxels are written: ``names`` at the beginning of each
slab, ``parents`` half a slab further::

    labels   | names 0  -->       | parents 0  -->     | names 1  -->       | parents 1  -->     |
               slab 0                                    slab 1

Half as many runs as voxels are more than any segmentation has; in dense noise, ``parents`` gets memory of its own.
Memory besides the output: 8 bytes a row, and for each thread two planes of 1.5 bytes a voxel.
The result does not depend on the number of threads: roots are minima, whatever the order of unions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from lpa import components, paint, runs

Part = TypeVar("Part")

NOWHERE = (0, 0)


def contacts(connectivity_of: Mapping[int, int], dtype: np.dtype[Any]) -> runs.Contacts:
    """Translate ``{class: connectivity}``; if all classes have one connectivity, it holds for unlisted ones too."""
    uniform = len(set(connectivity_of.values())) == 1

    def reaching(connectivity: int) -> tuple[np.uint64, npt.NDArray[Any]]:
        values = [value for value, other in connectivity_of.items() if other >= connectivity]
        if uniform:
            return runs.ALL if values else runs.NONE, np.zeros(0, dtype)
        return runs.NONE, np.repeat(np.array(values, dtype), 64)

    (all_edges, edge_classes), (all_corners, corner_classes) = reaching(18), reaching(26)
    return runs.Contacts(all_edges, all_corners, edge_classes, corner_classes)


def label_into(
    out: npt.NDArray[Any],
    volume: npt.NDArray[Any],
    connectivity_of: Mapping[int, int],
    *,
    compact: bool,
    threads: int,
    blank: bool,
) -> None:
    """Write the labels of ``volume`` to ``out``.

    Args:
        out: uint32 or uint64, C-contiguous, of the size of ``volume``; what it holds is overwritten.
        volume: ``(z, y, x)`` uint8 or uint32, C-contiguous, not empty.
        connectivity_of: connectivity (6, 18, 26) of each class.
        compact: 1..N instead of the minimum linear index + 1.
        threads: number of slabs and threads, at most one per plane.
        blank: ``out`` is new and holds zeros: background need not be written.
    """
    # a single plane is labelled as a stack of one-row planes, so that threads can share it
    depth, height, width = volume.shape if volume.shape[0] > 1 else (volume.shape[1], 1, volume.shape[2])
    shape = (depth, height, width)
    flat, labels = volume.reshape(-1), out.reshape(-1)
    touching = contacts(connectivity_of, flat.dtype)
    slabs = min(threads, depth)
    planes = [depth * k // slabs for k in range(slabs + 1)]
    first = [z * height * width for z in planes]  # of each slab: its first voxel, and so its first run's number
    row_first = [np.empty((planes[k + 1] - planes[k]) * height + 1, np.uint64) for k in range(slabs)]

    with ThreadPoolExecutor(max(1, slabs - 1)) as pool:

        def each(step: Callable[[int], Part]) -> list[Part]:
            others = [pool.submit(step, k) for k in range(1, slabs)]
            return [step(0), *(other.result() for other in others)]

        def link(parents: npt.NDArray[Any], capacity: int) -> list[int]:
            def link_slab(k: int) -> int:
                end = min(first[k] + capacity, first[k + 1])
                return int(
                    components.link_planes(
                        flat, shape, planes[k], planes[k + 1], first[k], end, parents, labels, row_first[k], touching
                    )
                )

            return each(link_slab)

        half = min(first[k + 1] - first[k] for k in range(slabs)) // 2
        parents = labels[half:]
        last = link(parents, half)
        if -1 in last:
            blank, half, parents = False, 0, np.empty(flat.size, labels.dtype)
            last = link(parents, flat.size)

        stitched = [
            components.stitch(flat, shape, planes[k], parents, row_first[k - 1], row_first[k], touching)
            for k in range(1, slabs)
        ]
        attached = np.concatenate([parents[:0], *stitched])
        components.settle(parents, attached)
        if compact:
            name = 1
            for k in range(slabs):
                name = int(components.number_roots(parents, labels, first[k], last[k], name))
        labels[attached] = labels[parents[attached]]
        parents[attached] = attached

        def write(k: int) -> None:
            components.resolve(parents, labels, first[k], last[k])
            dirty, dirty_too = (first[k], last[k]), (first[k] + half, last[k] + half)
            paint.write_labels(
                flat,
                width,
                planes[k] * height,
                planes[k + 1] * height,
                row_first[k],
                labels,
                labels,
                dirty if blank else (0, flat.size),
                dirty_too if blank else NOWHERE,
            )

        each(write)
