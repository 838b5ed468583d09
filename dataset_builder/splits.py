"""Who trains and who is tested: parts, folds, domains, and the check that nothing leaks.

* **part**: ``homogeneous`` is one kind of acquisition by a declared rule, everything else is ``heterogeneous``; the
  published split ``wild`` is both.
* **domain**: ``out`` - the whole specimen group is held out of training, the question of the wild benchmark; ``in`` -
  the specimen also trains, from slabs separated by a gap, the control (as WILDS pairs its splits).
* **fold**: train, validation or test.

Folds are slabs along the acquisition axis z. Slices along y and x, which cross all slabs, are cut to the z-range of one
slab each: what lies in a gap is in no image, so the folds of a volume stay apart whatever the axis.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal

from dataset_builder.fingerprint import near_pairs
from em_bench_eval.errors import InputError
from em_bench_eval.schema import FOLDS, Axis, Domain, Fold, Volume

Part = Literal["homogeneous", "heterogeneous"]
PARTS: tuple[Part, ...] = ("homogeneous", "heterogeneous")


Axes = Literal["acquisition", "all"]


@dataclass(frozen=True)
class Slab:
    """Slices ``start`` to ``stop`` (exclusive) of a volume, all in one fold."""

    fold: Fold
    start: int
    stop: int


@dataclass(frozen=True)
class SplitPolicy:
    """How a volume is divided. The numbers are written into ``stats.json``, ``splits.json`` and the card.

    A volume of domain ``in`` is cut along its slices into train, validation and test slabs with ``gap_nm`` of dropped
    slices between them; a source's own train/test division replaces the test slab.
    """

    gap_nm: float = 40.0
    train_share: float = 0.6
    validation_share: float = 0.15
    smallest_train_slab: int = 3  # slices; a volume with less room than this beside its gaps trains as a whole
    held_out: frozenset[str] = frozenset()  # specimen groups moved to domain "out" by the maintainer
    axes: Axes = "acquisition"  # "all": isotropic volumes are sliced along z, y and x
    smallest_cut: int = 32  # slices; a y or x image of a thinner slab would be a strip

    def domain_of(self, volume: Volume) -> Domain:
        """Return the domain of a volume; a homogeneous volume is in-domain by construction."""
        if volume.specimen in self.held_out:
            return "out"
        return "in" if part_of(volume) == "homogeneous" else volume.domain

    def slabs_of(self, volume: Volume) -> list[Slab]:
        """Return the slabs of a volume along z, in order; slices in a gap are in none, nor those without an image."""
        count = int(volume.image.shape[0])
        if not volume.has_image:
            return []  # labels alone make no rows
        if self.domain_of(volume) == "out" or volume.published_fold == "test":
            return [Slab("test", 0, count)]
        gap = _gap_slices(self.gap_nm, volume.voxel_size.z)
        shares: list[tuple[Fold, float]] = [("train", self.train_share), ("validation", self.validation_share)]
        if volume.published_fold is None:
            shares.append(("test", 1.0 - self.train_share - self.validation_share))
        if count < self.smallest_train_slab + (len(shares) - 1) * (gap + 1):
            return [Slab("train", 0, count)]
        return _slabs(count, gap, shares)

    def folds_of(self, volume: Volume) -> dict[int, Fold]:
        """Return the fold of every published slice ``{z: fold}``; slices in a gap are left out."""
        return {z: slab.fold for slab in self.slabs_of(volume) for z in range(slab.start, slab.stop)}

    def axes_of(self, volume: Volume) -> tuple[Axis, ...]:
        """Return the axes along which a volume is sliced: z, and where it is isotropic and they are asked for, y, x."""
        return ("z", "y", "x") if self.axes == "all" and volume.voxel_size.is_isotropic else ("z",)

    def facts_of(self, volume: Volume) -> dict[str, object]:
        """Return what the division of a volume rests on."""
        return {
            "source": volume.source,
            "specimen": volume.specimen,
            "part": part_of(volume),
            "slices": int(volume.image.shape[0]),
        }

    def entry_of(self, volume: Volume) -> dict[str, object]:
        """Return what ``splits.json`` says of a volume."""
        slabs = [[slab.fold, slab.start, slab.stop] for slab in self.slabs_of(volume)]
        return {**self.facts_of(volume), "domain": self.domain_of(volume), "slabs": slabs}

    def check_complete(self, volume_ids: Iterable[str]) -> None:
        """Accept any volumes: a rule divides whatever there is."""

    def as_json(self) -> dict[str, object]:
        """Return the settings as they are published."""
        names = [entry.name for entry in fields(SplitPolicy)]
        return {name: getattr(self, name) for name in names} | {"held_out": sorted(self.held_out)}


def part_of(volume: Volume) -> Part:
    """Apply the declared rule: isotropic FIB-SEM of at most 8 nm with every voxel annotated is homogeneous."""
    fine = volume.voxel_size.is_isotropic and max(volume.voxel_size) <= 8.0
    return "homogeneous" if volume.modality == "FIB-SEM" and fine and volume.ignore is None else "heterogeneous"


def _gap_slices(gap_nm: float, slice_nm: float) -> int:
    return math.ceil(gap_nm / slice_nm - 1e-9)


def _slabs(count: int, gap: int, shares: list[tuple[Fold, float]]) -> list[Slab]:
    """Cut ``count`` slices into slabs in proportion to ``shares``, ``gap`` slices apart, at least one slice each."""
    left = count - gap * (len(shares) - 1)
    total = sum(share for _, share in shares)
    sizes = [max(1, round(left * share / total)) for _, share in shares]
    sizes[0] = left - sum(sizes[1:])
    slabs = []
    start = 0
    for (fold, _), size in zip(shares, sizes, strict=True):
        slabs.append(Slab(fold, start, start + size))
        start += size + gap
    return slabs


@dataclass(frozen=True, slots=True)
class Placed:
    """What the leak check needs to know of a row; a large dataset has very many."""

    volume_id: str
    slice: int
    slice_nm: float
    specimen: str
    fold: Fold
    domain: Domain
    fingerprint: int | None  # ``fingerprint.perceptual_hash``; None for a blank image
    axis: Axis = "z"
    z_range: tuple[int, int] | None = None  # slices along z that the image covers; None: slice to slice + 1

    @property
    def covers(self) -> tuple[int, int]:
        """Slices along z that the image covers, half-open."""
        return self.z_range or (self.slice, self.slice + 1)


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
    """Compare what the images of each fold cover along z, whatever the axis they were sliced along."""
    volumes: dict[str, dict[tuple[int, int, Fold], float]] = defaultdict(dict)
    for row in rows:
        volumes[row.volume_id][(*row.covers, row.fold)] = row.slice_nm
    faults = []
    for name, covered in volumes.items():
        last: dict[Fold, int] = {}  # one beyond the last slice so far
        for (start, stop, fold), slice_nm in sorted(covered.items()):
            for other, end in last.items():
                if other != fold and start - end < _gap_slices(gap_nm, slice_nm):
                    apart_nm = max(0, start - end) * slice_nm
                    faults.append(f"{name}: slices {end - 1} and {start} are {apart_nm:g} nm apart, not {gap_nm:g}")
            last[fold] = max(stop, last.get(fold, 0))
    return faults


def _duplicate_leaks(rows: list[Placed]) -> list[str]:
    # one image of each kind is enough: a thousand equal images would be a million pairs
    kinds = {
        (row.fold, row.fingerprint): (row, row.fingerprint) for row in reversed(rows) if row.fingerprint is not None
    }
    usable = list(kinds.values())[::-1]
    folds = [FOLDS.index(row.fold) for row, _ in usable]
    faults = []
    for one, other in near_pairs([fingerprint for _, fingerprint in usable], folds):
        first, second = (_name(usable[place][0]) for place in (one, other))
        faults.append(f"{first} looks like {second}")
    return faults


def _name(row: Placed) -> str:
    axis = "" if row.axis == "z" else f" along {row.axis}"
    return f"{row.volume_id} slice {row.slice}{axis} ({row.fold})"
