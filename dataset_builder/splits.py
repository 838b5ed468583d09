"""Who trains and who is tested: parts, folds, domains, and the check that nothing leaks.

* **part**: ``homogeneous`` is one kind of acquisition by a declared rule, everything else is ``heterogeneous``; the
  published split ``wild`` is both.
* **domain**: ``out`` - the whole specimen group is held out of training, the question of the wild benchmark; ``in`` -
  the specimen also trains, from slabs separated by a gap, the control (as WILDS pairs its splits).
* **fold**: train, validation or test.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dataset_builder.fingerprint import near_pairs
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Domain, Fold, Volume

Part = Literal["homogeneous", "heterogeneous"]
PARTS: tuple[Part, ...] = ("homogeneous", "heterogeneous")


@dataclass(frozen=True)
class SplitPolicy:
    """How a volume is divided. The numbers are written into ``stats.json`` and the card.

    A volume of domain ``in`` is cut along its slices into train, validation and test slabs with ``gap_nm`` of dropped
    slices between them; a source's own train/test division replaces the test slab.
    """

    gap_nm: float = 40.0
    train_share: float = 0.6
    validation_share: float = 0.15
    smallest_train_slab: int = 3  # slices; a volume with less room than this beside its gaps trains as a whole
    held_out: frozenset[str] = frozenset()  # specimen groups moved to domain "out" by the maintainer

    def domain_of(self, volume: Volume) -> Domain:
        """Return the domain of a volume; a homogeneous volume is in-domain by construction."""
        if volume.specimen in self.held_out:
            return "out"
        return "in" if part_of(volume) == "homogeneous" else volume.domain

    def folds_of(self, volume: Volume) -> dict[int, Fold]:
        """Return the fold of every published slice ``{z: fold}``; slices in a gap are left out."""
        count = int(volume.image.shape[0])
        if self.domain_of(volume) == "out" or volume.published_fold == "test":
            return dict.fromkeys(range(count), "test")
        gap = _gap_slices(self.gap_nm, volume.voxel_size.z)
        shares: list[tuple[Fold, float]] = [("train", self.train_share), ("validation", self.validation_share)]
        if volume.published_fold is None:
            shares.append(("test", 1.0 - self.train_share - self.validation_share))
        if count < self.smallest_train_slab + (len(shares) - 1) * (gap + 1):
            return dict.fromkeys(range(count), "train")
        return _slabs(count, gap, shares)


def part_of(volume: Volume) -> Part:
    """Apply the declared rule: isotropic FIB-SEM of at most 8 nm with every voxel annotated is homogeneous."""
    fine = volume.voxel_size.is_isotropic and max(volume.voxel_size) <= 8.0
    return "homogeneous" if volume.modality == "FIB-SEM" and fine and volume.ignore is None else "heterogeneous"


def _gap_slices(gap_nm: float, slice_nm: float) -> int:
    return math.ceil(gap_nm / slice_nm - 1e-9)


def _slabs(count: int, gap: int, shares: list[tuple[Fold, float]]) -> dict[int, Fold]:
    """Cut ``count`` slices into slabs in proportion to ``shares``, ``gap`` slices apart, at least one slice each."""
    left = count - gap * (len(shares) - 1)
    total = sum(share for _, share in shares)
    sizes = [max(1, round(left * share / total)) for _, share in shares]
    sizes[0] = left - sum(sizes[1:])
    folds: dict[int, Fold] = {}
    start = 0
    for (fold, _), size in zip(shares, sizes, strict=True):
        folds.update(dict.fromkeys(range(start, start + size), fold))
        start += size + gap
    return folds


@dataclass(frozen=True)
class Placed:
    """What the leak check needs to know of a row."""

    volume_id: str
    slice: int
    slice_nm: float
    specimen: str
    fold: Fold
    domain: Domain
    fingerprint: int | None  # ``fingerprint.perceptual_hash``; None for a blank image


def check_leaks(rows: Iterable[Placed], gap_nm: float) -> None:
    """Raise ``InputError`` that lists every way in which test data is also training data.

    Checked: a specimen group with out-of-domain rows that also trains; slabs of one volume closer than the gap;
    near-duplicate images in different folds.
    """
    rows = list(rows)
    faults = [*_specimen_leaks(rows), *_gap_leaks(rows, gap_nm), *_duplicate_leaks(rows)]
    if faults:
        raise InputError(
            f"the split leaks in {len(faults)} place{'s'[: len(faults) > 1]}",
            found="\n    " + "\n    ".join(faults[:10]) + ("\n    ..." if len(faults) > 10 else ""),
            expected="no specimen, neighbourhood or image on both sides of the split",
            remedy="hold out whole specimen groups (--hold-out), widen --gap-nm, or drop the duplicated source",
        )


def _specimen_leaks(rows: list[Placed]) -> list[str]:
    held_out = {row.specimen for row in rows if row.domain == "out"}
    trains = {row.specimen for row in rows if row.domain == "in" or row.fold != "test"}
    return [f"specimen group {name} is held out and also trains" for name in sorted(held_out & trains)]


def _gap_leaks(rows: list[Placed], gap_nm: float) -> list[str]:
    faults = []
    volumes: dict[str, list[Placed]] = defaultdict(list)
    for row in rows:
        volumes[row.volume_id].append(row)
    for name, placed in volumes.items():
        placed.sort(key=lambda row: row.slice)
        for below, above in itertools.pairwise(placed):
            between = above.slice - below.slice - 1
            if below.fold != above.fold and between < _gap_slices(gap_nm, above.slice_nm):
                apart_nm = between * above.slice_nm
                faults.append(
                    f"{name}: slices {below.slice} and {above.slice} are {apart_nm:g} nm apart, not {gap_nm:g}"
                )
    return faults


def _duplicate_leaks(rows: list[Placed]) -> list[str]:
    usable = [(row, row.fingerprint) for row in rows if row.fingerprint is not None]
    faults = []
    for one, other in near_pairs([fingerprint for _, fingerprint in usable]):
        a, b = usable[one][0], usable[other][0]
        if a.fold != b.fold:
            first, second = (f"{row.volume_id} slice {row.slice} ({row.fold})" for row in (a, b))
            faults.append(f"{first} looks like {second}")
    return faults
