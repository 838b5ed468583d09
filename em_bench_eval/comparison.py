"""Which instance was matched to which in one image: the score's decisions, instance by instance, for pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from em_bench_eval.colours import Rgb, instance_colours
from em_bench_eval.judging import border_ids, judge
from em_bench_eval.label_maps import connected_pieces
from em_bench_eval.overlap import OverlapTable, contingency
from em_bench_eval.rows import LabelledImage
from em_bench_eval.schema import Organelle, Prediction
from em_bench_eval.settings import Settings


class Mark(str, Enum):
    """How the score judged an instance."""

    HIT = "hit"  # matched, IoU above the threshold
    WEAK = "weak"  # matched, IoU at or below the threshold: counts for Dice, but as an error in PQ
    MISSED = "missed"  # a reference instance without a match
    UNMATCHED = "unmatched"  # a predicted instance without a match
    UNJUDGED = "unjudged"  # mostly ignored, too small, or of an organelle that is not annotated here


@dataclass(frozen=True)
class Drawing:
    """One side of a comparison: instances, what they are, and how each is drawn."""

    instances: npt.NDArray[np.integer[Any]]  # (y, x) ids, 0 = background
    organelle_of: Mapping[int, Organelle]
    colour_of: Mapping[int, Rgb]
    mark_of: Mapping[int, Mark]


@dataclass(frozen=True)
class Comparison:
    """Both sides of one image; ``counts`` holds judged reference, judged predicted and matched instances."""

    reference: Drawing
    prediction: Drawing
    counts: dict[Organelle, tuple[int, int, int]]


def compare(image: LabelledImage, prediction: Prediction, settings: Settings) -> Comparison:
    """Match one image as ``em_bench_eval.score`` does and colour both sides.

    A predicted instance has the colour of its match, or else of the reference instance of its organelle that it shares
    most pixels with; a prediction on background has a colour of its own. Raises ``InputError`` if shapes differ.
    """
    instances, organelle_of = _reference_instances(image, settings)
    table = contingency(instances, prediction.instances, image.ignore)
    on_border = border_ids(instances)
    reference_marks = dict.fromkeys(organelle_of, Mark.UNJUDGED)
    prediction_marks = dict.fromkeys(prediction.organelle_of, Mark.UNJUDGED)
    counts: dict[Organelle, tuple[int, int, int]] = {}
    colour_index: dict[int, int] = {}
    for organelle in Organelle:
        part = table.select(
            _of_organelle(table.reference_ids, organelle_of, organelle),
            _of_organelle(table.prediction_ids, prediction.organelle_of, organelle),
        )
        colour_index.update(_most_shared(part))
        if organelle not in image.annotated:
            continue
        decision = judge(part, math.prod(image.pixel_size_nm), settings, on_border)
        reference, predicted = decision.table.reference_ids.tolist(), decision.table.prediction_ids.tolist()
        matches = zip(*decision.matched_ids().T.tolist(), decision.pair_iou[decision.matched].tolist(), strict=True)
        reference_marks.update(dict.fromkeys(reference, Mark.MISSED))
        prediction_marks.update(dict.fromkeys(predicted, Mark.UNMATCHED))
        for reference_id, predicted_id, overlap in matches:
            mark = Mark.HIT if overlap > settings.iou_threshold else Mark.WEAK
            reference_marks[reference_id] = prediction_marks[predicted_id] = mark
            colour_index[predicted_id] = reference_id
        counts[organelle] = (len(reference), len(predicted), len(decision.matched))
    beyond = max(organelle_of, default=0)
    index_of = {id_: colour_index.get(id_, beyond + id_) for id_ in prediction.organelle_of}
    colours = instance_colours([*organelle_of, *index_of.values()])
    return Comparison(
        Drawing(instances, organelle_of, {id_: colours[id_] for id_ in organelle_of}, reference_marks),
        Drawing(
            prediction.instances,
            prediction.organelle_of,
            {id_: colours[index] for id_, index in index_of.items()},
            prediction_marks,
        ),
        counts,
    )


def _reference_instances(
    image: LabelledImage, settings: Settings
) -> tuple[npt.NDArray[np.integer[Any]], Mapping[int, Organelle]]:
    """Ids as published, or one per connected piece: what ``settings.reference_ids`` says."""
    if settings.reference_ids == "volume":
        return image.instances, image.organelle_of
    pieces, parents = connected_pieces(image.instances)
    return pieces, {piece + 1: image.organelle_of[int(parent)] for piece, parent in enumerate(parents)}


def _most_shared(table: OverlapTable) -> dict[int, int]:
    """Map predicted ids to the reference id that shares most pixels; of equal ones the lowest."""
    order = np.lexsort((-table.pair_reference, table.pair_voxels))  # ascending: the last entry of an id wins
    return dict(
        zip(
            table.prediction_ids[table.pair_prediction[order]].tolist(),
            table.reference_ids[table.pair_reference[order]].tolist(),
            strict=True,
        )
    )


def _of_organelle(
    ids: npt.NDArray[np.uint64], organelle_of: Mapping[int, Organelle], organelle: Organelle
) -> npt.NDArray[np.bool_]:
    return np.array([organelle_of.get(int(id_)) == organelle for id_ in ids], dtype=np.bool_)
