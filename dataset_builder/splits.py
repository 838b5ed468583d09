"""Who trains and who is tested: parts, folds and domains (``leaks`` checks the result).

* **part**: ``homogeneous`` is one kind of acquisition by a declared rule, everything else is ``heterogeneous``; the
  published split ``wild`` is both.
* **domain**: ``out`` - the whole specimen group is held out of training, the question of the wild benchmark; ``in`` -
  the specimen also trains, from slabs separated by a gap, the control (as WILDS pairs its splits).
* **fold**: train, validation or test.

Folds are slabs along the acquisition axis z. Slices along y and x, which cross all slabs, are cut to the z-range of one
slab each: what lies in a gap is in no image, so the folds of a volume stay apart whatever the axis. Volumes that lie in
one frame (``Volume.frame``), as crops of one data set do, are cut at common positions (``frames``).

Where a source publishes a division, it is followed: a volume that is published for validation or for test is that as a
whole, and one for training trains. Only where the source publishes nothing for validation, a part of the training is
cut off for it (``siblings`` tells each volume which it is).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from dataset_builder import frames
from em_bench_eval.errors import InputError, did_you_mean
from em_bench_eval.schema import Axis, Domain, Fold, Volume, VoxelSize

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
    slices between them; what the source itself publishes for validation or test replaces the slab of that fold. The
    same shares divide the volumes of a frame together, so one of them may lie in one fold as a whole.
    """

    gap_nm: float = 40.0
    train_share: float = 0.6
    validation_share: float = 0.15
    smallest_train_slab: int = 3  # slices; a volume with less room than this beside its gaps trains as a whole
    held_out: frozenset[str] = frozenset()  # specimen groups moved to domain "out" by the maintainer
    axes: Axes = "acquisition"  # "all": isotropic volumes are sliced along z, y and x
    smallest_cut: int = 32  # slices; a y or x image of a thinner slab would be a strip

    def domain_of(self, volume: Volume) -> Domain:
        """Return the domain of a volume."""
        return "out" if volume.specimen in self.held_out else volume.domain

    def slabs_of(self, volume: Volume) -> list[Slab]:
        """Return the slabs of a volume along z, in order; slices in a gap are in none, nor those without an image."""
        count = int(volume.image.shape[0])
        if not volume.has_image:
            return []  # labels alone make no rows
        if fold := self._whole_fold(volume):
            return [Slab(fold, 0, count)]
        if ranges := self.ranges_of(volume):
            slabs = _slabs_in(volume, ranges)
        else:
            gap, shares = _gap_slices(self.gap_nm, volume.voxel_size.z), self._shares(volume)
            room = count >= self.smallest_train_slab + (len(shares) - 1) * (gap + 1)
            slabs = _slabs(count, gap, shares) if room else [Slab("train", 0, count)]
        return [piece for slab in slabs for piece in _beside_published(volume, slab, self.gap_nm)]

    def ranges_of(self, volume: Volume) -> Sequence[frames.Range]:
        """Return where the frame of a volume is cut; nothing for a volume that is not cut together with others."""
        if volume.frame is None or len(volume.frame.spans) == 1:
            return ()
        shares = tuple(self._shares(volume))
        if self._whole_fold(volume) or len(shares) == 1:
            return ()
        return frames.cut(volume.frame.spans, shares, self.gap_nm, self.smallest_train_slab)

    def _whole_fold(self, volume: Volume) -> Fold | None:
        """Return the fold of a volume that is in one as a whole, whatever its size."""
        if self.domain_of(volume) == "out":
            return "test"
        return None if volume.published_fold == "train" else volume.published_fold

    def _shares(self, volume: Volume) -> list[tuple[Fold, float]]:
        shares: list[tuple[Fold, float]] = [("train", self.train_share)]
        if volume.published_fold is None or not volume.validation_published:
            shares.append(("validation", self.validation_share))
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

    def check_held_out(self, specimens: Iterable[str]) -> None:
        """Raise ``InputError`` if no volume is of a held-out specimen group; asks for no more volumes than needed."""
        missing, seen = set(self.held_out), set[str]()
        for specimen in specimens if missing else ():
            missing.discard(specimen)
            if not missing:
                return
            seen.add(specimen)
        if missing:
            name = min(missing)
            raise InputError(
                "no volume is of a specimen group that is to be held out",
                found=", ".join(sorted(missing)),
                expected=f"--hold-out with one of {', '.join(sorted(seen)) or '(there are no volumes)'}",
                remedy=f"{did_you_mean(name, seen)}em-bench build ... --dry-run shows the group of every volume",
            )

    def only_z(self, voxel_size: VoxelSize, slabs: Iterable[Slab]) -> str | None:
        """Say why a volume has no images along y and x although they are asked for; ``None`` if it has, or need not."""
        if self.axes != "all":
            return None
        if not voxel_size.is_isotropic:
            return "voxels are not isotropic"
        thickest = max((slab.stop - slab.start for slab in slabs), default=0)
        return None if thickest >= self.smallest_cut else f"slabs are thinner than {self.smallest_cut} slices"

    def as_json(self) -> dict[str, object]:
        """Return the settings as they are published."""
        names = [entry.name for entry in fields(SplitPolicy)]
        return {name: getattr(self, name) for name in names} | {"held_out": sorted(self.held_out)}


def part_of(volume: Volume) -> Part:
    """Apply the declared rule: isotropic FIB-SEM of at most 8 nm with every voxel annotated is homogeneous.

    Homogeneous is in-domain by construction: what its source holds out is not.
    """
    fine = volume.voxel_size.is_isotropic and max(volume.voxel_size) <= 8.0
    alike = volume.modality == "FIB-SEM" and fine and volume.domain == "in"
    return "homogeneous" if alike and volume.ignore is None else "heterogeneous"


def place_of(volume: Volume) -> dict[str, Any]:
    """Return the frame of a volume and where in it the volume lies, as JSON."""
    assert volume.frame is not None
    assert volume.origin_nm is not None
    return {"name": volume.frame.name, "origin_nm": [float(nm) for nm in volume.origin_nm]}


def _gap_slices(gap_nm: float, slice_nm: float) -> int:
    return math.ceil(gap_nm / slice_nm * (1 - frames.ROUNDED))


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


def _beside_published(volume: Volume, slab: Slab, gap_nm: float) -> list[Slab]:
    """Return the pieces of a slab that keep the gap from what the source publishes for other folds in the frame."""
    pieces = [slab]
    for box in volume.frame.published if volume.frame else ():
        if box.fold != slab.fold:
            near = frames.near_slices(volume, box, gap_nm)
            pieces = [piece for one in pieces for piece in _without(one, *near)]
    return pieces


def _without(slab: Slab, start: int, stop: int) -> list[Slab]:
    """Cut the slices ``start`` to ``stop`` out of a slab."""
    pieces = [replace(slab, stop=min(slab.stop, start)), replace(slab, start=max(slab.start, stop))]
    return [piece for piece in pieces if piece.start < piece.stop] if start < stop else [slab]
