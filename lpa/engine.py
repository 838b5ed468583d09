"""The fast labeller: slabs of planes in parallel threads, joined at their borders.

The kernels are in ``lpa/runs.py``, where the idea is drawn, and ``lpa/components.py``. Steps, each one call per slab::

    count     runs of each slab, so that all runs of the volume can be numbered in raster order
    link      contacts within the slab: union-find over runs
    stitch    contacts between the last plane of a slab and the first of the next (the only step that is not parallel)
    settle    components of each slab; those that began in an earlier slab point at their root there
    number    component numbers instead of parents, and the names of components
    write     labels, row by row

Memory besides the output: 4 bytes a run, 4 (or 8) a component, 8 a row, two planes of 1.5 bytes a voxel per thread.
The result does not depend on the number of threads: roots are minima, whatever the order of unions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from lpa import components, runs

Part = TypeVar("Part")


class Contacts(NamedTuple):
    """Which classes have contacts across edges and corners: all of them, or those listed (each 64 times)."""

    all_edges: np.uint64
    all_corners: np.uint64
    edge_classes: npt.NDArray[Any]
    corner_classes: npt.NDArray[Any]


def contacts(connectivity_of: Mapping[int, int], dtype: np.dtype[Any]) -> Contacts:
    """Translate ``{class: connectivity}``; if all classes have one connectivity, it holds for unlisted ones too."""
    uniform = len(set(connectivity_of.values())) == 1

    def reaching(connectivity: int) -> tuple[np.uint64, npt.NDArray[Any]]:
        values = [value for value, other in connectivity_of.items() if other >= connectivity]
        if uniform:
            return runs.ALL if values else runs.NONE, np.zeros(0, dtype)
        return runs.NONE, np.repeat(np.array(values, dtype), 64)

    (all_edges, edge_classes), (all_corners, corner_classes) = reaching(18), reaching(26)
    return Contacts(all_edges, all_corners, edge_classes, corner_classes)


def label_into(
    out: npt.NDArray[Any], volume: npt.NDArray[Any], connectivity_of: Mapping[int, int], *, compact: bool, threads: int
) -> None:
    """Write the labels of ``volume`` to ``out``.

    Args:
        out: uint32 or uint64, C-contiguous, of the size of ``volume``; what it holds is overwritten.
        volume: ``(z, y, x)`` uint8 or uint32, C-contiguous, not empty.
        connectivity_of: connectivity (6, 18, 26) of each class.
        compact: 1..N instead of the minimum linear index + 1.
        threads: number of slabs and threads, at most one per plane.
    """
    # a single plane is labelled as a stack of one-row planes, so that threads can share it
    depth, height, width = volume.shape if volume.shape[0] > 1 else (volume.shape[1], 1, volume.shape[2])
    shape = (depth, height, width)
    flat, labels = volume.reshape(-1), out.reshape(-1)
    touching = contacts(connectivity_of, flat.dtype)
    background = np.zeros(64, flat.dtype)
    slabs = min(threads, depth)
    planes = [depth * k // slabs for k in range(slabs + 1)]
    rows = [(planes[k] * height, planes[k + 1] * height) for k in range(slabs)]

    with ThreadPoolExecutor(slabs) as pool:

        def each(step: Callable[[int], Part]) -> list[Part]:
            return list((pool.map if slabs > 1 else map)(step, range(slabs)))

        first_run = running_sum(each(lambda k: runs.count_runs(flat, width, *rows[k], background)))
        parent = np.empty(first_run[-1], np.uint32 if first_run[-1] < 2**32 else np.uint64)
        row_first = np.empty(depth * height + 1, np.int64)
        row_first[-1] = first_run[-1]

        def link(first_plane: int, last_plane: int, run: int, stitch: bool) -> None:
            runs.link_planes(flat, shape, first_plane, last_plane, run, parent, row_first, stitch, *touching)

        each(lambda k: link(planes[k], planes[k + 1], first_run[k], False))
        for border in planes[1:-1]:
            link(border - 1, border + 1, 0, True)

        counts = each(lambda k: components.settle(parent, first_run[k], first_run[k + 1]))
        first_component = running_sum(count for count, _ in counts)
        first_name = running_sum(count - guests for count, guests in counts)
        names = np.empty(first_component[-1], out.dtype)
        guests = [np.empty((count, 2), np.int64) for _, count in counts]

        def number(k: int) -> None:
            name = first_name[k] + 1 if compact else 0
            components.number_components(
                flat, width, *rows[k], row_first, parent, first_component[k], name, names, guests[k]
            )

        each(number)
        for slab_guests in guests:
            names[slab_guests[:, 0]] = names[parent[slab_guests[:, 1]]]
        each(lambda k: components.write_labels(flat, width, *rows[k], row_first, parent, names, labels))


def running_sum(counts: Iterable[int]) -> list[int]:
    """Return where each part begins, and the total."""
    return [0, *np.cumsum(np.fromiter(counts, np.int64)).tolist()]
