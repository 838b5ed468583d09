"""Checks of one decoded prediction: ids, objects, organelles, confidences. The one place that decides what is sound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from em_bench_eval.errors import did_you_mean
from em_bench_eval.leaderboard.forms import Candidate, unsigned
from em_bench_eval.leaderboard.items import SplitItem
from em_bench_eval.leaderboard.safe_read import LARGEST_ID, MAX_INSTANCES, whole_number
from em_bench_eval.leaderboard.verdict import Faults, printable
from em_bench_eval.schema import ORGANELLES, Organelle, Prediction

SIZE_TOLERANCE = 1e-3  # relative, of a stated pixel size
_SHOWN = 5  # ids


def check_prediction(
    candidate: Candidate, item: SplitItem | None, faults: Faults, *, class_agnostic: bool = False
) -> Prediction | None:
    """Check a decoded image against its item of the split (``None``: no dataset given); every fault is noted.

    ``class_agnostic``: objects need no organelle. Returns what is scored, or ``None`` after a fault.
    """
    before = faults.count()
    name = candidate.record_id
    if item is not None and candidate.labels.shape != item.shape:
        faults.note("shape", name, candidate.labels.shape, f"{item.shape} (y, x)")
    _check_pixel_size(candidate, item, faults)
    ids = _ids(candidate.labels, name, faults)
    named, confidences = _objects(candidate, faults, class_agnostic)
    if ids is None:
        return None
    there = ids.tolist()
    if len(there) > MAX_INSTANCES:
        faults.note("instances", name, f"{len(there):,}", f"at most {MAX_INSTANCES:,} in an image")
    unnamed = [id_ for id_ in there if id_ not in named]
    if unnamed:
        faults.note("no-object", name, _some(unnamed), "an object for every id")
    present = set(there)
    empty = sorted(id_ for id_ in named if id_ not in present)
    if empty:
        faults.note("no-pixels", name, _some(empty), "pixels of every object")
    if faults.count() > before:
        return None
    return Prediction(
        record_id=name,
        instances=unsigned(candidate.labels),
        organelle_of={id_: Organelle(organelle) for id_, organelle in named.items() if organelle},
        confidence_of=confidences,
    )


def _check_pixel_size(candidate: Candidate, item: SplitItem | None, faults: Faults) -> None:
    stated = candidate.pixel_size_nm
    if stated is None:
        return
    numbers = stated if isinstance(stated, (list, tuple)) and len(stated) == 2 else (None, None)
    right = None if item is None else item.pixel_size_nm
    for place, number in enumerate(numbers):
        sound = isinstance(number, (int, float)) and not isinstance(number, bool) and 0 < number < 1e6
        if not sound or (right is not None and abs(number - right[place]) > SIZE_TOLERANCE * right[place]):
            faults.note("pixel-size", candidate.record_id, printable(stated, 60), f"{right or 'two numbers'} nm (y, x)")
            return


def _ids(labels: npt.NDArray[Any], name: str, faults: Faults) -> npt.NDArray[Any] | None:
    """Return the ids of a label map without the background."""
    if labels.dtype.kind not in "ui" or labels.ndim != 2:
        faults.note("dtype", name, f"{labels.dtype} {labels.shape}", "unsigned integers (y, x)")
        return None
    if labels.dtype.itemsize <= 2 and labels.dtype.kind == "u":
        counts = np.bincount(labels.ravel())
        counts[:1] = 0  # background
        return np.flatnonzero(counts)
    ids = np.unique(labels)
    if ids.size and (int(ids[0]) < 0 or int(ids[-1]) > LARGEST_ID):
        wrong = int(ids[0]) if int(ids[0]) < 0 else int(ids[-1])
        faults.note("dtype", name, f"id {wrong}", f"ids 1 to {LARGEST_ID}, 0 = background")
        return None
    there: npt.NDArray[Any] = ids[ids != 0]
    return there


def _objects(candidate: Candidate, faults: Faults, class_agnostic: bool) -> tuple[dict[int, str], dict[int, float]]:
    """Read the objects of an image: id -> organelle ("": none), id -> confidence."""
    name = candidate.record_id
    named: dict[int, str] = {}
    confidences: dict[int, float] = {}
    for given_id, organelle, confidence in candidate.objects:
        id_ = whole_number(given_id, 1)
        if id_ is None:
            faults.note("dtype", f"{name}, objects", f"id {printable(given_id, 40)!r}", f"1 to {LARGEST_ID}")
            continue
        if id_ in named:
            faults.note("duplicate-id", name, f"id {id_} for the second time")
            continue
        named[id_] = organelle if isinstance(organelle, str) else ""
        if organelle not in ORGANELLES and not (class_agnostic and organelle in (None, "")):
            hint = did_you_mean(organelle[:40].lower(), ORGANELLES) if isinstance(organelle, str) else ""
            expected = (hint or f"one of {', '.join(ORGANELLES)}").rstrip()
            faults.note("organelle", f"{name}, id {id_}", printable(repr(organelle), 60), expected)
        value = _confidence(confidence)
        if value is None:
            faults.note("confidence", f"{name}, id {id_}", printable(repr(confidence), 60), "0 to 1")
        else:
            confidences[id_] = value
    return named, confidences


def _confidence(given: object) -> float | None:
    if given is None:
        return 1.0
    try:
        value = float(given) if isinstance(given, (int, float, str)) and not isinstance(given, bool) else math.nan
    except (ValueError, OverflowError):
        return None
    return value if 0 <= value <= 1 else None  # NaN is none of these


def _some(ids: Sequence[int]) -> str:
    shown = ", ".join(map(str, ids[:_SHOWN]))
    return f"id {shown}" if len(ids) == 1 else f"{len(ids):,} ids: {shown}" + (", ..." if len(ids) > _SHOWN else "")
