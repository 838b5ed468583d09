"""The signs by which triage finds instances that may be wrong, and the limits that they have to pass.

A sign returns a ``Reason``: the measured numbers, a sentence, and a risk (0.5 at the limit, towards 1 far beyond it).
Risks put the queue in order; they are no probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from em_bench_eval.schema import Organelle
from lpa.fragments import fragment, weakest_neck
from lpa.relations import contacts, inner_voxel, nearest_across_gap, solidity
from lpa.split import SplitDecision

FEWEST_FOR_OUTLIERS = 8  # whole instances that a distribution of volumes needs
MIN_ELONGATION = 1.3  # below it, the axis of a fragment says nothing


@dataclass(frozen=True)
class Thresholds:
    """Limits of one organelle; ``None``: this sign is not used for it."""

    min_volume_nm3: float  # crumb: smaller than this
    max_neck_ratio: float | None  # merge: width of the neck / width of the thinner body is at most this,
    min_persistence_nm: float | None  # and half the difference of these widths is at least this
    max_sigmas: float | None  # merge: log volume so many robust standard deviations above the organelle's median
    min_solidity: float | None  # merge: volume / volume of the convex hull is below this
    min_contact_ratio: float  # split: radius of the contact / radius of the smaller instance is at least this
    max_gap_nm: float  # split: a neighbour this near (between voxel centres; a missing slice is always bridged)
    min_alignment: float | None  # and in line with it (cosine); None: nearness is enough, as for networks


THRESHOLDS: Mapping[Organelle, Thresholds] = {
    #                              crumb  neck   nm     sigma  solid. cont. gap    alignment
    Organelle.MITO: Thresholds(5e6, 0.50, 60.0, 3.0, 0.40, 0.5, 100.0, 0.75),
    Organelle.NUCLEUS: Thresholds(1e9, 0.50, 400.0, 3.0, 0.75, 0.5, 200.0, 0.75),
    Organelle.ENDO: Thresholds(2e5, 0.70, 20.0, 3.0, 0.45, 0.5, 40.0, 0.75),
    # networks have narrow necks and hollow hulls by nature, and the ER one giant: none of these is a sign of a merge
    Organelle.ER: Thresholds(2e5, None, None, None, None, 0.2, 60.0, None),
    Organelle.GOLGI: Thresholds(5e5, None, None, 3.0, None, 0.2, 60.0, None),
}


@dataclass(frozen=True)
class Reason:
    """One sign that passed its limit."""

    name: str
    text: str
    numbers: Mapping[str, float]
    risk: float


@dataclass(frozen=True)
class SplitSign:
    """A reason to think that two instances are one."""

    reason: Reason
    neighbour: int
    at: npt.NDArray[np.float64]  # where they meet, (z, y, x) voxels


@dataclass(frozen=True)
class Scene:
    """What the signs look at: a volume, the table of ``lpa.measure`` for it, and the decisions of ``lpa.split``."""

    volume: npt.NDArray[Any]  # (z, y, x) ids
    table: Mapping[str, Any]
    voxel_nm: tuple[float, float, float]
    decision_of: Mapping[int, SplitDecision]  # by the id of a component that was kept, or of each part of one
    thresholds: Mapping[Organelle, Thresholds]

    @cached_property
    def row_of(self) -> dict[int, int]:
        """Row of the table by id."""
        return {int(id_): row for row, id_ in enumerate(self.table["id"])}

    def organelle(self, row: int) -> Organelle:
        """Organelle of a row."""
        return Organelle(str(self.table["organelle"][row]))

    def limits(self, row: int) -> Thresholds:
        """Limits for a row."""
        return self.thresholds[self.organelle(row)]

    def box(self, row: int, margin: int = 0) -> tuple[slice, slice, slice]:
        """Bounding box, widened by ``margin`` voxels but never beyond the volume."""
        low, high = self.table["bbox"][row][:3], self.table["bbox"][row][3:]
        z, y, x = (
            slice(max(0, int(a) - margin), min(size, int(b) + margin))
            for a, b, size in zip(low, high, self.volume.shape, strict=True)
        )
        return z, y, x

    def mask(self, row: int, margin: int = 0) -> npt.NDArray[np.bool_]:
        """The instance in its (widened) bounding box."""
        return np.asarray(self.volume[self.box(row, margin)] == self.table["id"][row], np.bool_)

    def inside(self, row: int, target: npt.NDArray[np.float64] | None = None) -> tuple[int, int, int]:
        """Voxel of the instance that is nearest to ``target`` or, without one, to its centroid."""
        corner = np.asarray(self.table["bbox"][row][:3], np.int64)
        wanted = self.table["centroid_nm"][row] / self.voxel_nm - 0.5 if target is None else target
        z, y, x = (np.array(inner_voxel(self.mask(row), wanted - corner)) + corner).tolist()
        return z, y, x


def neck(scene: Scene, row: int) -> Reason | None:
    """A merge: two bodies joined by a narrow neck."""
    limits, ratio = scene.limits(row), float(scene.table["neck_ratio"][row])
    if limits.max_neck_ratio is None or limits.min_persistence_nm is None or ratio > limits.max_neck_ratio:
        return None
    persistence_nm = weakest_neck(fragment(scene.mask(row, margin=1), scene.voxel_nm)).persistence_nm
    if persistence_nm < limits.min_persistence_nm:
        return None
    text = f"neck {ratio:.0%} as wide as the thinner body that it joins (limit {limits.max_neck_ratio:.0%})"
    text += f", {2 * persistence_nm:.0f} nm narrower"
    decision = scene.decision_of.get(int(scene.table["id"][row]))
    if decision is not None and not decision.is_split:
        text += "; considered and not cut by lpa.split"
    numbers = {"neck_ratio": ratio, "persistence_nm": persistence_nm}
    return Reason("neck", text, numbers, _risk_below(ratio, limits.max_neck_ratio))


def hollow_hull(scene: Scene, row: int) -> Reason | None:
    """A merge: an instance that fills little of its convex hull. A plane cuts convex bodies into convex bodies."""
    limit = scene.limits(row).min_solidity
    if limit is None:
        return None
    share = solidity(scene.mask(row), scene.voxel_nm)
    if share >= limit:
        return None
    text = f"fills {share:.0%} of its convex hull (limit {limit:.0%})"
    return Reason("solidity", text, {"solidity": share}, _risk_below(share, limit))


def volume_outliers(scene: Scene) -> dict[int, Reason]:
    """Merges, by row: far above the log-normal distribution of the organelle's volumes (median and MAD of the logs).

    The distribution is that of whole instances (no crumbs, not cut by the border); without enough of them nothing is
    an outlier. An outlier also has at least twice the median: two typical instances in one.
    """
    table = scene.table
    found: dict[int, Reason] = {}
    volumes = np.asarray(table["volume_nm3"], np.float64)
    for organelle, limits in scene.thresholds.items():
        own = np.asarray(table["organelle"]) == organelle.value
        distribution = whole_volumes(table, organelle, limits.min_volume_nm3)
        if limits.max_sigmas is None or len(distribution) < FEWEST_FOR_OUTLIERS:
            continue
        median, sigma = robust_log_normal(distribution)
        for row in np.flatnonzero(own & (volumes >= 2 * median)).tolist():
            times = float(volumes[row] / median)
            sigmas = math.log(times) / max(sigma, 0.05)  # equal volumes would make the smallest difference infinite
            if sigmas > limits.max_sigmas:
                text = f"{times:.1f} times the median volume, {sigmas:.1f} robust standard deviations of log volume"
                text += f" (limit {limits.max_sigmas:g})"
                numbers = {"times_median": times, "sigmas": sigmas}
                found[row] = Reason("volume", text, numbers, _risk_above(sigmas, limits.max_sigmas))
    return found


def whole_volumes(table: Mapping[str, Any], organelle: Organelle, min_volume_nm3: float) -> npt.NDArray[np.float64]:
    """Volumes in nm^3 of the instances of an organelle that are neither crumbs nor cut by the border."""
    volumes = np.asarray(table["volume_nm3"], np.float64)
    own = np.asarray(table["organelle"]) == organelle.value
    whole = ~np.asarray(table["touches_border"], bool)
    return np.asarray(volumes[own & whole & (volumes >= min_volume_nm3)], np.float64)


def robust_log_normal(volumes_nm3: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Median, and the standard deviation of log volume from the median absolute deviation (1.4826 MAD)."""
    logs = np.log(volumes_nm3)
    middle = float(np.median(logs))
    return math.exp(middle), 1.4826 * float(np.median(np.abs(logs - middle)))


