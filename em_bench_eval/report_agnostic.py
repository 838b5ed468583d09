"""The report page of a class-agnostic score: the ordinary page, filled with what such a score has.

Where the ordinary page shows the macro average, this one shows all organelles as one class (``any/...``); the Dice of
an organelle is its ``dice__stratified``, and what is predicted "of it" is what was matched to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from em_bench_eval.comparison import Comparison, Mark, compare
from em_bench_eval.overlap import contingency
from em_bench_eval.rows import LabelledImage
from em_bench_eval.schema import ORGANELLES, Organelle, Prediction
from em_bench_eval.settings import Settings

STAND_IN = Organelle.MITO
WORDING = {  # of the ordinary page -> of this one
    "In each image, predicted and reference instances of one organelle are matched one to one.": "The predictions have "
    "no organelle: in each image, all predicted and all reference instances are matched one to one.",
    "the macro average is the mean over the organelles that have a score.": "the Dice of an organelle is the mean over "
    "its reference instances, and false positives cost it nothing (<code>dice__stratified</code>).",
    "Macro instance Dice": "Class-agnostic instance Dice",
    "macro instance Dice": "class-agnostic instance Dice",
    "Macro average": "All as one class",
    "so their macro averages cover different organelles": "so their averages cover different organelles",
    "the macro difference is the mean over organelles": "the difference in its first row is the mean over organelles",
    "<tr><th>Macro</th>": "<tr><th>All</th>",
}


def page_score(score: Mapping[str, Any]) -> dict[str, Any]:
    """Return the score under the keys that the page reads."""
    return {
        **score,
        "groups": {group: _page_values(values) for group, values in score["groups"].items()},
        "per_image": {record: _page_values(values) for record, values in score["per_image"].items()},
    }


def reword(page: str) -> str:
    """Say on the page what its numbers are."""
    for ordinary, agnostic in WORDING.items():
        page = page.replace(ordinary, agnostic)
    return re.sub(r"<span>mean of \d+ organelles?</span>", "<span>all as one class</span>", page)


def compare_agnostic(image: LabelledImage, prediction: Prediction, settings: Settings) -> Comparison:
    """Match one image as ``class_agnostic`` does and colour both sides; see ``comparison.compare``.

    A prediction lies in the layer of the organelle that it shares most pixels with, or else of the first annotated one.
    """
    known = {id_: STAND_IN for id_, organelle in image.organelle_of.items() if organelle in image.annotated}
    unknown = (image.instances > 0) & ~np.isin(image.instances, list(known))
    one_class = replace(
        image, organelle_of=known, annotated=frozenset({STAND_IN}), ignore=image.ignore | unknown,
        instances=np.where(unknown, 0, image.instances).astype(image.instances.dtype),
    )  # fmt: skip
    ids = [int(id_) for id_ in np.unique(prediction.instances) if id_]
    found = compare(one_class, replace(prediction, organelle_of=dict.fromkeys(ids, STAND_IN)), settings)
    drawn = contingency(found.reference.instances, image.instances)  # pieces have ids of their own
    pieces = zip(drawn.reference_ids[drawn.pair_reference].tolist(), drawn.pair_prediction.tolist(), strict=True)
    reference_of = {piece: image.organelle_of[int(drawn.prediction_ids[pair])] for piece, pair in pieces}
    shared = contingency(found.reference.instances, prediction.instances)
    first = min(image.annotated, key=list(Organelle).index, default=STAND_IN)
    predicted_of = dict.fromkeys(ids, first)
    order = np.argsort(shared.pair_voxels, kind="stable")  # the most shared one is written last
    for reference_id, predicted_id in zip(
        shared.reference_ids[shared.pair_reference[order]].tolist(),
        shared.prediction_ids[shared.pair_prediction[order]].tolist(),
        strict=True,
    ):
        predicted_of[predicted_id] = reference_of[reference_id]
    counts = {}
    for organelle in (organelle for organelle in Organelle if organelle in image.annotated):
        marks = [found.reference.mark_of[id_] for id_, own in reference_of.items() if own == organelle]
        judged, matched = sum(m != Mark.UNJUDGED for m in marks), sum(m in (Mark.HIT, Mark.WEAK) for m in marks)
        counts[organelle] = (judged, matched, matched)
    return Comparison(
        replace(found.reference, organelle_of=reference_of),
        replace(found.prediction, organelle_of=predicted_of),
        counts,
    )


def _page_values(values: Mapping[str, Any]) -> dict[str, Any]:
    shown = {f"macro/{key.partition('/')[2]}": value for key, value in values.items() if key.startswith("any/")}
    for name in ORGANELLES:
        shown[f"{name}/dice__instance"] = values.get(f"{name}/dice__stratified")
        shown[f"{name}/iou__instance"] = values.get(f"{name}/iou__stratified")
        shown[f"{name}/recall"] = values.get(f"{name}/recall__stratified")
        shown[f"{name}/n_reference"] = values.get(f"{name}/n_reference", 0)
        shown[f"{name}/n_prediction"] = shown[f"{name}/n_matched"] = values.get(f"{name}/n_matched", 0)
    return shown
