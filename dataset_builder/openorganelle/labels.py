"""Labels of a volume: one array per structure, each on its own grid, composed to one class and one id per voxel.

A voxel is an organelle, background (every array says that its organelle is absent), or unknown: no array claims it and
at least one does not know or does not reach it. Unknown voxels are ignored.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from dataset_builder.numbering import IdTable
from dataset_builder.openorganelle.grids import Box, Grid
from dataset_builder.openorganelle.images import EmImage
from dataset_builder.openorganelle.layers import Layer, Lazy3D
from em_bench_eval.errors import InputError
from em_bench_eval.schema import Organelle

SURVEY_EDGE = 128  # voxels a side of what is read as one
MASK_VALUES = ({1}, {255})  # the values of an array that is a mask and holds no ids
PARTIAL = ("ne", "lyso")  # structures that are a part of an organelle by a rule: no instances of their own
Ids = Literal["none", "perhaps", "stated"]  # whether the values of an array tell instances apart


@dataclass(frozen=True)
class Encoding:
    """What the values of a label array mean; every other value is the structure (or one of its instances)."""

    absent: frozenset[int] = frozenset({0})
    unknown: frozenset[int] = frozenset()


class Reading(NamedTuple):
    """What one array says of a box; all ``(z, y, x)``."""

    values: npt.NDArray[Any] | None  # as stored; None: nothing but background or unknown
    classes: npt.NDArray[np.uint8] | None  # Organelle.label_id; None with ``values``
    unknown: npt.NDArray[np.bool_] | None  # None: nothing is


@dataclass(frozen=True)
class Part:
    """One array that says where an organelle is, or (``table``) where several are."""

    layer: Layer
    structure: str
    organelle: Organelle | None  # None: by ``table``
    encoding: Encoding = Encoding()
    table: npt.NDArray[np.uint8] | None = None  # value -> Organelle.label_id; value 0 is unknown
    ids: Ids = "none"

    @property
    def array(self) -> str:
        """Name of the array, without its level."""
        return re.sub(r"/s\d+$", "", self.layer.key).rpartition("/")[2]

    def read(self, grid: Grid, box: Box) -> Reading:
        """Read a box of ``grid``."""
        values, unknown = self.sampled(grid, box)
        if values is None or (0 in self.encoding.absent and not values.any()):
            return Reading(None, None, unknown)
        classes = self._classes(values)
        if unknown is not None:
            classes[unknown] = 0
        return Reading(values, classes, unknown)

    def sampled(self, grid: Grid, box: Box) -> tuple[npt.NDArray[Any] | None, npt.NDArray[np.bool_] | None]:
        """Return for each voxel of a box of ``grid`` the stored voxel that holds its centre, and what is unknown."""
        shape = tuple(side.stop - side.start for side in box)
        lookup, inside, ranges = [], [], []
        for axis, side, own in zip(grid.axes, box, self.layer.grid.axes, strict=True):
            nearest = own.nearest(axis.centres_nm(side))
            covered = np.flatnonzero((nearest >= 0) & (nearest < own.size))
            if not len(covered):
                return None, np.ones(shape, bool)
            nearest = nearest[covered]
            low, high = int(nearest[0]), int(nearest[-1]) + 1
            inside.append(slice(int(covered[0]), int(covered[-1]) + 1))
            lookup.append(nearest - low)
            ranges.append(slice(low, high))
        values, _ = self.layer.read((ranges[0], ranges[1], ranges[2]))
        if any(
            len(places) != size or places[-1] + 1 != size for places, size in zip(lookup, values.shape, strict=True)
        ):
            values = values[np.ix_(*lookup)]
        unknown = self._unknown(values)
        if values.shape != shape:  # the array does not reach the whole box
            here = (inside[0], inside[1], inside[2])
            values, stored = np.zeros(shape, values.dtype), values
            values[here] = stored
            unknown, stored_unknown = np.ones(shape, bool), unknown
            unknown[here] = False if stored_unknown is None else stored_unknown
        return values, unknown

    def _classes(self, values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        if self.table is not None:
            return np.asarray(self.table[values.clip(0, len(self.table) - 1).astype(np.uint8)])
        assert self.organelle is not None, "a part has an organelle or a table"
        return np.uint8(self.organelle.label_id) * ~_any_of(values, self.encoding.absent)

    def _unknown(self, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_] | None:
        codes = frozenset({0}) if self.table is not None else self.encoding.unknown
        unknown = _any_of(values, codes) if codes else None
        return unknown if unknown is not None and unknown.any() else None


def _any_of(values: npt.NDArray[Any], wanted: frozenset[int]) -> npt.NDArray[np.bool_]:
    found = np.zeros(values.shape, bool)
    for value in wanted:
        found |= values == value
    return found


@dataclass
class Survey:
    """What one pass over all labels of a volume found, on its grid."""

    voxels: Counter[Organelle] = field(default_factory=Counter)
    overlaps: Counter[tuple[Organelle, Organelle]] = field(default_factory=Counter)  # (winner, loser)
    unknown: int = 0
    without_id: int = 0  # voxels that are an organelle by an array without ids
    values: dict[int, set[int]] = field(default_factory=dict)  # number of the part -> its values that are organelle

    def has_ids(self, number: int, part: Part) -> bool:
        """True if a part's values tell instances apart: that is stated, or they are not those of a mask.

        One nucleus may well have the id 1; in an array that is wider than a mask needs, it is taken for one.
        """
        if part.ids != "perhaps":
            return part.ids == "stated"
        one_nucleus = part.organelle is Organelle.NUCLEUS and part.layer.dtype.itemsize > 1
        return one_nucleus or self.values.get(number, set()) not in MASK_VALUES


class Claim(NamedTuple):
    """What one part says is organelle in a box, and what of it the part gets; all arrays ``(z, y, x)``."""

    number: int
    part: Part
    values: npt.NDArray[Any]  # as stored
    classes: npt.NDArray[np.uint8]  # Organelle.label_id
    takes: npt.NDArray[np.bool_]  # it is this organelle, and no part before claims it


class Composition:
    """All parts of a volume's labels on its grid; earlier organelles of ``precedence`` win."""

    def __init__(self, parts: Sequence[Part], grid: Grid, precedence: Sequence[Organelle]):
        self.grid = grid
        order = {organelle: place for place, organelle in enumerate(precedence)}
        self.parts = tuple(
            sorted(parts, key=lambda part: len(order) if part.organelle is None else order[part.organelle])
        )
        self.precedence = tuple(precedence)

    def claims(self, box: Box, unknown: npt.NDArray[np.bool_] | None = None) -> Iterator[Claim]:
        """Read the parts of a box one after another; each takes what none before it has taken.

        Parts without any organelle there are left out. What a part does not know is marked in ``unknown``.
        """
        free = np.ones([side.stop - side.start for side in box], bool)
        for number, part in enumerate(self.parts):
            reading = part.read(self.grid, box)
            if unknown is not None and reading.unknown is not None:
                unknown |= reading.unknown
            if reading.values is not None and reading.classes is not None:
                yield Claim(number, part, reading.values, reading.classes, (reading.classes > 0) & free)
                free &= reading.classes == 0

    def survey(self, description: str) -> Survey:
        """Read every label once: counts, overlaps, and the values of arrays that may hold ids."""
        found = Survey()
        known = list(Organelle)
        for box in tqdm(list(_blocks(self.grid.shape)), f"{description}: survey of labels", unit="block"):
            claimed: dict[Organelle, npt.NDArray[np.bool_]] = {}
            won = np.zeros([side.stop - side.start for side in box], np.uint8)
            unknown = np.zeros(won.shape, bool)
            for claim in self.claims(box, unknown):
                np.copyto(won, claim.classes, where=claim.takes)
                for label in _distinct(claim.classes[claim.classes > 0]):
                    organelle = known[label - 1]
                    mask = claim.classes == label
                    claimed[organelle] = claimed[organelle] | mask if organelle in claimed else mask
                if claim.part.ids == "none":
                    found.without_id += int(claim.takes.sum())
                else:
                    found.values.setdefault(claim.number, set()).update(_distinct(claim.values[claim.classes > 0]))
            for organelle, mask in claimed.items():
                winners = np.bincount(won[mask], minlength=len(known) + 1).tolist()
                found.voxels[organelle] += winners[organelle.label_id]
                for winner in known:
                    if winner is not organelle and winners[winner.label_id]:
                        found.overlaps[winner, organelle] += winners[winner.label_id]
            found.unknown += int((unknown & (won == 0)).sum())
        return found