def wide_contacts(scene: Scene) -> dict[int, SplitSign]:
    """Splits, by row of the smaller instance: a contact with its own organelle that is wide for its size.

    The radius of a contact is that of a disc of its area; the radius of an instance is 3 volume / surface, exact for a
    ball. Two balls that just touch have a ratio near 0, one ball cut in half 1.5, a tube cut across 0.7.
    """
    table = scene.table
    found: dict[int, SplitSign] = {}
    touching = contacts(scene.volume, scene.voxel_nm)
    for (a, b), area, centre in zip(touching.pair.tolist(), touching.area_nm2.tolist(), touching.centre, strict=True):
        small, large = sorted((scene.row_of[a], scene.row_of[b]), key=lambda row: (table["volume_nm3"][row], -row))
        if scene.organelle(small) is not scene.organelle(large):
            continue
        limit = scene.limits(small).min_contact_ratio
        ratio = math.sqrt(area / math.pi) / (3 * float(table["volume_nm3"][small] / table["surface_nm2"][small]))
        best = found.get(small)
        if ratio < limit or (best is not None and best.reason.numbers["contact_ratio"] >= ratio):
            continue
        neighbour = int(table["id"][large])
        text = f"touches {neighbour} over {area:,.0f} nm², {ratio:.2f} of its own radius (limit {limit:g})"
        numbers = {"contact_ratio": ratio, "contact_nm2": area}
        found[small] = SplitSign(Reason("contact", text, numbers, _risk_above(ratio, limit)), neighbour, centre)
    return found


