"""What the values of a label file mean: organelles, background, other structures, or nobody knows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from em_bench_eval.errors import InputError
from em_bench_eval.opened import whole_numbers
from em_bench_eval.schema import EXTRA_NAME, ORGANELLES, Organelle

BACKGROUND, OTHER, IGNORE, REST = "background", "other", "ignore", "rest"
TARGETS = (*ORGANELLES, BACKGROUND, OTHER, f"{OTHER}:NAME", IGNORE)
IGNORED, UNKNOWN = 254, 255  # beside 0 and Organelle.label_id in what ``codes`` gives
RANGE = re.compile(r"(-?\d+)(?:\s*(?:-|\.\.|to)\s*(\d+))?")
TABLE = 2**16


@dataclass(frozen=True)
class ValueMap:
    """The meaning of values and ranges of values; 0 is background if nothing else is said of it."""

    ranges: tuple[tuple[int, int, str], ...]  # (first, last, target), both inclusive
    rest: str | None = None  # target of every other value; None: any other is a fault

    def target(self, value: int) -> str | None:
        """Return what a value means: one of ``TARGETS``, or ``None`` for a value that nothing is said of."""
        for first, last, target in self.ranges:
            if first <= value <= last:
                return target
        return BACKGROUND if value == 0 else self.rest

    def code(self, value: int) -> int:
        """Return ``Organelle.label_id``, 0 for background and other structures, ``IGNORED`` or ``UNKNOWN``."""
        target = self.target(value)
        if target is None:
            return UNKNOWN
        if target == IGNORE:
            return IGNORED
        return Organelle(target).label_id if target in ORGANELLES else 0

    @property
    def organelles(self) -> tuple[Organelle, ...]:
        """The organelles that any value means."""
        targets = {target for _, _, target in self.ranges} | {self.rest}
        return tuple(organelle for organelle in Organelle if organelle.value in targets)

    @property
    def others(self) -> tuple[str, ...]:
        """Names of the structures outside the five organelles."""
        targets = [target for _, _, target in self.ranges] + [self.rest or ""]
        return tuple(dict.fromkeys(target.partition(":")[2] for target in targets if target.startswith(f"{OTHER}:")))

    def marking(self, structure: str) -> ValueMap:
        """Return the same values, ``IGNORE`` for those of one other structure and background for the rest.

        ``Lookup.codes`` is then ``IGNORED`` where that structure is.
        """
        wanted = f"{OTHER}:{structure}"
        ranges = tuple((first, last, IGNORE if target == wanted else BACKGROUND) for first, last, target in self.ranges)
        rest = None if self.rest is None else IGNORE if self.rest == wanted else BACKGROUND
        return ValueMap(ranges, rest)

    @property
    def ignores(self) -> bool:
        """True if some value means that nobody annotated the voxel."""
        return any(target == IGNORE for _, _, target in self.ranges) or self.rest == IGNORE

    def __str__(self) -> str:
        parts = [f"{first if first == last else f'{first}-{last}'}: {target}" for first, last, target in self.ranges]
        return ", ".join(parts + ([f"{REST}: {self.rest}"] if self.rest else []))


def parse_range(text: str) -> tuple[int, int] | None:
    """Read ``7``, ``1-400``, ``1..400`` or ``-1``; ``None`` if it is none of these."""
    found = RANGE.fullmatch(text.strip())
    if found is None:
        return None
    first = int(found[1])
    last = first if found[2] is None else int(found[2])
    return (first, last) if first <= last else None


@dataclass
class Lookup:
    """Applies a ``ValueMap`` to arrays; knows the file for its messages."""

    values: ValueMap
    where: str
    _tables: dict[str, npt.NDArray[np.uint8]] = field(default_factory=dict, compare=False)

    def codes(self, labels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Return uint8: ``Organelle.label_id``, 0 or ``IGNORED``; a value that nothing is said of is ``InputError``."""
        whole = whole_numbers(labels, self.where)
        if whole.dtype.itemsize <= 2:
            codes: npt.NDArray[np.uint8] = self._table(whole.dtype)[
                whole
            ]  # a negative value counts from the end of the table, as it should
        else:
            distinct, inverse = np.unique(whole, return_inverse=True)
            codes = np.array([self.values.code(int(value)) for value in distinct], np.uint8)[
                inverse.reshape(whole.shape)
            ]
        if (codes == UNKNOWN).any():
            self._refuse(np.unique(whole[codes == UNKNOWN]), labels.dtype)
        return codes

    def _table(self, dtype: np.dtype[Any]) -> npt.NDArray[np.uint8]:
        if dtype.name not in self._tables:
            info = np.iinfo(dtype)
            table = np.full(int(info.max) - int(info.min) + 1, UNKNOWN, np.uint8)
            if self.values.rest is not None:
                table[:] = ValueMap((), self.values.rest).code(1)
            table[0] = self.values.code(0)
            for first, last, _ in reversed(self.values.ranges):
                for value in range(max(first, int(info.min)), min(last, int(info.max)) + 1):
                    table[value] = self.values.code(value)
            self._tables[dtype.name] = table
        return self._tables[dtype.name]

    def _refuse(self, unknown: npt.NDArray[Any], dtype: np.dtype[Any]) -> None:
        raise InputError(
            f"{self.where} holds values of which the spec says nothing",
            found=", ".join(map(str, unknown[:8].tolist())) + (", ..." if len(unknown) > 8 else ""),
            expected=str(self.values),
            remedy="add what they mean: an organelle, other, background or ignore; or 'rest: other' for all of them"
            + ("; a 1-bit image holds 0 and 1" if dtype.kind == "b" else ""),
        )


def read_table(path: Path) -> tuple[dict[int, str], str]:
    """Read a CSV table with the columns ``id`` and ``organelle``; return it, or what is wrong with it."""
    import csv

    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        columns = [name.strip().lower() for name in rows.fieldnames or []]
        if not {"id", "organelle"} <= set(columns):
            return {}, f"columns {', '.join(columns) or '(none)'}"
        rows.fieldnames = columns
        table: dict[int, str] = {}
        for number, row in enumerate(rows, start=2):
            span, target = parse_range(row["id"] or ""), (row["organelle"] or "").strip()
            if span is None or not is_target(target):
                return {}, f"line {number}: id {row['id']!r}, organelle {target!r}"
            table.update(dict.fromkeys(range(span[0], span[1] + 1), target))
    return table, "" if table else "no rows"


def is_target(text: str) -> bool:
    """Tell whether a word may stand for what a value means."""
    return text in TARGETS or re.fullmatch(f"{OTHER}:{EXTRA_NAME}", text) is not None


def from_table(table: Mapping[int, str]) -> ValueMap:
    """Make the map of a table, neighbouring ids with one meaning joined."""
    ranges: list[tuple[int, int, str]] = []
    for value in sorted(table):
        if ranges and ranges[-1][1] == value - 1 and ranges[-1][2] == table[value]:
            ranges[-1] = (ranges[-1][0], value, table[value])
        else:
            ranges.append((value, value, table[value]))
    return ValueMap(tuple(ranges))
