"""Counting runs of voxel pairs in compiled code: what ``overlap.contingency`` uses on large volumes if numba is there.

Label maps change rarely along a row, so the scan has two speeds. First one pass marks, for a segment of voxels that
fits into the fastest cache, where either map changes (plain comparisons, which the compiler turns into vector code);
then only the marked positions are visited, eight at a time. A run of background in both maps is dropped at once; any
other run is added to a table with open addressing, whose slots hold both ids and ``content = voxels * 2 + ignored``:
16 bytes for ids of up to 32 bits, 24 for ids of up to 64.

The functions below are plain Python as numba reads it; numba is imported when they are first needed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Slots = npt.NDArray[Any]  # of records (reference, prediction, content), content 0: free
Bytes = npt.NDArray[np.uint8]
Flat = npt.NDArray[Any]  # one-dimensional, C-contiguous, unsigned

_SEGMENT = 4096  # voxels marked before they are visited; their two maps and the marks fit into 48 kB
_FIRST_SLOTS = 1 << 15
_SPREAD = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F), np.uint64(0xD6E8FEB86659FD93)  # odd, no pattern
_ONE, _HALF = np.uint64(1), np.uint64(32)
_EACH_BYTE, _TOP_BYTE = np.uint64(0x0101010101010101), np.uint64(56)


class Kernels(NamedTuple):
    """What is compiled for one width of ids, and the slots that it fills."""

    slot: np.dtype[Any]
    add_runs: Callable[..., tuple[int, int]]
    move_slots: Callable[..., None]


@cache
def kernels(dtype: np.dtype[Any]) -> Kernels | None:
    """Compile for one unsigned dtype of ids, or load that from numba's cache; None without a working numba."""
    try:
        from numba import config, from_dtype, int64, njit, types, uint8, void
    except Exception:  # absent, or broken: numba refuses some versions of numpy with errors of several types
        return None
    if config.DISABLE_JIT or sys.byteorder != "little":  # as Python (NUMBA_DISABLE_JIT=1) these loops are no use
        return None
    id_ = np.dtype(f"u{max(4, dtype.itemsize)}")
    slot = np.dtype([("reference", id_), ("prediction", id_), ("content", np.uint64)])
    ids, table = types.Array(from_dtype(dtype), 1, "C", readonly=True), from_dtype(slot)[::1]
    ignored = types.Array(uint8, 1, "C", readonly=True)
    add_runs = types.UniTuple(int64, 2)(ids, ids, ignored, int64, table, int64, int64, uint8[::1])
    return Kernels(slot, _compile(njit, add_runs, _add_runs), _compile(njit, void(table, table), _move_slots))


def _compile(njit: Any, signature: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    options = {"nogil": True, "boundscheck": False, "error_model": "numpy"}
    try:
        compiled: Callable[..., Any] = njit(signature, cache=True, **options)(function)
    except (RuntimeError, OSError):  # no folder for the machine code can be written: it is compiled in each process
        compiled = njit(signature, **options)(function)
    return compiled


def count_runs(pieces: Iterable[tuple[Flat, Flat, Bytes]], compiled: Kernels) -> Slots:
    """Add up the runs of flat pieces ``(reference, prediction, ignored)``; ``ignored`` may have length 0.

    Returns the occupied slots, each ``(reference, prediction, ignored)`` once, in no order.
    """
    table, used, marks = np.zeros(_FIRST_SLOTS, compiled.slot), 0, np.zeros(_SEGMENT + 8, np.uint8)
    for reference, prediction, ignored in pieces:
        start = 0
        while start < len(reference):
            limit = len(table) // 2
            start, used = compiled.add_runs(reference, prediction, ignored, start, table, used, limit, marks)
            if used > limit:
                larger = np.zeros(2 * len(table), compiled.slot)
                compiled.move_slots(table, larger)
                table = larger
    return table[table["content"] > 0]


def _add_runs(
    reference: Flat,
    prediction: Flat,
    ignored: Bytes,
    start: int,
    table: Slots,
    used: int,
    limit: int,
    marks: Bytes,
) -> tuple[int, int]:
    """Add the runs from voxel ``start`` on; stops early when more than ``limit`` slots are taken.

    Returns the voxel reached and the slots taken. A segment takes at most 4096 slots beyond the limit, for which a
    table of 2 ** 15 slots or more has room.
    """
    voxels, slots, taken = reference.size, table.size, used
    shift = np.uint64(64)
    while slots >> np.int64(np.uint64(64) - shift) > 1:
        shift -= _ONE
    eights = marks.view(np.uint64)
    while start < voxels and taken <= limit:
        length = min(_SEGMENT, voxels - start)
        # Slices, because an index like start + k - 1 would be tested for being negative, and nothing vectorised.
        changed = marks[1:length]
        left, right = reference[start : start + length - 1], reference[start + 1 : start + length]
        above, below = prediction[start : start + length - 1], prediction[start + 1 : start + length]
        for k in range(length - 1):
            changed[k] = (left[k] != right[k]) | (above[k] != below[k])
        if ignored.size:
            before, after = ignored[start : start + length - 1], ignored[start + 1 : start + length]
            for k in range(length - 1):
                changed[k] |= before[k] != after[k]
        marks[length:] = 0
        marks[length] = 1  # the segment ends the last run
        first = np.int64(0)
        for eight in range(length // 8 + 1):
            bits = eights[eight]
            while bits:
                below_lowest = (bits & (~bits + _ONE)) - _ONE  # a one in each lower byte: their sum is the position
                end = 8 * eight + np.int64(((below_lowest & _EACH_BYTE) * _EACH_BYTE) >> _TOP_BYTE)
                bits &= bits - _ONE
                a, b = np.uint64(reference[start + first]), np.uint64(prediction[start + first])
                if a | b:
                    hidden = np.uint64(ignored[start + first]) if ignored.size else np.uint64(0)
                    mixed = (a * _SPREAD[0]) ^ ((b + hidden) * _SPREAD[1])
                    slot = np.int64(((mixed ^ (mixed >> _HALF)) * _SPREAD[2]) >> shift)
                    while True:
                        found = table[slot]
                        if not found.content:
                            found.reference, found.prediction, found.content = a, b, hidden
                            taken += 1
                            break
                        if found.reference == a and found.prediction == b and found.content & _ONE == hidden:
                            break
                        slot = (slot + 1) & (slots - 1)
                    found.content += np.uint64(2 * (end - first))
                first = end
        start += length
    return start, taken


def _move_slots(table: Slots, larger: Slots) -> None:
    """Enter every slot into an empty table of more slots (a power of two, as before).

    The place is given by the highest bits of the mixed ids, so that both tables are in the same order: one stream.
    """
    slots = larger.size
    shift = np.uint64(64)
    while slots >> np.int64(np.uint64(64) - shift) > 1:
        shift -= _ONE
    for old in table:
        if old.content:
            mixed = (np.uint64(old.reference) * _SPREAD[0]) ^ (
                (np.uint64(old.prediction) + (old.content & _ONE)) * _SPREAD[1]
            )
            slot = np.int64(((mixed ^ (mixed >> _HALF)) * _SPREAD[2]) >> shift)
            while larger[slot].content:
                slot = (slot + 1) & (slots - 1)
            new = larger[slot]
            new.reference, new.prediction, new.content = old.reference, old.prediction, old.content
