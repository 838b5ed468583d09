"""Score label maps: reduce each image or volume to counts, pool the counts, compute the metrics once at the end."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .errors import InputError, unknown_name
from .label_maps import (
    LabelMaps,
    by_piece,
    common_shape,
    is_among,
    organelle_name,
    read_mask,
    read_side,
    read_voxel_size,
)
from .matching import best_matching, iou
from .metrics import METRIC_VERSION, Counts, Value, compute_all, pool
from .overlap import OverlapTable, contingency
from .schema import ORGANELLES

REFERENCE_IDS = ("volume", "slice")


@dataclass(frozen=True)
class Settings:
    """What changes the numbers; results are comparable only at equal ``hash()``.

    ``min_size_nm``: reference and predicted instances smaller than this are not judged (nm^2 in images, nm^3 in
    volumes; the part outside the ignored region counts). ``iou_threshold``: what makes a true positive in the
    pq family, at least 0.5, so that true positives are unique. ``reference_ids``: "volume" takes reference ids as
    published, where one instance may lie in several pieces of an image; "slice" gives every 8-connected piece of
    the reference image its own id first.
    """

    min_size_nm: float = 0.0
    iou_threshold: float = 0.5
    reference_ids: Literal["volume", "slice"] = "volume"

    def __post_init__(self) -> None:
        if self.reference_ids not in REFERENCE_IDS:
            raise unknown_name("setting of reference_ids", str(self.reference_ids), REFERENCE_IDS)
        object.__setattr__(self, "min_size_nm", float(self.min_size_nm))
        object.__setattr__(self, "iou_threshold", float(self.iou_threshold))
        if not (math.isfinite(self.min_size_nm) and self.min_size_nm >= 0):
            raise InputError("min_size_nm is out of range", found=self.min_size_nm, expected="a finite number >= 0")
        if not 0.5 <= self.iou_threshold < 1:
            raise InputError("iou_threshold is out of range", found=self.iou_threshold, expected="0.5 up to below 1")

    def hash(self) -> str:
        """Return 12 hexadecimal digits that identify these settings and the metric version."""
        text = json.dumps({"metric_version": METRIC_VERSION, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def score(
    prediction: LabelMaps,
    reference: LabelMaps,
    *,
    voxel_size_nm: Sequence[float],
    annotated: Iterable[str] | None = None,
    ignore: npt.ArrayLike | None = None,
    settings: Settings = Settings(),
) -> dict[str, Value]:
    """Score one image or volume; see ``Evaluation.add`` for the arguments and ``metrics.METRICS`` for the keys."""
    evaluation = Evaluation(settings)
    evaluation.add(prediction, reference, voxel_size_nm=voxel_size_nm, annotated=annotated, ignore=ignore)
    return evaluation.compute()


class Evaluation:
    """Accumulates counts over images or volumes; label maps are let go at once.

    Counts are pooled: the result does not depend on the order of what was added, nor on how it was spread over
    evaluations that were merged later, to the last bit.
    """

    def __init__(self, settings: Settings = Settings()) -> None:
        self.settings = settings
        self._axes = 0  # 2: images, 3: volumes, 0: nothing added
        self._counts: dict[str, list[Counts]] = {organelle: [] for organelle in ORGANELLES}

    def add(
        self,
        prediction: LabelMaps,
        reference: LabelMaps,
        *,
        voxel_size_nm: Sequence[float],
        annotated: Iterable[str] | None = None,
        ignore: npt.ArrayLike | None = None,
    ) -> None:
        """Count one image or volume.

        ``prediction``, ``reference``: ``{organelle: label map}``, or a pair of one label map and ``{id: organelle}``;
        integers, ``(y, x)`` or ``(z, y, x)``, 0 = background; an organelle that is left out has no instances.
        ``voxel_size_nm``: ``(y, x)`` or ``(z, y, x)``. ``annotated``: organelles that the reference labels (default:
        all five); the others are not judged at all. ``ignore``: mask of the same shape, True where nobody annotated:
        such voxels count for nothing, and an instance with more than half of its voxels there is not judged.
        Raises ``InputError`` and then has counted nothing.
        """
        size = read_voxel_size(voxel_size_nm)
        if self._axes not in (0, len(size)):
            raise InputError(
                "images and volumes cannot be pooled",
                found=f"{len(size)}D after {self._axes}D",
                expected="one evaluation for images, another for volumes",
            )
        judged = ORGANELLES if annotated is None else tuple(organelle_name(name) for name in annotated)
        sides = {"prediction": read_side("prediction", prediction), "reference": read_side("reference", reference)}
        mask = None if ignore is None else read_mask(ignore)
        shape = common_shape(sides, mask, len(size))
        if self.settings.reference_ids == "slice":
            sides["reference"] = by_piece(sides["reference"], len(size))
        tables: dict[tuple[int, int], OverlapTable] = {}  # one pass over the voxels per pair of arrays
        nothing = np.broadcast_to(np.uint8(0), shape)
        found: dict[str, Counts] = {}
        for organelle in sorted(set(judged), key=ORGANELLES.index):
            maps = [sides[name].get(organelle, (nothing, None)) for name in ("reference", "prediction")]
            if maps[0][0] is nothing and maps[1][0] is nothing:
                continue
            key = (id(maps[0][0]), id(maps[1][0]))
            if key not in tables:
                tables[key] = contingency(maps[0][0], maps[1][0], mask)
            table = tables[key]
            table = table.select(is_among(table.reference_ids, maps[0][1]), is_among(table.prediction_ids, maps[1][1]))
            found[organelle] = count(table, math.prod(size), self.settings)
        for organelle, counts in found.items():
            self._counts[organelle].append(counts)
        self._axes = len(size)

    def merge(self, other: Evaluation) -> None:
        """Take over everything that ``other`` counted; ``other`` is left as it is."""
        if other.settings != self.settings or (other._axes and self._axes and other._axes != self._axes):
            raise InputError(
                "these evaluations cannot be pooled",
                found=f"{other.settings}, {other._axes}D",
                expected=f"{self.settings}, {self._axes}D",
            )
        self._axes = self._axes or other._axes
        for organelle, parts in other._counts.items():
            self._counts[organelle].extend(parts)

    def compute(self) -> dict[str, Value]:
        """Return every key of every organelle, and the macro means; undefined values are None."""
        return compute_all({organelle: pool(parts) for organelle, parts in self._counts.items()})

    def to_rows(self) -> list[dict[str, Any]]:
        """Return the counts as plain rows, one per item and organelle, to send to another process."""
        rows = []
        for organelle, parts in self._counts.items():
            for part in parts:
                values = {**vars(part), "matched": part.matched.ravel().tolist(), "hits": part.hits.ravel().tolist()}
                rows.append({"organelle": organelle, "axes": self._axes, "settings": self.settings.hash(), **values})
        return rows

    def add_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take over rows of ``to_rows``; they must come from an evaluation with the same settings."""
        for row in rows:
            if row["settings"] != self.settings.hash():
                raise InputError(
                    "counts of different settings cannot be pooled",
                    found=row["settings"],
                    expected=self.settings.hash(),
                )
            values = {name: row[name] for name in Counts.__dataclass_fields__}
            for name in ("matched", "hits"):
                values[name] = np.array(values[name], np.int64).reshape(-1, 3)
            other = Evaluation(self.settings)
            other._axes = int(row["axes"])
            other._counts[row["organelle"]].append(Counts(**values))
            self.merge(other)


