"""Which instances an expert should look at: likely merges, likely splits, crumbs, and what the border cuts.

``lpa.signs`` holds the signs and their limits. How often instances really are wrong is for ``lpa.audit`` to say.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from em_bench_eval.errors import InputError
from em_bench_eval.schema import Organelle
from lpa import signs
from lpa.signs import THRESHOLDS, Reason, Scene, SplitSign, Thresholds
from lpa.split import SplitDecision

Kind = Literal["merge", "split", "crumb", "border"]
KINDS: tuple[Kind, ...] = ("merge", "split", "crumb", "border")
TO_CORRECT: tuple[Kind, ...] = ("merge", "split", "crumb")  # what the border cuts is no error of the labelling


@dataclass(frozen=True)
class Flag:
    """One thing to look at."""

    instance_id: int
    organelle: Organelle
    kind: Kind
    reasons: tuple[Reason, ...]
    neighbours: tuple[int, ...]  # the other instances that it is about
    affected_nm3: float  # the volume that a correction would move; of a merge, half
    focus: tuple[int, int, int]  # the voxel to look at, (z, y, x)

    @property
    def risk(self) -> float:
        """Risks of all signs, taken as independent: 1 - product of (1 - risk)."""
        return 1.0 - math.prod(1.0 - reason.risk for reason in self.reasons)


def triage(
    volume: npt.NDArray[Any],
    table: Mapping[str, Any],
    voxel_nm: tuple[float, float, float],
    decisions: Iterable[SplitDecision] = (),
    thresholds: Mapping[Organelle, Thresholds] = THRESHOLDS,
) -> list[Flag]:
    """Flag instances; in ascending order of id, and for each in the order of ``KINDS``.

    Args:
        volume: ``(z, y, x)`` ids.
        table: what ``lpa.measure.measure`` returned for it.
        voxel_nm: ``(z, y, x)``.
        decisions: what ``lpa.split.split`` decided when it made the volume.
        thresholds: limits by organelle.

    Raises:
        InputError: table or decisions do not belong to the volume.
    """
    decision_of = {child: decision for decision in decisions for child in decision.child_ids}
    scene = Scene(volume, table, voxel_nm, decision_of, thresholds)
    _check(scene)
    outliers, seams = signs.volume_outliers(scene), signs.wide_contacts(scene)
    flags: list[Flag] = []
    rows = range(len(table["id"]))
    for row in tqdm(rows, desc="triage", unit="instance", disable=None if len(rows) >= 100 else True):
        flags += _flags(scene, row, outliers.get(row), seams.get(row))
    return flags


def _flags(scene: Scene, row: int, outlier: Reason | None, contact: SplitSign | None) -> list[Flag]:
    crumb, border = signs.small(scene, row), signs.cut_by_border(scene, row)
    merge = [] if crumb else [signs.neck(scene, row), signs.hollow_hull(scene, row), outlier]
    split = sorted(signs.split_signs(scene, row, contact), key=lambda sign: -sign.reason.risk)
    found: dict[Kind, tuple[Reason, ...]] = {
        "merge": tuple(reason for reason in merge if reason is not None),
        "split": tuple(sign.reason for sign in split),
        "crumb": (crumb,) if crumb else (),
        "border": (border,) if border else (),
    }
    volume = float(scene.table["volume_nm3"][row])
    affected = {"merge": volume / 2, "split": volume, "crumb": volume, "border": 0.0}
    return [
        Flag(
            instance_id=int(scene.table["id"][row]),
            organelle=scene.organelle(row),
            kind=kind,
            reasons=reasons,
            neighbours=tuple(sorted({sign.neighbour for sign in split})) if kind == "split" else (),
            affected_nm3=affected[kind],
            focus=scene.inside(row, split[0].at if kind == "split" else None),
        )
        for kind, reasons in found.items()
        if reasons
    ]


def _check(scene: Scene) -> None:
    present = np.unique(scene.volume)
    present = present[present > 0]
    listed = np.asarray(scene.table["id"])
    if not np.array_equal(np.sort(listed), present):
        raise InputError(
            "the table does not belong to this volume",
            found=f"{len(listed)} rows, and {len(present)} ids in the volume",
            expected="one row for every id",
            remedy="measure the volume that you certify (lpa.measure), after splitting and cleaning",
        )
    stray = sorted(set(scene.decision_of) - set(scene.row_of))
    if stray:
        raise InputError(
            "the split decisions do not belong to this volume",
            found=f"{len(stray)} ids that it does not hold, the first {stray[:5]}",
            expected="the decisions of the call of lpa.split that made it",
            remedy="certify before ids change, or translate the ids (Cleaned.new_id_of)",
        )
