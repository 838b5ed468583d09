"""Run-length encoded masks as COCO has them: columns first, runs of 0 and 1 in turn, as numbers or packed as text.

Reference: the format of pycocotools (``maskApi.c``); written from its description, tested on masks.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Runs = npt.NDArray[np.int64]
LONGEST_RUN_TEXT = 13  # characters of 5 bits that an int64 can need


def read_runs(counts: object, pixels: int) -> Runs:
    """Return the lengths of runs (0, 1, 0, ...) that cover ``pixels`` pixels; raises ``ValueError`` if they do not."""
    if isinstance(counts, (str, bytes)):
        if len(counts) > 8 * (pixels + 2):
            raise ValueError(f"{len(counts):,} characters for {pixels:,} pixels")
        runs = _unpack(counts.encode("ascii") if isinstance(counts, str) else counts)
    elif isinstance(counts, Sequence):
        if len(counts) > pixels + 2:
            raise ValueError(f"{len(counts):,} runs for {pixels:,} pixels")
        if not all(isinstance(run, int) and not isinstance(run, bool) and 0 <= run <= pixels for run in counts):
            raise ValueError("a run that is no number of pixels")
        runs = np.array(counts, np.int64)
    else:
        raise ValueError("counts are neither text nor a list of numbers")
    if len(runs) and (int(runs.min()) < 0 or int(runs.max()) > pixels):
        raise ValueError("a run that is no number of pixels")
    if int(runs.sum()) != pixels:
        raise ValueError(f"runs cover {int(runs.sum()):,} of {pixels:,} pixels")
    return runs


def _unpack(text: bytes) -> Runs:
    """Undo the packing: 5 bits a character, least first, 32 marks that more follow; later runs are differences."""
    values = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if len(values) == 0:
        return np.zeros(0, np.int64)
    if int(values.min()) < 0 or int(values.max()) > 63 or values[-1] & 32:
        raise ValueError("packed runs with a character that cannot occur")
    last = (values & 32) == 0
    end = np.flatnonzero(last)
    start = np.concatenate([[0], end[:-1] + 1])
    if int((end - start).max()) >= LONGEST_RUN_TEXT - 1:
        raise ValueError("a packed run that is too long")
    place = np.arange(len(values)) - np.repeat(start, end - start + 1)
    runs = np.add.reduceat((values & 31) << (5 * place), start)
    negative = (values[end] & 16) != 0
    runs = np.where(negative, runs - (np.int64(1) << (5 * (end - start + 1))), runs)
    for parity, first in ((0, 2), (1, 1)):  # each run from the fourth on is a difference to the one before last
        part = runs[first::2] if parity == 0 else runs[1::2]
        part[:] = np.cumsum(part)
    return runs


def pixels_of(runs: Runs) -> npt.NDArray[np.int64]:
    """Return the positions of the mask's pixels, counted column by column."""
    ends = np.cumsum(runs)
    starts, lengths = (ends - runs)[1::2], runs[1::2]
    total = int(lengths.sum())
    first: Runs = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
    pixels: Runs = first + np.arange(total)
    return pixels


def runs_of(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Encode a ``(y, x)`` mask as runs, column by column, the first of 0."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = [0, *changes.tolist(), flat.size]
    runs = [after - before for before, after in itertools.pairwise(edges)]
    return [0, *runs] if flat.size and flat[0] else runs


def packed(runs: Sequence[int]) -> str:
    """Pack runs as text, as pycocotools does."""
    letters = []
    for place, run in enumerate(runs):
        value = run - runs[place - 2] if place > 2 else run
        while True:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            letters.append(chr(48 + bits + 32 * more))
            if not more:
                break
    return "".join(letters)
