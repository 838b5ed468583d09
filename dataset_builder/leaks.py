"""The check that nothing leaks: no specimen, neighbourhood or image is on both sides of a split.

Of the neighbourhood, two things are compared: what the images of each fold cover along z of one volume; and, over all
volumes that lie in one frame, the boxes that the folds cover in three dimensions - a crop may be part of another.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dataset_builder.fingerprint import near_pairs
from dataset_builder.frames import ROUNDED
from em_bench_eval.errors import InputError
from em_bench_eval.schema import FOLDS, Axis, Domain, Fold

FACE = 1e-5  # of a slice: a gap may be too small by this much, for sizes rounded in the metadata
Vector = tuple[float, float, float]  # (z, y, x), nm


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


@dataclass(frozen=True)
class Site:
    """Where a whole volume lies in its frame."""

    frame: str
    origin_nm: Vector  # lower corner
    size_nm: Vector

    @classmethod
    def of(cls, frame: str, origin_nm: Sequence[float], shape: Sequence[int], voxel_size_nm: Iterable[float]) -> Site:
        """Return the place of a volume of ``shape`` voxels; all ``(z, y, x)``."""
        z_nm, y_nm, x_nm = origin_nm
        z, y, x = (int(edge) * nm for edge, nm in zip(shape, voxel_size_nm, strict=True))
        return cls(frame, (z_nm, y_nm, x_nm), (z, y, x))


class Stretch(NamedTuple):
    """Slices ``start`` to ``stop`` (exclusive) along z of a volume that images of one fold cover."""

    volume_id: str
    fold: Fold
    start: int
    stop: int
    slice_nm: float

    def __str__(self) -> str:
        last = self.stop - 1
        slices = f"slice {last}" if last == self.start else f"slices {self.start} to {last}"
        return f"{self.volume_id} {slices} ({self.fold})"


def check_leaks(
    rows: Iterable[Placed], gap_nm: float, sites: Mapping[str, Site] | None = None, remedy: str = ""
) -> None:
    """Raise ``InputError`` that lists every way in which test data is also training data.

    Checked: a specimen group with out-of-domain rows that also trains; slabs of one volume, and boxes of the volumes of
    one frame, in different folds and closer than the gap; near-duplicate images in different folds.

    Args:
        rows: where the images of the whole dataset lie.
        gap_nm: what has to be between two folds.
        sites: the volumes whose place in a frame is known, by ``volume_id``.
        remedy: what the maintainer can do about a leak.
    """
    rows = list(rows)
    gap_nm *= 1 - ROUNDED
    volumes = _stretches(rows)
    faults = [
        *_specimen_leaks(rows),
        *(fault for stretches in volumes.values() for fault in _gap_leaks(stretches, gap_nm)),
        *_frame_leaks(volumes, gap_nm, sites or {}),
        *_duplicate_leaks(rows),
    ]
    if faults:
        raise InputError(
            f"the split leaks in {len(faults)} place{'s'[: len(faults) > 1]}",
            found="\n    " + "\n    ".join(faults[:10]) + ("\n    ..." if len(faults) > 10 else ""),
            expected="no specimen, neighbourhood or image on both sides of the split",
            remedy=remedy,
        )


def _specimen_leaks(rows: Sequence[Placed]) -> list[str]:
    held_out = {row.specimen for row in rows if row.domain == "out"}
    trains = {row.specimen for row in rows if row.domain == "in" or row.fold != "test"}
    return [f"specimen group {name} is held out and also trains" for name in sorted(held_out & trains)]


def _stretches(rows: Iterable[Placed]) -> dict[str, list[Stretch]]:
    """Merge what rows cover, whatever the axis they were sliced along; rows are very many, stretches are few."""
    covered: dict[str, dict[tuple[Fold, int, int], float]] = defaultdict(dict)
    for row in rows:
        covered[row.volume_id][(row.fold, *row.covers)] = row.slice_nm
    merged: dict[str, list[Stretch]] = {}
    for name, pieces in covered.items():
        found = merged.setdefault(name, [])
        for (fold, start, stop), slice_nm in sorted(pieces.items()):
            if found and found[-1].fold == fold and start <= found[-1].stop:
                found[-1] = found[-1]._replace(stop=max(stop, found[-1].stop))
            else:
                found.append(Stretch(name, fold, start, stop, slice_nm))
    return merged


def _gap_leaks(stretches: Sequence[Stretch], gap_nm: float) -> Iterator[str]:
    """Compare the stretches of one volume."""
    last: dict[Fold, int] = {}  # one beyond the last slice so far
    for name, fold, start, stop, slice_nm in sorted(stretches, key=lambda one: (one.start, one.stop, one.fold)):
        for other, end in last.items():
            if other != fold and (start - end + FACE) * slice_nm < gap_nm:
                apart_nm = max(0, start - end) * slice_nm
                yield f"{name}: slices {end - 1} and {start} are {apart_nm:g} nm apart, not {gap_nm:g}"
        last[fold] = max(stop, last.get(fold, 0))


def _frame_leaks(volumes: Mapping[str, Sequence[Stretch]], gap_nm: float, sites: Mapping[str, Site]) -> Iterator[str]:
    """Compare the stretches of different volumes of one frame, as boxes."""
    in_frame: dict[str, list[Stretch]] = defaultdict(list)
    for name, stretches in volumes.items():
        if name in sites:
            in_frame[sites[name].frame] += stretches
    for frame, found in in_frame.items():
        low = np.array([sites[one.volume_id].origin_nm for one in found], float)
        high = low + np.array([sites[one.volume_id].size_nm for one in found], float)
        slice_nm = np.array([one.slice_nm for one in found])
        high[:, 0] = low[:, 0] + slice_nm * [one.stop for one in found]
        low[:, 0] += slice_nm * [one.start for one in found]
        order = np.lexsort([high[:, 0], low[:, 0]])  # sweep upwards
        low, high, slice_nm, found = low[order], high[order], slice_nm[order], [found[place] for place in order]
        fold = np.array([FOLDS.index(one.fold) for one in found])
        volume = np.unique([one.volume_id for one in found], return_inverse=True)[1]
        reach = np.searchsorted(low[:, 0], high[:, 0] + gap_nm)
        for place, one in enumerate(found):
            above = slice(place + 1, reach[place])
            apart = np.maximum(low[above] - high[place], low[place] - high[above])  # along each axis; below 0: overlap
            allowed = FACE * np.maximum(slice_nm[above], slice_nm[place])
            distance = np.sqrt((apart.clip(0) ** 2).sum(axis=1))
            overlap = (apart < -allowed[:, None]).all(axis=1)
            leaks = (overlap | (distance < gap_nm - allowed)) & (fold[above] != fold[place])
            for other in np.flatnonzero(leaks & (volume[above] != volume[place])):
                how = "overlap" if overlap[other] else f"are {distance[other]:g} nm apart, not {gap_nm:g},"
                yield f"{one} and {found[place + 1 + other]} {how} in {frame}"


def _duplicate_leaks(rows: Sequence[Placed]) -> list[str]:
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
