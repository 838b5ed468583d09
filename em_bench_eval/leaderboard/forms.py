"""The forms that predictions come in, and how each is opened. A new form is one class here and one line in ``FORMS``.

A form lists the ids of its images without decoding any, then decodes ranges of that list, in this or any other process.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from em_bench_eval.leaderboard.items import Expected
from em_bench_eval.leaderboard.verdict import Faults

ObjectEntry = tuple[object, object, object]  # id, organelle, confidence (None: not given), unchecked


@dataclass(frozen=True)
class Candidate:
    """A decoded prediction of one image, not yet checked."""

    record_id: str
    labels: npt.NDArray[Any]  # (y, x) unsigned integers
    objects: Sequence[ObjectEntry]
    pixel_size_nm: object = None  # as stated; None: not stated


class Form(Protocol):
    """Opened predictions."""

    ids: Sequence[str]  # record ids in reading order; one that is predicted twice is there twice

    def read(self, start: int, stop: int, faults: Faults) -> Iterator[Candidate]:
        """Decode ``ids[start:stop]``; what is unreadable, unexpected or repeated is left out, faults noted."""
        ...


@dataclass(frozen=True)
class Declared:
    """How a form is recognised and opened."""

    about: str
    module: str
    opener: str
    file: str = ""  # recognised by a file of this name
    folder: str = ""  # or by files below this folder
    objects: bool = False  # needs objects.csv or objects.json beside it


FORMS: dict[str, Declared] = {
    "parquet": Declared(
        "predictions.parquet, as em-bench predict writes it",
        "em_bench_eval.leaderboard.form_parquet",
        "ParquetForm",
        file="predictions.parquet",
    ),
    "png": Declared(
        "instances/<record id>.png, gray, 8 or 16 bits, with objects.csv or objects.json",
        "em_bench_eval.leaderboard.form_png",
        "PngForm",
        folder="instances",
        objects=True,
    ),
    "coco": Declared(
        "coco.json: run-length encoded masks, as COCO results or a COCO data set",
        "em_bench_eval.leaderboard.form_coco",
        "CocoForm",
        file="coco.json",
    ),
    "zarr": Declared(
        "volumes/<volume id>.zarr, with objects.csv or objects.json; the split's images are cut from them",
        "em_bench_eval.leaderboard.form_zarr",
        "ZarrForm",
        folder="volumes",
        objects=True,
    ),
}
OBJECTS_FILES = ("objects.csv", "objects.json")
ALSO_ALLOWED = ("prediction.json", "README.md", "LICENSE")  # belong to a submission, but are not scored


def recognise(files: Mapping[str, int], faults: Faults) -> str | None:
    """Name the one form whose files are there; none or several is a fault."""
    found = [name for name, form in FORMS.items() if any(_belongs(file, form) for file in files)]
    if len(found) != 1:
        expected = "; or ".join(form.about for form in FORMS.values())
        faults.note("layout", "predictions", f"{' and '.join(found)}" if found else "none", expected)
        return None
    tables = [name for name in OBJECTS_FILES if name in files]
    if FORMS[found[0]].objects and len(tables) != 1:
        faults.note("layout", "objects", " and ".join(tables) or "none", "objects.csv or objects.json")
        return None
    return found[0]


def belonging(files: Mapping[str, int], form: str | None) -> list[str]:
    """Name the files that make up a submission of this form; others are neither read, hashed nor uploaded."""
    declared = FORMS.get(form or "")
    return [
        file
        for file in files
        if file == "submission.yaml"
        or file in ALSO_ALLOWED
        or (declared is not None and (_belongs(file, declared) or (declared.objects and file in OBJECTS_FILES)))
    ]


def _belongs(file: str, form: Declared) -> bool:
    if any(part.startswith(".") and part not in (".zarray", ".zattrs", ".zgroup") for part in file.split("/")):
        return False
    return file == form.file or bool(form.folder and file.startswith(f"{form.folder}/"))


def open_form(name: str, folder: Path, files: Mapping[str, int], expected: Expected | None, faults: Faults) -> Form:
    """Open predictions of a form; the ids of its images are known then, and nothing is decoded."""
    declared = FORMS[name]
    opener = getattr(importlib.import_module(declared.module), declared.opener)
    form: Form = opener(folder, files, expected, faults)
    return form


def shape_of(record_id: str, expected: Expected | None) -> tuple[int, int] | None:
    """Return the shape that an image must have, ``None`` without a dataset."""
    return None if expected is None else expected.items[record_id].shape


class Wanted:
    """Which of ``ids`` are worth decoding: in the split, and for the first time."""

    def __init__(self, ids: Sequence[str], expected: Expected | None):
        self._ids, self._expected = ids, expected
        self._first: dict[str, int] = {}
        for place, name in enumerate(ids):
            self._first.setdefault(name, place)

    def __call__(self, place: int) -> bool:
        """Tell it of ``ids[place]``."""
        name = self._ids[place]
        return self._first[name] == place and (self._expected is None or name in self._expected.items)


def unsigned(labels: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """Return labels as ``Prediction`` holds them."""
    return labels.astype(np.uint32, copy=False)
