"""Score label maps: reduce each image or volume to statistics, add them up, compute the metrics once at the end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .blocks import OpenItem
from .boundary_statistics import STATISTICS as BOUNDARY_STATISTICS
from .boundary_statistics import boundary_statistics
from .errors import InputError
from .judging import Judged, border_ids, judge
from .label_maps import (
    LabelMaps,
    Side,
    by_piece,
    common_shape,
    is_among,
    only,
    organelle_name,
    read_mask,
    read_side,
    read_voxel_size,
    refuse_unnamed,
)
from .metric import Statistics, Value
from .metrics import compute_all, pool
from .overlap import OverlapTable, contingency
from .overlap_statistics import overlap_statistics
from .per_instance import instance_rows
from .schema import ORGANELLES
from .settings import DEFAULT_SETTINGS, Settings
from .skeleton_statistics import STATISTICS as SKELETON_STATISTICS
from .skeleton_statistics import skeleton_statistics

Item = tuple[str | None, dict[str, Statistics]]  # name, organelle -> statistics


def score(
    prediction: LabelMaps,
    reference: LabelMaps,
    *,
    voxel_size_nm: Sequence[float],
    annotated: Iterable[str] | None = None,
    ignore: npt.ArrayLike | None = None,
    settings: Settings = DEFAULT_SETTINGS,
) -> dict[str, Value]:
    """Score one image or volume; see ``Evaluation.add`` for the arguments and ``metrics.METRICS`` for the keys."""
    evaluation = Evaluation(settings)
    evaluation.add(prediction, reference, voxel_size_nm=voxel_size_nm, annotated=annotated, ignore=ignore)
    return evaluation.compute()


def statistic_names() -> tuple[str, ...]:
    """Name every statistic that a row of ``Evaluation.to_rows`` may hold."""
    one = {"er": np.ones((2, 2), np.uint8)}
    overlaps = Evaluation()
    overlaps.add(one, one, voxel_size_nm=(1.0, 1.0))
    return (*overlaps.items()[0][1]["er"], *SKELETON_STATISTICS, *BOUNDARY_STATISTICS)


class Evaluation:
    """Accumulates statistics over images or volumes, or over blocks of volumes; label maps are let go at once.

    The result does not depend on the order of what was added, nor on how it was cut into blocks or spread over
    evaluations that were merged later, to the last bit.
    """

    def __init__(self, settings: Settings = DEFAULT_SETTINGS, *, keep_instances: bool = False) -> None:
        """``keep_instances``: remember a row per instance, for ``instances``."""
        self.settings = settings
        self.keep_instances = keep_instances
        self._instances: list[dict[str, Any]] = []
        self._axes = 0  # 2: images, 3: volumes, 0: nothing added
        self._items: list[Item] = []
        self._open: dict[str, OpenItem] = {}
        self._names: set[str] = set()  # of the whole items

    def add(
        self,
        prediction: LabelMaps,
        reference: LabelMaps,
        *,
        voxel_size_nm: Sequence[float],
        annotated: Iterable[str] | None = None,
        ignore: npt.ArrayLike | None = None,
        item: str | None = None,
    ) -> None:
        """Count one whole image or volume.

        Args:
            prediction, reference: ``{organelle: label map}``, or a pair of one label map and ``{id: organelle}``;
                integers, ``(y, x)`` or ``(z, y, x)``, 0 = background; an organelle that is left out has no instances.
            voxel_size_nm: ``(y, x)`` or ``(z, y, x)``.
            annotated: organelles that the reference labels (default: all five); the others are not judged at all.
            ignore: mask of the same shape, True where nobody annotated: such voxels count for nothing, and an instance
                with more than half of its voxels there is not judged.
            item: a name; adding the same name twice is an error.

        Raises:
            InputError: unusable input; nothing was counted then.
        """
        size, sides, mask, judged = self._read(prediction, reference, voxel_size_nm, annotated, ignore)
        self._refuse_name(item, open_too=True)
        voxel_nm = math.prod(size)
        statistics: dict[str, Statistics] = {}
        instances: list[dict[str, Any]] = []
        for organelle, (table, maps) in self._tables(sides, mask, judged).items():
            on_border = border_ids(maps[0]) if self.settings.border == "ignore" else np.zeros(0, np.uint64)
            decision = judge(table, voxel_nm, self.settings, on_border)
            instances += instance_rows(item, organelle, decision, voxel_nm) if self.keep_instances else []
            statistics[organelle] = {
                **overlap_statistics(table, decision, voxel_nm, len(size)),
                **self._shapes(organelle, table, decision, maps, size, mask),
            }
        self._items.append((item, statistics))
        self._names |= {item} if item is not None else set()
        self._instances += instances
        self._axes = len(size)

    def add_block(
        self,
        item: str,
        prediction: LabelMaps,
        reference: LabelMaps,
        *,
        start: Sequence[int],
        shape: Sequence[int],
        voxel_size_nm: Sequence[float],
        annotated: Iterable[str] | None = None,
        ignore: npt.ArrayLike | None = None,
    ) -> None:
        """Count one block of the item (a volume or an image) called ``item``; its blocks may come in any order.

        ``start`` is the block's first voxel and ``shape`` the size of the whole item, in voxels; all other arguments
        are those of ``add``. Blocks must not overlap, and ids mean the same instance in every block. Only overlaps are
        counted: skeletons, surfaces and ``reference_ids="slice"`` need whole items. Raises ``InputError``.
        """
        wanted = [name for name in ("skeleton", "boundary") if getattr(self.settings, name)]
        wanted += ['reference_ids="slice"'] if self.settings.reference_ids == "slice" else []
        if wanted:
            raise InputError(
                f"{', '.join(wanted)} cannot be measured in blocks",
                found=f"a block of {item} at {tuple(start)}",
                expected="the whole item at once",
                remedy="use Evaluation.add, or settings without them for volumes that do not fit into memory",
            )
        size, sides, mask, judged = self._read(prediction, reference, voxel_size_nm, annotated, ignore)
        self._refuse_name(item, open_too=False)
        opened = self._open.get(item) or OpenItem(item, size, tuple(map(int, shape)), judged)
        tables = {}
        for organelle, (table, maps) in self._tables(sides, mask, judged).items():
            on_border = border_ids(maps[0], tuple(map(int, start)), opened.shape)
            tables[organelle] = (table, on_border)
        block_shape = common_shape(sides, mask, len(size))
        opened.add(tables, tuple(map(int, start)), block_shape, size, tuple(map(int, shape)), judged)
        self._open[item] = opened
        self._axes = len(size)

    def merge(self, other: Evaluation) -> None:
        """Take over everything that ``other`` counted; ``other`` is left as it is."""
        if other.settings != self.settings or (other._axes and self._axes and other._axes != self._axes):
            raise InputError(
                "these evaluations cannot be pooled",
                found=f"{other.settings}, {other._axes}D",
                expected=f"{self.settings}, {self._axes}D",
            )
        for name in other._names:
            self._refuse_name(name, open_too=True)
        for name in other._open:
            self._refuse_name(name, open_too=False)
        self._axes = self._axes or other._axes
        self._items.extend(other._items)
        self._names |= other._names
        self._instances.extend(other._instances if self.keep_instances else ())
        for name, opened in other._open.items():
            mine = self._open.setdefault(name, opened.empty_copy())
            mine.merge(opened)

    def items(self) -> list[Item]:
        """Return the statistics of every item; those of items in blocks are computed from the blocks seen so far."""
        closed = [(opened.name, opened.statistics(self.settings)) for opened in self._open.values()]
        return [*self._items, *closed]

    def instances(self) -> list[dict[str, Any]]:
        """Return a row per judged instance (``per_instance.COLUMNS``); empty unless ``keep_instances``."""
        rows = list(self._instances)
        if self.keep_instances:
            for opened in self._open.values():
                voxel_nm = math.prod(opened.voxel_size_nm)
                for organelle, (_, decision) in opened.judged_tables(self.settings).items():
                    rows += instance_rows(opened.name, organelle, decision, voxel_nm)
        return rows

    def compute(self) -> dict[str, Value]:
        """Return every key of every organelle, and the macro means; undefined values are None.

        Raises ``InputError`` if an item that came in blocks is not complete.
        """
        items = self.items()
        pooled = {name: pool([of[name] for _, of in items if name in of]) for name in ORGANELLES}
        return compute_all(pooled, self.settings)

    def to_rows(self) -> list[dict[str, Any]]:
        """Return the statistics as plain rows, one per item and organelle, to send to another process."""
        head = {"axes": self._axes, "settings": self.settings.hash()}
        return [
            {**head, "item": name or "", "organelle": organelle, **statistics}
            for name, of in self.items()
            for organelle, statistics in of.items()
        ]

    def add_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Take over rows of ``to_rows``; they must come from an evaluation with the same settings."""
        for row in rows:
            if row["settings"] != self.settings.hash():
                raise InputError(
                    "statistics of different settings cannot be pooled",
                    found=row["settings"],
                    expected=self.settings.hash(),
                )
            statistics = {
                name: value
                for name, value in row.items()
                if name not in ("axes", "settings", "item", "organelle") and value is not None
            }
            other = Evaluation(self.settings)
            other._axes = int(row["axes"])
            other._items.append((None, {row["organelle"]: statistics}))
            self.merge(other)

    def _read(
        self,
        prediction: LabelMaps,
        reference: LabelMaps,
        voxel_size_nm: Sequence[float],
        annotated: Iterable[str] | None,
        ignore: npt.ArrayLike | None,
    ) -> tuple[tuple[float, ...], dict[str, Side], npt.NDArray[np.bool_] | None, tuple[str, ...]]:
        """Check the arguments of ``add`` and bring them to one form."""
        size = read_voxel_size(voxel_size_nm)
        if self._axes not in (0, len(size)):
            raise InputError(
                "images and volumes cannot be pooled",
                found=f"{len(size)}D after {self._axes}D",
                expected="one evaluation for images, another for volumes",
            )
        names = ORGANELLES if annotated is None else {organelle_name(name) for name in annotated}
        sides = {"prediction": read_side("prediction", prediction), "reference": read_side("reference", reference)}
        mask = None if ignore is None else read_mask(ignore)
        common_shape(sides, mask, len(size))
        if self.settings.reference_ids == "slice":
            sides["reference"] = by_piece(sides["reference"], len(size))
        return size, sides, mask, tuple(name for name in ORGANELLES if name in names)

    def _tables(
        self, sides: Mapping[str, Side], mask: npt.NDArray[np.bool_] | None, judged: Iterable[str]
    ) -> dict[str, tuple[OverlapTable, tuple[npt.NDArray[Any], npt.NDArray[Any]]]]:
        """Count overlaps of every judged organelle with a label map: one pass over the voxels per pair of arrays."""
        shape = next((labels.shape for side in sides.values() for labels, _ in side.values()), ())
        nothing = np.broadcast_to(np.uint8(0), shape)
        tables: dict[tuple[int, int], OverlapTable] = {}
        found = {}
        for organelle in judged:
            maps = [sides[name].get(organelle, (nothing, None)) for name in ("reference", "prediction")]
            if maps[0][0] is nothing and maps[1][0] is nothing:
                continue
            key = (id(maps[0][0]), id(maps[1][0]))
            if key not in tables:
                tables[key] = contingency(maps[0][0], maps[1][0], mask)
                for side, ids in (("reference", tables[key].reference_ids), ("prediction", tables[key].prediction_ids)):
                    named = _named(sides[side], maps[0 if side == "reference" else 1][0])
                    if named is not None:
                        refuse_unnamed(side, ids, named)
            whole = tables[key]
            table = whole.select(is_among(whole.reference_ids, maps[0][1]), is_among(whole.prediction_ids, maps[1][1]))
            found[organelle] = (table, (maps[0][0], maps[1][0]))
        return found

    def _shapes(
        self,
        organelle: str,
        table: OverlapTable,
        decision: Judged,
        maps: tuple[npt.NDArray[Any], npt.NDArray[Any]],
        size: tuple[float, ...],
        mask: npt.NDArray[np.bool_] | None,
    ) -> Statistics:
        """Measure skeletons and surfaces, if the settings ask for them."""
        if organelle not in (*self.settings.skeleton, *self.settings.boundary):
            return {}
        reference = only(maps[0], table.reference_ids)
        prediction = only(maps[1], table.prediction_ids)
        found: dict[str, float] = {}
        if organelle in self.settings.skeleton:
            found |= skeleton_statistics(reference, prediction, size, mask)
        if organelle in self.settings.boundary:
            unmatched = decision.unmatched_ids()
            found |= boundary_statistics(
                reference,
                prediction,
                size,
                matched=decision.matched_ids(),
                unmatched_reference=unmatched[0],
                unmatched_prediction=unmatched[1],
                tolerance_nm=self.settings.tolerance_nm,
                ignore=mask,
            )
        return found

    def _refuse_name(self, item: str | None, *, open_too: bool) -> None:
        if item in self._names or (open_too and item in self._open):
            raise InputError(f"{item} was added twice", expected="each item once", remedy="drop the duplicate")


def _named(side: Side, labels: npt.NDArray[Any]) -> npt.NDArray[np.uint64] | None:
    """Return the ids that one side's table of organelles names for a label map; None if it has no table."""
    named = [ids for other, ids in side.values() if other is labels and ids is not None]
    return np.concatenate(named) if named else None
