"""Scale Alignment of dataset rows, as a transform: ``dataset.with_transform(align(8.0))``.

The arithmetic is ``em_bench_eval.align``, which training, inference and the metric use too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from em_bench_eval.align import align_image, align_instances, align_mask
from em_bench_eval.errors import InputError
from em_bench_eval.rows import decode_png
from em_bench_eval.schema import TARGET_PIXEL_SIZE_NM

NEEDED = ("image", "instances", "pixel_size_nm")


@dataclass(frozen=True)
class Align:
    """A transform of batches; see ``align``."""

    target_nm: float

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Align every row of a batch of columns."""
        missing = [name for name in NEEDED if name not in batch]
        if missing:
            raise InputError(
                "rows cannot be aligned",
                found=f"columns {', '.join(batch)}",
                expected=f"also {', '.join(missing)}",
                remedy="select columns after the transform, or keep these",
            )
        columns = list(batch)
        rows = [self.row(dict(zip(columns, values, strict=True))) for values in zip(*batch.values(), strict=True)]
        return {name: [row[name] for row in rows] for name in (rows[0] if rows else columns)}

    def row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Align one row: ``image`` uint8, ``instances`` uint16 and ``ignore`` bool become ``(y, x)`` arrays.

        ``objects`` is measured anew, ``pixel_size_nm`` is the target; ``offset`` and ``voxel_size_nm`` stay those of
        the volume. The column ``rescued`` lists the ids that kept a pixel only because none may vanish.
        """
        size_nm = (float(row["pixel_size_nm"][0]), float(row["pixel_size_nm"][1]))
        image = np.rint(align_image(decode_png(row["image"]), size_nm, self.target_nm)).astype(np.uint8)
        labels = align_instances(decode_png(row["instances"]).astype(np.uint16), size_nm, self.target_nm)
        aligned = {**row, "image": image, "instances": labels.ids, "rescued": list(labels.rescued)}
        if row.get("ignore") is not None:
            aligned["ignore"] = align_mask(decode_png(row["ignore"]) > 0, size_nm, self.target_nm)
        if "objects" in row:
            aligned["objects"] = _measured(row["objects"], np.asarray(labels.ids))
        aligned["pixel_size_nm"] = [self.target_nm, self.target_nm]
        return aligned


def align(target_nm: float = TARGET_PIXEL_SIZE_NM) -> Align:
    """Return the transform to pixels of ``target_nm``, for ``Dataset.with_transform`` and ``map(batched=True)``.

    Images are averaged over area when they shrink and interpolated when they grow; labels take the nearest pixel, and
    no instance vanishes (``em_bench_eval.align.align_instances``).
    """
    if not target_nm > 0:
        raise InputError("images are aligned to a pixel size", found=target_nm, expected="more than 0 nm")
    return Align(float(target_nm))


def _measured(objects: Sequence[Mapping[str, Any]], ids: Any) -> list[dict[str, Any]]:
    from scipy import ndimage

    boxes = ndimage.find_objects(ids.astype(np.int32))
    areas = np.bincount(ids.ravel())
    height, width = ids.shape
    found = []
    for entry in objects:
        id_ = int(entry["id"])
        box = boxes[id_ - 1] if id_ <= len(boxes) else None
        if box is None:
            continue  # there was no room for it
        y0, x0, y1, x1 = box[0].start, box[1].start, box[0].stop, box[1].stop
        border = y0 == 0 or x0 == 0 or y1 == height or x1 == width
        found.append({**entry, "area": int(areas[id_]), "bbox": [y0, x0, y1, x1], "touches_border": border})
    return found
