"""Who trains and who is tested: parts, folds and domains (``leaks`` checks the result).

* **part**: ``homogeneous`` is one kind of acquisition by a declared rule, everything else is ``heterogeneous``; the
  published split ``wild`` is both.
* **domain**: ``out`` - the whole specimen group is held out of training, the question of the wild benchmark; ``in`` -
  the specimen also trains, from slabs separated by a gap, the control (as WILDS pairs its splits).
* **fold**: train, validation or test.

Folds are slabs along the acquisition axis z. Slices along y and x, which cross all slabs, are cut to the z-range of one
slab each: what lies in a gap is in no image, so the folds of a volume stay apart whatever the axis. Volumes that lie in
one frame (``Volume.frame``), as crops of one data set do, are cut at common positions (``frames``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from dataset_builder import frames
from em_bench_eval.schema import Axis, Domain, Fold, Volume

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
    slices between them; a source's own train/test division replaces the test slab. The same shares divide the volumes
    of a frame together, so one of them may lie in one fold as a whole.
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
        if ranges := self.ranges_of(volume):
            return _slabs_in(volume, ranges)
        gap, shares = _gap_slices(self.gap_nm, volume.voxel_size.z), self._shares(volume)
        if count < self.smallest_train_slab + (len(shares) - 1) * (gap + 1):
            return [Slab("train", 0, count)]
        return _slabs(count, gap, shares)

    def ranges_of(self, volume: Volume) -> Sequence[frames.Range]:
        """Return where the frame of a volume is cut; nothing for a volume that is not cut together with others."""
        if volume.frame is None or len(volume.frame.spans) == 1:
            return ()
        if self.domain_of(volume) == "out" or volume.published_fold == "test":
            return ()
        shares = tuple(self._shares(volume))
        return frames.cut(volume.frame.spans, shares, self.gap_nm, self.smallest_train_slab)

    def _shares(self, volume: Volume) -> list[tuple[Fold, float]]:
        shares: list[tuple[Fold, float]] = [("train", self.train_share), ("validation", self.validation_share)]
        if volume.published_fold is None:
            shares.append(("test", 1.0 - self.train_share - self.validation_share))
        return shares

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
        entry = {**self.facts_of(volume), "domain": self.domain_of(volume), "slabs": slabs}
        return entry if volume.frame is None else {**entry, "frame": self.frame_entry_of(volume)}

    def frame_entry_of(self, volume: Volume) -> dict[str, Any]:
        """Return what ``splits.json`` says of where a volume lies, and of where its frame is cut."""
        ranges = self.ranges_of(volume)
        return place_of(volume) | ({"folds_nm": [one.as_json() for one in ranges]} if ranges else {})

    @property
    def leak_remedy(self) -> str:
        """What to do about a split that leaks."""
        return "hold out whole specimen groups (--hold-out), widen --gap-nm, or drop the duplicated source"

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


def place_of(volume: Volume) -> dict[str, Any]:
    """Return the frame of a volume and where in it the volume lies, as JSON."""
    assert volume.frame is not None
    assert volume.origin_nm is not None
    return {"name": volume.frame.name, "origin_nm": [float(nm) for nm in volume.origin_nm]}


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


def _slabs_in(volume: Volume, ranges: Sequence[frames.Range]) -> list[Slab]:
    """Return the slabs of a volume in the ranges of its frame; it may have none in some."""
    assert volume.span is not None
    slabs = []
    for fold, low_nm, high_nm in ranges:
        start, stop = map(int, frames.slices_within(volume.span, low_nm, high_nm))
        slabs += [Slab(fold, start, stop)] if start < stop else []
    return slabs