def judge(table: OverlapTable, voxel_volume_nm: float, settings: Settings) -> OverlapTable:
    """Drop the instances that are not judged: those mostly in the ignored region, and those below the minimum size."""
    keep_reference = 2 * table.reference_ignored <= table.reference_voxels + table.reference_ignored
    # What is visible of a reference instance that is mostly ignored is ignored too, so that a model which segments
    # that part is not charged with a false positive.
    hidden = np.zeros(len(table.prediction_ids), np.int64)
    unjudged = ~keep_reference[table.pair_reference]
    np.add.at(hidden, table.pair_prediction[unjudged], table.pair_voxels[unjudged])
    table = replace(
        table,
        prediction_voxels=table.prediction_voxels - hidden,
        prediction_ignored=table.prediction_ignored + hidden,
    )
    keep_prediction = 2 * table.prediction_ignored <= table.prediction_voxels + table.prediction_ignored
    keep_reference &= table.reference_voxels * voxel_volume_nm >= settings.min_size_nm
    keep_prediction &= table.prediction_voxels * voxel_volume_nm >= settings.min_size_nm
    return table.select(keep_reference, keep_prediction)


def count(table: OverlapTable, voxel_volume_nm: float, settings: Settings) -> Counts:
    """Reduce the overlap table of one organelle in one image or volume to its counts."""
    judged = judge(table, voxel_volume_nm, settings)
    reference = judged.reference_voxels[judged.pair_reference]
    prediction = judged.prediction_voxels[judged.pair_prediction]
    pairs = np.stack([judged.pair_voxels, reference, prediction], axis=1)
    pair_iou = iou(judged.pair_voxels, reference, prediction)
    chosen = best_matching(judged.pair_reference, judged.pair_prediction, pair_iou, judged.pair_voxels)
    return Counts(
        n_reference=len(judged.reference_ids),
        n_prediction=len(judged.prediction_ids),
        reference_voxels=int(judged.reference_voxels.sum()),
        prediction_voxels=int(judged.prediction_voxels.sum()),
        semantic_intersection=int(table.pair_voxels.sum()),
        semantic_reference=int(table.reference_voxels.sum()),
        semantic_prediction=int(table.prediction_voxels.sum()),
        matched=pairs[chosen],
        hits=pairs[pair_iou > settings.iou_threshold],
    )
