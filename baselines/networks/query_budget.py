"""How many queries a mask transformer needs: instances per training crop, counted in the data before training.

A query finds at most one instance; what a crop holds beyond the number of queries is never learnt. Half of the queries
for the 99th percentile leaves room for the crops above it and for queries that are slow to specialise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from em_bench_eval.schema import TARGET_PIXEL_SIZE_NM, Organelle

STEP = 50  # advice is a multiple of this


@dataclass(frozen=True)
class QueryBudget:
    """Instances per crop; of all organelles together, and the mean of each."""

    crops: int  # how many were counted
    median: float
    p99: float
    maximum: int
    mean_of: Mapping[Organelle, float]

    @property
    def num_queries(self) -> int:
        """Advice: twice the 99th percentile, rounded up to a multiple of 50."""
        return max(STEP, STEP * int(np.ceil(2 * self.p99 / STEP)))

    def warning(self, num_queries: int) -> str | None:
        """What to tell whoever trains with that many queries; ``None`` if they suffice."""
        if num_queries >= self.maximum and 2 * self.p99 <= num_queries:
            return None
        lost = f"crops hold up to {self.maximum} instances (99 % of them at most {self.p99:g})"
        verb = "cannot all be found" if self.maximum > num_queries else "leave little room"
        return f"{lost}: with {num_queries} queries they {verb}; advised: {self.num_queries}"

    def __str__(self) -> str:
        means = ", ".join(f"{organelle} {mean:.1f}" for organelle, mean in self.mean_of.items())
        return (
            f"instances per crop: median {self.median:g}, 99th percentile {self.p99:g}, maximum {self.maximum} "
            f"(mean {means or 'none'}; {self.crops} crops); advised queries: {self.num_queries}"
        )


def query_budget(
    rows: Iterable[Mapping[str, Any]], crop: int, pixel_nm: float = TARGET_PIXEL_SIZE_NM, per_row: int = 50
) -> QueryBudget:
    """Count the ids in crops of ``crop`` x ``crop`` pixels of ``pixel_nm``, from bounding boxes alone.

    For targets that are ids of the volume cropped (``target_ids="volume"``). Reads the columns ``objects``,
    ``annotated`` and ``pixel_size_nm``; no image is decoded. Crops are centred on instances, as the sampler's
    foreground crops are: up to ``per_row`` of a row, evenly spaced in the row's list. A box that reaches into a crop
    counts even if its instance does not, so the numbers are upper bounds: tight for compact organelles, and for
    networks, whose few boxes cover the image, too.
    """
    counts = []
    for row in _light(rows, ["objects", "annotated", "pixel_size_nm"]):
        entries = [entry for entry in row["objects"] if entry["organelle"] in row["annotated"]]
        if not entries:
            continue
        boxes = np.array([entry["bbox"] for entry in entries], float)
        organelle = np.array([Organelle(entry["organelle"]).label_id for entry in entries])
        half = crop * pixel_nm / np.array(row["pixel_size_nm"], float) / 2
        for index in _spread(len(entries), per_row):
            centre = (boxes[index, :2] + boxes[index, 2:]) / 2
            inside = (boxes[:, :2] < centre + half).all(1) & (boxes[:, 2:] > centre - half).all(1)
            counts.append(np.bincount(organelle[inside], minlength=len(Organelle) + 1)[1:])
    return _budget(counts)


def piece_budget(
    rows: Sequence[Mapping[str, Any]],
    crop: int,
    pixel_nm: float = TARGET_PIXEL_SIZE_NM,
    per_row: int = 50,
    max_rows: int = 20,
    min_pixels: int = 1,
) -> QueryBudget:
    """Count the 8-connected pieces in crops, from the label images of up to ``max_rows`` rows, evenly spaced.

    For relabelled targets (``target_ids="slice"``): an ER network is one id and hundreds of pieces. Crops are centred
    as in ``query_budget``, moved inside the image where it is large enough; an ignored pixel belongs to no piece.
    Pieces below ``min_pixels`` (aligned pixels, inside the crop) are not counted.
    """
    import cc3d

    from em_bench_eval.align import align_instances, align_mask
    from em_bench_eval.rows import decode_row

    counts = []
    for number in _spread(len(rows), max_rows):
        row = decode_row(rows[number])
        instances = align_instances(row.instances, row.pixel_size_nm, pixel_nm).ids.astype(np.uint32)
        organelle = np.zeros(int(instances.max(initial=0)) + 1, np.int64)
        for id_, name in row.organelle_of.items():
            if id_ < len(organelle) and name in row.annotated:
                organelle[id_] = name.label_id
        instances[(organelle[instances] == 0) | align_mask(row.ignore, row.pixel_size_nm, pixel_nm).astype(bool)] = 0
        boxes = _boxes(instances)
        for index in _spread(len(boxes), per_row):
            cut = instances[_window((boxes[index, :2] + boxes[index, 2:]) / 2, crop, instances.shape)]
            pieces = cc3d.connected_components(cut, connectivity=8)
            found, first, size = np.unique(pieces, return_index=True, return_counts=True)
            kept = (found > 0) & (size >= min_pixels)
            of_piece = organelle[cut.ravel()[first[kept]]]
            counts.append(np.bincount(of_piece, minlength=len(Organelle) + 1)[1:])
    return _budget(counts)


def _light(rows: Any, columns: list[str]) -> Iterable[Mapping[str, Any]]:
    light: Iterable[Mapping[str, Any]] = rows.select_columns(columns) if hasattr(rows, "select_columns") else rows
    return light


def _spread(count: int, most: int) -> list[int]:
    """Up to ``most`` of the numbers 0 to ``count - 1``, evenly spaced."""
    return sorted({int(index) for index in np.linspace(0, count - 1, min(count, most)).round()}) if count else []


def _window(centre: npt.NDArray[np.float64], crop: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    first = [int(np.clip(c - crop / 2, 0, max(0, size - crop))) for c, size in zip(centre, shape, strict=True)]
    return slice(first[0], first[0] + crop), slice(first[1], first[1] + crop)


def _boxes(instances: npt.NDArray[np.uint32]) -> npt.NDArray[np.float64]:
    from scipy import ndimage

    found = [box for box in ndimage.find_objects(instances.astype(np.int32)) if box is not None]
    corners = [(box[0].start, box[1].start, box[0].stop, box[1].stop) for box in found]
    return np.array(corners, float).reshape(-1, 4)


def _budget(counts: Sequence[npt.NDArray[np.int64]]) -> QueryBudget:
    if not counts:
        return QueryBudget(0, 0.0, 0.0, 0, {})
    table = np.stack(counts)
    total = table.sum(1)
    mean_of = {organelle: float(mean) for organelle, mean in zip(Organelle, table.mean(0), strict=True) if mean > 0}
    return QueryBudget(
        len(total), float(np.percentile(total, 50)), float(np.percentile(total, 99)), int(total.max()), mean_of
    )