def _blocks(shape: tuple[int, int, int]) -> Iterator[Box]:
    starts = [range(0, size, SURVEY_EDGE) for size in shape]
    for z in starts[0]:
        for y in starts[1]:
            for x in starts[2]:
                corner = zip((z, y, x), shape, strict=True)
                depth, height, width = (slice(start, min(start + SURVEY_EDGE, size)) for start, size in corner)
                yield depth, height, width


class Semantic(Lazy3D):
    """The classes of a composition, uint8, values ``Organelle.label_id``."""

    def __init__(self, composition: Composition):
        self.shape, self.dtype = composition.grid.shape, np.dtype(np.uint8)
        self._composition = composition

    def read(self, box: Box) -> npt.NDArray[np.uint8]:
        """Read a box."""
        classes = np.zeros([side.stop - side.start for side in box], np.uint8)
        for claim in self._composition.claims(box):
            np.copyto(classes, claim.classes, where=claim.takes)
        return classes


class Instances(Lazy3D):
    """The published ids of a composition, renumbered so that no two organelles share one; uint32."""

    def __init__(self, composition: Composition, survey: Survey):
        self.shape, self.dtype = composition.grid.shape, np.dtype(np.uint32)
        self._composition = composition
        self._tables: list[IdTable | None] = []
        self.organelle_of: dict[int, Organelle] = {}
        first = 1
        for number, part in enumerate(composition.parts):
            if part.organelle is None or part.ids == "none":
                self._tables.append(None)
                continue
            ids = np.array(sorted(survey.values.get(number, ())), np.uint64)
            if first + len(ids) > np.iinfo(np.uint32).max:
                raise InputError(
                    f"{part.layer.key} holds too many instances", found=len(ids), expected="less than 2^32"
                )
            self._tables.append(IdTable(ids, np.arange(first, first + len(ids), dtype=np.uint32)))
            self.organelle_of.update(dict.fromkeys(range(first, first + len(ids)), part.organelle))
            first += len(ids)

    def read(self, box: Box) -> npt.NDArray[np.uint32]:
        """Read a box."""
        ids = np.zeros([side.stop - side.start for side in box], np.uint32)
        for claim in self._composition.claims(box):
            table = self._tables[claim.number]
            if table is not None:
                ids[claim.takes] = table[claim.values[claim.takes]]
        return ids


