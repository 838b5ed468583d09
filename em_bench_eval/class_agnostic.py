"""Scores of instances that have no organelle, such as Segment Anything's.

Two protocols from one matching, of predicted instances with the reference instances of all annotated organelles:

* class-agnostic: every metric of overlaps, as if there were one organelle. Keys ``any/<name>``.
* reference-stratified: what the matching gave the reference instances of each organelle. Keys
  ``<organelle>/dice__stratified`` and alike; recall-type, as no false positive belongs to an organelle.

A prediction of what nobody annotated in an image counts as a false positive in ``any/...``: where few of the organelles
are annotated, the stratified keys and ``any/dice__reference`` say more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from em_bench_eval.confidence import intervals
from em_bench_eval.label_maps import connected_pieces, only
from em_bench_eval.metric import Statistics, Value
from em_bench_eval.metrics import pool
from em_bench_eval.metrics_stratified import ORDINARY, STRATIFIED
from em_bench_eval.schema import ORGANELLES, Organelle
from em_bench_eval.scoring import Evaluation
from em_bench_eval.settings import DEFAULT_SETTINGS, Settings

ANY = "any"
STAND_IN = "mito"  # under which ``Evaluation`` counts what has no organelle
INTERVALS = ("dice__instance", "iou__instance", "pq", "ap50", "dice__reference", "iou__reference")
PER_IMAGE = ("dice__instance", "dice__reference", "n_reference", "n_prediction", "n_matched")


class AgnosticEvaluation:
    """Accumulates statistics over images, as ``scoring.Evaluation`` does; the organelles of predictions are not read.

    Skeletons and surfaces belong to organelles and are not measured.
    """

    def __init__(self, settings: Settings = DEFAULT_SETTINGS, *, keep_instances: bool = False) -> None:
        """``keep_instances``: remember a row per instance, for ``instances``."""
        self.settings = settings
        self.keep_instances = keep_instances
        # pieces become ids here, because ids must be known again by their organelle
        self._inner = replace(settings, reference_ids="volume", skeleton=(), boundary=())
        self._any = Evaluation(self._inner)
        self._of: list[dict[str, Statistics]] = []  # for each item, by organelle
        self._instances: list[dict[str, Any]] = []

    def add(
        self,
        prediction: tuple[npt.NDArray[Any], Mapping[int, str]],
        reference: tuple[npt.NDArray[Any], Mapping[int, str]],
        *,
        voxel_size_nm: Sequence[float],
        annotated: Iterable[str] | None = None,
        ignore: npt.NDArray[np.bool_] | None = None,
        item: str | None = None,
    ) -> None:
        """Count one image; the arguments are those of ``Evaluation.add``, of which the pair form alone is taken.

        Voxels of reference instances whose organelle is not annotated are ignored like those that nobody annotated.
        Raises ``InputError``; nothing was counted then.
        """
        labels, organelle_of = reference
        names = set(ORGANELLES) if annotated is None else {str(name) for name in annotated}
        if self.settings.reference_ids == "slice":
            labels, parents = connected_pieces(labels)
            organelle_of = {
                piece: organelle_of[int(parent)]
                for piece, parent in enumerate(parents, start=1)
                if int(parent) in organelle_of
            }
        judged = np.array([id_ for id_, organelle in organelle_of.items() if str(organelle) in names], np.uint64)
        known = only(labels, judged)
        unknown = (labels != 0) & (known == 0)
        one = Evaluation(self._inner, keep_instances=True)
        one.add(
            {STAND_IN: prediction[0]},
            {STAND_IN: known},
            voxel_size_nm=voxel_size_nm,
            annotated=[STAND_IN] if names else [],
            ignore=unknown if ignore is None else unknown | (ignore != 0),
            item=item,
        )
        rows = [{**row, "organelle": _organelle(row, organelle_of)} for row in one.instances()]
        self._any.merge(one)
        self._of.append({name: _statistics(rows, name) for name in ORGANELLES if name in names})
        self._instances += rows if self.keep_instances else []

    def merge(self, other: AgnosticEvaluation) -> None:
        """Take over everything that ``other`` counted; ``other`` is left as it is."""
        self._any.merge(other._any)
        self._of += other._of
        self._instances += other._instances if self.keep_instances else []

    def instances(self) -> list[dict[str, Any]]:
        """Return a row per judged instance (``per_instance.COLUMNS``); empty unless ``keep_instances``.

        The organelle of a prediction is that of the reference instance that it was matched to, else "any".
        """
        return list(self._instances)

    def compute(self) -> dict[str, Value]:
        """Return ``any/<name>`` for every metric of overlaps, and the stratified keys and counts of each organelle.

        ``macro/<name>`` is the plain mean of a stratified key over the organelles that have it. Undefined: None.
        """
        inner = self._any.compute()
        result = {f"{ANY}/{_name(key)}": value for key, value in inner.items() if key.startswith(f"{STAND_IN}/")}
        for organelle in ORGANELLES:
            pooled = pool(of[organelle] for of in self._of if organelle in of)
            for count in ("n_reference", "n_matched"):
                result[f"{organelle}/{count}"] = int(pooled.get(count, 0))
            for name, metric in STRATIFIED.items():
                result[f"{organelle}/{name}"] = metric.compute(pooled) if pooled else None
        for name in STRATIFIED:
            values = [value for o in ORGANELLES if (value := result[f"{o}/{name}"]) is not None]
            result[f"macro/{name}"] = math.fsum(values) / len(values) if values else None
        return result

    def per_image(self) -> dict[str, Value]:
        """Select what a score keeps of each image: ``any`` and the stratified Dice of the organelles in it."""
        values = self.compute()
        kept = {f"{ANY}/{name}": values[f"{ANY}/{name}"] for name in PER_IMAGE}
        for organelle in (name for name in ORGANELLES if values[f"{name}/n_reference"]):
            for name in ("dice__stratified", "n_reference", "n_matched"):
                kept[f"{organelle}/{name}"] = values[f"{organelle}/{name}"]
        return kept

    def intervals(self, clusters: Sequence[str] | None) -> dict[str, tuple[float, float] | None]:
        """Bootstrap intervals of the headline keys; see ``confidence.intervals``."""
        whole = [statistics for _, statistics in self._any.items()]
        found = intervals(whole, [f"{STAND_IN}/{name}" for name in INTERVALS], clusters=clusters)
        result = {f"{ANY}/{_name(key)}": bounds for key, bounds in found.items()}
        for ours, theirs in ORDINARY.items():
            keys = [f"{name}/{theirs}" for name in (*ORGANELLES, "macro")]
            for key, bounds in intervals(self._of, keys, clusters=clusters).items():
                result[f"{key.partition('/')[0]}/{ours}"] = bounds
        return result


def _organelle(row: Mapping[str, Any], organelle_of: Mapping[int, Organelle | str]) -> str:
    reference = row["id"] if row["side"] == "reference" else row["matched_id"]
    return ANY if reference is None else str(organelle_of[reference])


def _statistics(rows: Iterable[Mapping[str, Any]], organelle: str) -> Statistics:
    """Sum over the judged reference instances of an organelle: what the metrics of ``ORDINARY`` are computed from."""
    own = [row for row in rows if row["side"] == "reference" and row["organelle"] == organelle]
    return {
        "n_reference": len(own),
        "n_matched": sum(row["matched_id"] is not None for row in own),
        "n_hits": sum(row["verdict"] == "hit" for row in own),
        "matched_dice": math.fsum(row["dice"] for row in own),
        "matched_iou": math.fsum(row["iou"] for row in own),
    }


def _name(key: str) -> str:
    return key.partition("/")[2]


def format_agnostic(result: Mapping[str, Any], *, by_source: bool = False) -> str:
    """Lay out what ``em-bench score`` prints: the class-agnostic line and the stratified ones, for each group."""
    from em_bench_eval.score_tables import COLUMNS, cell

    dataset, prompts = result["dataset"], result["prediction"].get("prompts")
    lines = [
        f"{dataset['path']} {dataset['config']}/{dataset['split']}, {result['images']} images, "
        f"metric version {result['metric_version']}, settings {result['settings_hash']}",
        "class-agnostic: instances are matched whatever their organelle"
        + (f"; prompts made from the reference ({prompts}): not comparable with automatic rows" if prompts else ""),
    ]
    shown = {header: name for header, name in COLUMNS.items() if name != "semantic_dice"}
    wanted = ("all", "domain=", *(["source="] if by_source else []))
    for group, values in result["groups"].items():
        if not group.startswith(wanted):
            continue
        lines += ["", "all images" if group == "all" else group]
        lines.append("  organelle  " + "  ".join(f"{header:>9}" for header in shown))
        lines.append("  any        " + "  ".join(f"{cell(values[f'{ANY}/{name}']):>9}" for name in shown.values()))
        lines += ["", "  organelle  Dice strat   IoU strat   recall  n ref  n matched"]
        for name in (*ORGANELLES, "macro", ANY):
            metrics = ORDINARY.values() if name == ANY else STRATIFIED
            cells = [cell(values[f"{name}/{metric}"]) for metric in metrics]
            counts = [
                cell(values.get(f"{name}/{count}")) if name != "macro" else "" for count in ("n_reference", "n_matched")
            ]
            lines.append(f"  {name:<9}  {cells[0]:>10}  {cells[1]:>10}  {cells[2]:>7}  {counts[0]:>5}  {counts[1]:>9}")
    lines += [
        "",
        "  any        all reference instances as one class; unmatched predictions count as errors in the upper table",
        "  ... strat  mean over the reference instances of an organelle; unmatched predictions cost nothing",
        "  macro      plain mean over the organelles; any pools their instances",
        "  em-bench explain dice__stratified says it in full",
    ]
    return "\n".join(lines)
