"""The planes of an exported case, one after the other: image, labels, instances; aligned where that is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from baselines.external.nnunet_layout import IGNORE, Case, Layout
from baselines.external.plane_writers import Planes
from baselines.external.row_boxes import SplitRows
from em_bench_eval.align import align_image, align_instances, align_mask
from em_bench_eval.opened import Opened
from em_bench_eval.rows import decode_row
from em_bench_eval.schema import ORGANELLES, Organelle
from em_bench_eval.volume_io import open_volume

READ_VOXELS = 1 << 26  # of a volume at a time


class Source:
    """The planes of a case, aligned: from the rows of the dataset in 2D, from its volumes in 3D."""

    def __init__(self, dataset: str, splits: Mapping[str, SplitRows], layout: Layout) -> None:
        self._dataset, self._splits, self._layout = dataset, splits, layout
        self._index = {row.record_id: row.index for split in splits.values() for row in split.boxes}
        self._row = lru_cache(maxsize=1)(self._decoded)

    def image(self, case: Case) -> Planes:
        """Yield the image, uint8."""
        for plane in self._planes(case, ""):
            yield plane if self._layout.pixel_nm is None else _gray(align_image(plane, *self._sizes(case)))

    def labels(self, case: Case) -> Planes:
        """Yield the exported label numbers, uint8."""
        table = label_table(self._layout, case)
        hidden = self._layout.labels.get(IGNORE)
        masks = self._planes(case, "ignore") if case.has_ignore else None
        for classes in self._planes(case, "semantic"):
            plane = table[classes]
            if masks is not None:
                plane[next(masks) != 0] = hidden
            yield plane if self._layout.pixel_nm is None else align_mask(plane, *self._sizes(case))

    def instances(self, case: Case, organelle: str) -> Planes:
        """Yield the reference instances of one organelle; outside 2D with the ids of the volume."""
        number = Organelle(organelle).label_id
        for ids, classes in zip(self._planes(case, "instances"), self._planes(case, "semantic"), strict=True):
            plane = np.where(classes == number, ids, ids.dtype.type(0))
            yield plane if self._layout.pixel_nm is None else align_instances(plane, *self._sizes(case)).ids

    def id_dtype(self, case: Case) -> Any:
        """Return the type that holds the ids."""
        if self._layout.dimension == "2d":
            return np.uint16
        return max(np.dtype(np.uint16), self._volume(case, "instances").dtype, key=lambda dtype: dtype.itemsize)

    def _sizes(self, case: Case) -> tuple[tuple[float, float], float]:
        assert self._layout.pixel_nm is not None
        return (case.spacing_nm[1], case.spacing_nm[2]), self._layout.pixel_nm

    def _planes(self, case: Case, name: str) -> Iterator[npt.NDArray[Any]]:
        if self._layout.dimension == "2d":
            yield self._row(case.fold, case.records[0])[name]
            return
        opened = self._volume(case, name)
        (z0, y0, x0), (z1, y1, x1) = case.box.start, case.box.stop
        chunk = max(1, opened.chunk_shape[0])
        step = max(1, READ_VOXELS // ((y1 - y0) * (x1 - x0)) // chunk * chunk)
        for z in range(z0, z1, step):
            yield from opened[z : min(z + step, z1), y0:y1, x0:x1]

    def _volume(self, case: Case, name: str) -> Opened:
        path = Path(self._dataset, "volumes", f"{case.box.volume_id}.zarr")
        return open_volume(path / "labels" / name if name else path)

    def _decoded(self, fold: str, record: str) -> dict[str, npt.NDArray[Any]]:
        row = decode_row(self._splits[fold].rows[self._index[record]])
        class_of = np.zeros(int(row.instances.max(initial=0)) + 1, np.uint8)
        for id_, organelle in row.organelle_of.items():
            class_of[id_] = organelle.label_id
        semantic = class_of[row.instances]
        return {"": row.image, "instances": row.instances, "semantic": semantic, "ignore": row.ignore}


def label_table(layout: Layout, case: Case) -> npt.NDArray[np.uint8]:
    """Return the exported number of background (0) and of each ``Organelle.label_id`` in a case.

    What is known to be another organelle is no exported one, and so background. Background itself is known only where
    every exported organelle is annotated; elsewhere it is ignored.
    """
    table = np.zeros(len(ORGANELLES) + 1, np.uint8)
    hidden = layout.labels.get(IGNORE, 0)
    if not set(layout.organelles) <= set(case.annotated):
        table[0] = hidden
    for organelle in layout.organelles:
        table[Organelle(organelle).label_id] = layout.labels[organelle] if organelle in case.annotated else hidden
    return table


def _gray(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