class Extra(Lazy3D):
    """The values of one array of a structure outside the five on a volume's grid, 0 where it is absent or unknown."""

    def __init__(self, part: Part, grid: Grid):
        self.shape, self.dtype = grid.shape, np.dtype(f"uint{8 * part.layer.dtype.itemsize}")
        self._part, self._grid = part, grid

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Read a box."""
        values, unknown = self._part.sampled(self._grid, box)
        if values is None:
            return np.zeros([side.stop - side.start for side in box], self.dtype)
        nothing = _any_of(values, self._part.encoding.absent)
        return np.where(nothing if unknown is None else nothing | unknown, 0, values).astype(self.dtype)


class Ignore(Lazy3D):
    """Voxels that are unknown to the labels or missing in the image, bool."""

    def __init__(self, composition: Composition, image: EmImage, without_ids: bool = False):
        self.shape, self.dtype = composition.grid.shape, np.dtype(bool)
        self._composition, self._image, self._without_ids = composition, image, without_ids

    def read(self, box: Box) -> npt.NDArray[np.bool_]:
        """Read a box."""
        absent = self._image.absent(box)
        unknown, known = np.zeros(absent.shape, bool), np.zeros(absent.shape, bool)
        for claim in self._composition.claims(box, unknown):
            # where ids are published, an array without them says which organelle it is but not which instance of it
            if self._without_ids and claim.part.ids == "none":
                absent |= claim.takes
            else:
                known |= claim.takes
        return np.asarray((unknown & ~known) | absent)


def _distinct(values: npt.NDArray[Any]) -> list[int]:
    """Return the distinct values, ascending; labels come in runs, so few are compared."""
    starts = values[np.flatnonzero(values[1:] != values[:-1]) + 1]
    return sorted({*np.unique(starts).tolist(), *values[:1].tolist()})


def overlaps_text(overlaps: Mapping[tuple[Organelle, Organelle], int]) -> str:
    """Say which voxels were claimed twice and who got them."""
    found = [f"{winner} over {loser}: {voxels} voxels" for (winner, loser), voxels in sorted(overlaps.items())]
    return "; ".join(found) or "none"