def across_gap(scene: Scene, row: int) -> SplitSign | None:
    """A split: a larger instance of the same organelle lies just beyond a gap and, for compact ones, in line."""
    limits, table = scene.limits(row), scene.table
    if limits.min_alignment is not None and table["elongation"][row] < MIN_ELONGATION:
        return None
    reach_nm = max(limits.max_gap_nm, 2.1 * max(scene.voxel_nm))
    touched = set(table["neighbours"][row])
    rank = (float(table["volume_nm3"][row]), -row)

    def is_candidate(other: int) -> bool:
        there = scene.row_of[other]
        is_larger = (float(table["volume_nm3"][there]), -there) > rank
        return is_larger and table["organelle"][there] == table["organelle"][row] and other not in touched

    id_ = int(table["id"][row])
    gap = nearest_across_gap(scene.volume, scene.box(row), id_, is_candidate, reach_nm, scene.voxel_nm)
    if gap is None or (limits.min_alignment is not None and gap.alignment < limits.min_alignment):
        return None
    text = f"{gap.distance_nm:.0f} nm from {gap.neighbour}, voxel centre to voxel centre (limit {reach_nm:.0f} nm)"
    numbers = {"gap_nm": gap.distance_nm}
    if limits.min_alignment is not None:
        text += f", and in line with it: cosine {gap.alignment:.2f} (limit {limits.min_alignment:g})"
        numbers["alignment"] = gap.alignment
    reason = Reason("gap", text, numbers, _risk_below(gap.distance_nm, reach_nm))
    return SplitSign(reason, gap.neighbour, np.array(gap.middle))


def doubtful_cut(scene: Scene, row: int) -> SplitSign | None:
    """A split: ``lpa.split`` cut here although the neck is not much narrower than the bodies. For the smaller parts."""
    id_, limit = int(scene.table["id"][row]), scene.limits(row).max_neck_ratio
    decision = scene.decision_of.get(id_)
    if decision is None or not decision.is_split or limit is None or decision.neck_ratio < 0.6 * limit:
        return None
    largest = max(decision.child_ids, key=lambda child: (scene.table["volume_nm3"][scene.row_of[child]], -child))
    if largest == id_:
        return None
    text = f"cut from {largest} by lpa.split at a neck {decision.neck_ratio:.0%} as wide as the thinner body"
    numbers = {"cut_neck_ratio": decision.neck_ratio, "cut_persistence_nm": decision.persistence_nm}
    middle = np.asarray(scene.table["centroid_nm"][scene.row_of[largest]]) / scene.voxel_nm - 0.5
    return SplitSign(Reason("cut", text, numbers, _risk_above(decision.neck_ratio, 0.6 * limit)), largest, middle)


def small(scene: Scene, row: int) -> Reason | None:
    """A crumb: below the smallest volume of its organelle. The border may make a piece small: no crumb there."""
    volume, limit = float(scene.table["volume_nm3"][row]), scene.limits(row).min_volume_nm3
    if volume >= limit or scene.table["touches_border"][row]:
        return None
    text = f"{volume_text(volume)}, below the smallest {scene.organelle(row)} ({volume_text(limit)})"
    return Reason("small", text, {"volume_nm3": volume}, _risk_below(volume, limit))


def cut_by_border(scene: Scene, row: int) -> Reason | None:
    """The border of the volume cuts it: its size is a lower bound. Nothing to correct, so no risk."""
    if not scene.table["touches_border"][row]:
        return None
    box, names = scene.table["bbox"][row], []
    for axis, (name, size) in enumerate(zip("zyx", scene.volume.shape, strict=True)):
        names += [f"{name} = 0"] * bool(box[axis] == 0) + [f"{name} = {size - 1}"] * bool(box[axis + 3] == size)
    return Reason("border", f"cut by the border at {', '.join(names)}", {"sides": float(len(names))}, 0.0)


def split_signs(scene: Scene, row: int, contact: SplitSign | None) -> Iterator[SplitSign]:
    """All signs that an instance is a part of another one."""
    yield from (sign for sign in (contact, doubtful_cut(scene, row), across_gap(scene, row)) if sign is not None)


def volume_text(nm3: float) -> str:
    """Write a volume with its unit."""
    return f"{nm3 / 1e9:.3g} µm³" if nm3 >= 1e7 else f"{nm3:,.0f} nm³"


def _risk_below(value: float, limit: float) -> float:
    return 1.0 - 0.5 * value / limit


def _risk_above(value: float, limit: float) -> float:
    return 1.0 - 0.5 * limit / value
