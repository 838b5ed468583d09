"""An item that arrives in blocks: its overlap tables so far, and whether the blocks cover it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .judging import Judged, judge
from .metric import Statistics
from .overlap import OverlapTable
from .overlap_statistics import overlap_statistics
from .settings import Settings

Ids = npt.NDArray[np.uint64]
Box = tuple[tuple[int, ...], tuple[int, ...]]  # start, shape
BlockTables = Mapping[str, tuple[OverlapTable, Ids]]  # organelle -> table, reference ids on the item's border


class OpenItem:
    """The overlap tables of one image or volume, block by block; memory follows instances and overlaps."""

    def __init__(
        self, name: str, voxel_size_nm: tuple[float, ...], shape: tuple[int, ...], judged: tuple[str, ...]
    ) -> None:
        self.name, self.voxel_size_nm, self.shape, self.judged = name, voxel_size_nm, shape, judged
        self._tables: dict[str, list[OverlapTable]] = {}
        self._on_border: dict[str, Ids] = {}
        self._boxes: set[Box] = set()

    def empty_copy(self) -> OpenItem:
        """Return an item of the same description without blocks."""
        return OpenItem(self.name, self.voxel_size_nm, self.shape, self.judged)

    def add(
        self,
        tables: BlockTables,
        start: tuple[int, ...],
        block_shape: tuple[int, ...],
        voxel_size_nm: tuple[float, ...],
        shape: tuple[int, ...],
        judged: tuple[str, ...],
    ) -> None:
        """Take over the tables of one block; raises ``InputError`` if it does not belong here."""
        self._check_same(voxel_size_nm, shape, judged)
        box = (start, block_shape)
        inside = len(start) == len(shape) and all(
            first >= 0 and first + edge <= size for first, edge, size in zip(start, block_shape, shape, strict=True)
        )
        if not inside:
            raise InputError(
                f"a block lies outside of {self.name}", found=f"{block_shape} at {start}", expected=f"inside {shape}"
            )
        if overlapping := [other for other in self._boxes if _overlap(box, other)]:
            raise InputError(
                f"two blocks of {self.name} overlap",
                found=f"{block_shape} at {start}, and {overlapping[0][1]} at {overlapping[0][0]}",
                expected="every voxel in one block",
            )
        self._boxes.add(box)
        for organelle, (table, on_border) in tables.items():
            self._join(organelle, table, on_border)

    def merge(self, other: OpenItem) -> None:
        """Take over the blocks of the same item from another evaluation."""
        self._check_same(other.voxel_size_nm, other.shape, other.judged)
        if twice := self._boxes & other._boxes:
            raise InputError(f"a block of {self.name} was added twice", found=sorted(twice)[0])
        self._boxes |= other._boxes
        for organelle, tables in other._tables.items():
            for table in tables:
                self._join(organelle, table, other._on_border[organelle])

    def statistics(self, settings: Settings) -> dict[str, Statistics]:
        """Reduce the complete item; raises ``InputError`` if blocks are missing."""
        voxel_nm, axes = math.prod(self.voxel_size_nm), len(self.voxel_size_nm)
        return {
            organelle: overlap_statistics(table, decision, voxel_nm, axes)
            for organelle, (table, decision) in self.judged_tables(settings).items()
        }

    def judged_tables(self, settings: Settings) -> dict[str, tuple[OverlapTable, Judged]]:
        """Join the tables of all blocks and judge; raises ``InputError`` if blocks are missing."""
        covered = sum(math.prod(block_shape) for _, block_shape in self._boxes)
        if covered != math.prod(self.shape):
            raise InputError(
                f"{self.name} is not complete",
                found=f"{covered} of {math.prod(self.shape)} voxels in {len(self._boxes)} blocks",
                expected="blocks that cover it",
                remedy="add the missing blocks, or merge the evaluations that hold them, then compute",
            )
        result = {}
        for organelle, tables in self._tables.items():
            table = OverlapTable.merge_all(tables)
            self._tables[organelle] = [table]
            on_border = self._on_border[organelle]
            result[organelle] = (table, judge(table, math.prod(self.voxel_size_nm), settings, on_border))
        return result

    def _check_same(self, voxel_size_nm: tuple[float, ...], shape: tuple[int, ...], judged: tuple[str, ...]) -> None:
        if (voxel_size_nm, shape, judged) != (self.voxel_size_nm, self.shape, self.judged):
            raise InputError(
                f"blocks of {self.name} differ in what they say about it",
                found=f"{shape} voxels of {voxel_size_nm} nm, annotated {', '.join(judged)}",
                expected=f"{self.shape} voxels of {self.voxel_size_nm} nm, annotated {', '.join(self.judged)}",
            )

    def _join(self, organelle: str, table: OverlapTable, on_border: Ids) -> None:
        self._tables.setdefault(organelle, []).append(table)
        before = self._on_border.get(organelle, on_border)
        self._on_border[organelle] = np.union1d(before, on_border)


def _overlap(one: Box, other: Box) -> bool:
    (a, a_shape), (b, b_shape) = one, other
    return bool(np.all(np.less(a, np.add(b, b_shape)) & np.less(b, np.add(a, a_shape))))
