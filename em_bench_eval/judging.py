"""Which instances count, and who is matched to whom: the decisions that every instance metric rests on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .matching import best_matching, iou
from .overlap import OverlapTable
from .settings import Settings

Ids = npt.NDArray[np.uint64]
_NONE = np.zeros(0, np.uint64)


@dataclass(frozen=True)
class Judged:
    """The overlap table of the judged instances of one organelle in one item, and the matching.

    ``pair_iou`` is parallel to the pairs of ``table``; ``matched`` are the positions of the pairs that the maximum-IoU
    matching chose; ``hits`` marks the pairs with IoU above the threshold of the settings.
    """

    table: OverlapTable
    pair_iou: npt.NDArray[np.float64]
    matched: npt.NDArray[np.int64]
    hits: npt.NDArray[np.bool_]

    def matched_ids(self) -> npt.NDArray[np.uint64]:
        """Return rows of ``(reference id, predicted id)``."""
        table = self.table
        return np.stack(
            [
                table.reference_ids[table.pair_reference[self.matched]],
                table.prediction_ids[table.pair_prediction[self.matched]],
            ],
            axis=1,
        )

    def unmatched_ids(self) -> tuple[Ids, Ids]:
        """Return the ids of the reference and of the predicted instances that have no match."""
        table, ids = self.table, self.matched_ids()
        return (
            np.setdiff1d(table.reference_ids, ids[:, 0], assume_unique=True),
            np.setdiff1d(table.prediction_ids, ids[:, 1], assume_unique=True),
        )


def judge(table: OverlapTable, voxel_nm: float, settings: Settings, on_border: Ids = _NONE) -> Judged:
    """Drop what is not judged, then match.

    ``voxel_nm`` is the area or volume of a voxel in nm^2 or nm^3; ``on_border`` are the ids of the reference instances
    that touch the border of the item (needed for ``border="ignore"`` only). Not judged are instances with more than
    half of their voxels in the ignored region, those below the minimum size, and, if so set, those cut by the border.
    """
    keep_reference = 2 * table.reference_ignored <= table.reference_voxels + table.reference_ignored
    if settings.border == "ignore":
        keep_reference &= ~np.isin(table.reference_ids, on_border)
    # What is visible of a reference instance that is not judged is ignored too, so that a model which segments that
    # part is not charged with a false positive.
    hidden = np.zeros(len(table.prediction_ids), np.int64)
    unjudged = ~keep_reference[table.pair_reference]
    np.add.at(hidden, table.pair_prediction[unjudged], table.pair_voxels[unjudged])
    table = replace(
        table,
        prediction_voxels=table.prediction_voxels - hidden,
        prediction_ignored=table.prediction_ignored + hidden,
    )
    keep_prediction = 2 * table.prediction_ignored <= table.prediction_voxels + table.prediction_ignored
    keep_reference &= table.reference_voxels * voxel_nm >= settings.min_size_nm
    keep_prediction &= table.prediction_voxels * voxel_nm >= settings.min_size_nm
    judged = table.select(keep_reference, keep_prediction)
    pair_iou = iou(
        judged.pair_voxels,
        judged.reference_voxels[judged.pair_reference],
        judged.prediction_voxels[judged.pair_prediction],
    )
    matched = best_matching(judged.pair_reference, judged.pair_prediction, pair_iou, judged.pair_voxels)
    return Judged(judged, pair_iou, matched, pair_iou > settings.iou_threshold)


def border_ids(
    labels: npt.NDArray[Any], start: tuple[int, ...] | None = None, shape: tuple[int, ...] | None = None
) -> Ids:
    """Return the ids on the border of an item.

    ``labels`` is the item, or a block of it that begins at ``start`` in an item of ``shape``; faces of the block inside
    the item are no border.
    """
    start = (0,) * labels.ndim if start is None else start
    shape = labels.shape if shape is None else shape
    faces = []
    for axis in range(labels.ndim):
        if start[axis] == 0:
            faces.append(labels.take([0], axis) if labels.shape[axis] else labels)
        if start[axis] + labels.shape[axis] == shape[axis]:
            faces.append(labels.take([-1], axis) if labels.shape[axis] else labels)
    ids = np.unique(np.concatenate([face.reshape(-1) for face in faces])) if faces else _NONE
    return np.asarray(ids[ids > 0], np.uint64)
