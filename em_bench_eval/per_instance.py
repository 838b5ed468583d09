"""One row per instance: what the score decided about it. For sorting the worst, and for statistics of one's own."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .judging import Judged
from .matching import dice

COLUMNS: dict[str, str] = {
    "item": "string",
    "organelle": "string",
    "side": "string",  # "reference" or "prediction"
    "id": "uint64",
    "verdict": "string",  # hit: IoU above the threshold; weak: matched below it; missed, invented: no match
    "matched_id": "uint64",  # of the other side; null without a match
    "iou": "float64",  # with the match; 0 without
    "dice": "float64",
    "best_id": "uint64",  # the instance of the other side with the largest intersection; null without overlap
    "best_iou": "float64",
    "n_overlapping": "int64",  # instances of the other side that share voxels with it: merges and splits show here
    "voxels": "int64",  # outside the ignored region
    "size_nm": "float64",  # nm^2 in images, nm^3 in volumes
}


def instance_rows(item: str | None, organelle: str, judged: Judged, voxel_nm: float) -> list[dict[str, Any]]:
    """List the judged instances of one organelle in one item, reference instances first; see ``COLUMNS``."""
    table = judged.table
    voxels = (table.reference_voxels, table.prediction_voxels)
    ids = (table.reference_ids, table.prediction_ids)
    ends = (table.pair_reference, table.pair_prediction)
    pair_dice = dice(table.pair_voxels, voxels[0][ends[0]], voxels[1][ends[1]])
    rows: list[dict[str, Any]] = []
    for side, name in enumerate(("reference", "prediction")):
        count = len(ids[side])
        match = np.full(count, -1, np.int64)
        match[ends[side][judged.matched]] = judged.matched
        best = np.full(count, -1, np.int64)
        order = np.lexsort((judged.pair_iou, table.pair_voxels))
        best[ends[side][order]] = order  # the largest intersection is written last
        overlapping = np.bincount(ends[side], minlength=count)
        other = ids[1 - side][ends[1 - side]]
        for k in range(count):
            pair, largest = int(match[k]), int(best[k])
            verdict = ("missed", "invented")[side] if pair < 0 else "hit" if judged.hits[pair] else "weak"
            rows.append(
                {
                    "item": item or "",
                    "organelle": organelle,
                    "side": name,
                    "id": int(ids[side][k]),
                    "verdict": verdict,
                    "matched_id": int(other[pair]) if pair >= 0 else None,
                    "iou": float(judged.pair_iou[pair]) if pair >= 0 else 0.0,
                    "dice": float(pair_dice[pair]) if pair >= 0 else 0.0,
                    "best_id": int(other[largest]) if largest >= 0 else None,
                    "best_iou": float(judged.pair_iou[largest]) if largest >= 0 else 0.0,
                    "n_overlapping": int(overlapping[k]),
                    "voxels": int(voxels[side][k]),
                    "size_nm": float(voxels[side][k] * voxel_nm),
                }
            )
    return rows


def write_parquet(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write the rows as parquet, under the final name only when complete."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, getattr(pa, kind)()) for name, kind in COLUMNS.items()])
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        pq.write_table(pa.Table.from_pylist(list(rows), schema=schema), partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
