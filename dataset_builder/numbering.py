"""The ids of one slice: renumbered 1..N, and where each instance lies in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from em_bench_eval.errors import InputError
from lpa.bits import kernel

LARGEST_ID = 65535  # 16-bit PNG
LARGEST_VOLUME_ID = 2**63 - 1  # the tables' instance_id is int64
SLOTS = 4 * (LARGEST_ID + 1)  # of the hash table, a power of two
HASH = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio spreads consecutive ids


@dataclass(frozen=True)
class Plane:
    """One numbered slice; entry ``k`` of every array describes the instance with id ``k + 1`` in ``ids``."""

    ids: npt.NDArray[np.uint16]  # (y, x), 0 = background
    instance_ids: npt.NDArray[np.int64]  # ascending, ids in the volume
    classes: npt.NDArray[np.uint8]  # Organelle.label_id
    areas: npt.NDArray[np.int64]  # pixels
    boxes: npt.NDArray[np.int32]  # (n, 4): y0, x0, y1, x1, half-open


def number_plane(volume_ids: npt.NDArray[Any], classes: npt.NDArray[np.uint8], where: str) -> Plane:
    """Renumber the ids of a ``(y, x)`` slice to 1..N in ascending order of volume id, and describe each.

    ``classes`` holds the class of every pixel. Raises ``InputError``, naming ``where``, for more instances than a
    16-bit image can hold, and for ids of which the tables have no room.
    """
    wide = volume_ids.dtype.itemsize == 8
    ids = np.ascontiguousarray(volume_ids, np.uint64 if wide else np.uint32)
    local = np.empty(ids.shape, np.uint16)
    found, class_of = np.empty(LARGEST_ID + 1, np.uint64), np.empty(LARGEST_ID + 1, np.uint8)
    areas, boxes = np.empty(LARGEST_ID + 1, np.int64), np.empty((LARGEST_ID + 1, 4), np.int32)
    count = _discover(ids, np.ascontiguousarray(classes), local, found, class_of, areas, boxes)
    if count > LARGEST_ID:
        raise InputError(
            f"{where}: too many instances for a 16-bit image",
            found=f"more than {LARGEST_ID}",
            expected=f"at most {LARGEST_ID}",
            remedy="cut the slices into smaller tiles (--max-side), or drop specks (--min-size-nm3)",
        )
    if count and int(found[:count].max()) > LARGEST_VOLUME_ID:
        raise InputError(
            f"{where}: an instance id is too large for the tables",
            found=int(found[:count].max()),
            expected=f"at most {LARGEST_VOLUME_ID} (2^63 - 1)",
            remedy="if that value marks what is no instance, set it to 0; else renumber the ids of the volume",
        )
    order = np.argsort(found[:count])
    rank = np.zeros(count + 1, np.uint16)
    rank[order + 1] = np.arange(1, count + 1)
    _rename(local, rank)
    return Plane(local, found[order].astype(np.int64), class_of[order], areas[order], boxes[order])


@kernel
def _discover(
    ids: npt.NDArray[Any],
    classes: npt.NDArray[np.uint8],
    local: npt.NDArray[np.uint16],
    found: npt.NDArray[np.uint64],
    class_of: npt.NDArray[np.uint8],
    areas: npt.NDArray[np.int64],
    boxes: npt.NDArray[np.int32],
) -> int:
    """Number the instances in the order in which they are met; return their number, at most one too many."""
    slots = np.zeros(SLOTS, np.int32)  # 1 + place in ``found``; 0 = free
    count = 0
    for y in range(ids.shape[0]):
        x = 0
        while x < ids.shape[1]:
            value = ids[y, x]
            start = x
            while x < ids.shape[1] and ids[y, x] == value:
                x += 1
            if value == 0:
                for i in range(start, x):
                    local[y, i] = 0
                continue
            key = np.uint64(value)
            slot = np.int64((key * HASH) >> np.uint64(46))
            while slots[slot] != 0 and found[slots[slot] - 1] != key:
                slot = (slot + 1) & (SLOTS - 1)
            place = slots[slot] - 1
            if place < 0:
                if count == LARGEST_ID:
                    return count + 1
                place = count
                count += 1
                slots[slot] = count
                found[place], class_of[place], areas[place] = key, classes[y, start], 0
                boxes[place, 0], boxes[place, 1], boxes[place, 2], boxes[place, 3] = y, start, y + 1, x
            areas[place] += x - start
            boxes[place, 1] = min(boxes[place, 1], start)
            boxes[place, 2] = y + 1
            boxes[place, 3] = max(boxes[place, 3], x)
            for i in range(start, x):
                local[y, i] = place + 1
    return count


@kernel
def _rename(local: npt.NDArray[np.uint16], rank: npt.NDArray[np.uint16]) -> None:
    for y in range(local.shape[0]):
        for x in range(local.shape[1]):
            local[y, x] = rank[local[y, x]]


class IdTable:
    """A value for each id, looked up for whole arrays; ids that are not in the table get 0."""

    LARGEST_DIRECT = 2**26  # ids up to this are looked up directly

    def __init__(self, ids: npt.NDArray[Any], values: npt.NDArray[Any]):
        order = np.argsort(ids)
        self._ids, self._values = ids[order].astype(np.uint64), values[order]
        self._direct: npt.NDArray[Any] | None = None
        if len(ids) and int(self._ids[-1]) < self.LARGEST_DIRECT:
            self._direct = np.zeros(int(self._ids[-1]) + 2, values.dtype)  # the last entry is for larger ids
            self._direct[self._ids.astype(np.int64)] = self._values

    def __getitem__(self, ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self._direct is not None:
            last = len(self._direct) - 1
            small = ids if np.iinfo(ids.dtype).max < last else np.minimum(ids, ids.dtype.type(last))
            return np.asarray(self._direct[small])
        if not len(self._ids):
            return np.zeros(ids.shape, self._values.dtype)
        place = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        return np.where(self._ids[place] == ids, self._values[place], 0).astype(self._values.dtype)
