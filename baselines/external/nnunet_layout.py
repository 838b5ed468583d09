"""What an exported nnU-Net v2 folder consists of: case names, labels, folds, and the file that leads back to the rows.

::

    OUT/cases.json                                       which box of which volume a case is: `em-bench import` reads it
    OUT/nnUNet_raw/Dataset501_EM/{dataset.json, imagesTr, labelsTr, imagesTs}
    OUT/nnUNet_preprocessed/Dataset501_EM/splits_final.json      one fold: our train and validation
    OUT/labelsTs/, OUT/instancesTs/<organelle>/          the reference of the test cases, where nnU-Net does not look
    OUT/README.md                                        the commands

The rules of the folder are those of nnU-Net's documentation (reference/dataset-format.md, ignore_label.md,
manual_data_splits.md; version 2.8).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from baselines.external.row_boxes import AXES, Box, RowBox, Triple, nm_triple, triple
from em_bench_eval.align import aligned_shape
from em_bench_eval.errors import InputError
from em_bench_eval.schema import ORGANELLES
from em_bench_eval.whole_file import write_whole

CASES_FILE = "cases.json"
FORMAT = "em-organelle-wild cases v1"
IGNORE = "ignore"  # nnU-Net's name for it; it must have the highest number
IMAGE_SUFFIX = "_0000"  # of the only channel
MOST_BYTES = 1 << 30  # of a cases.json


@dataclass(frozen=True)
class Case:
    """One image of nnU-Net: a row of the dataset, a run of its rows along z, or a whole volume."""

    name: str
    fold: str
    axis: str  # that the planes of the file are perpendicular to
    box: Box
    voxel_size_nm: tuple[float, float, float]  # (z, y, x)
    annotated: tuple[str, ...]
    has_ignore: bool
    records: tuple[str, ...]  # rows that lie in it

    @property
    def order(self) -> Triple:
        """Axes of the volume in the order of the file: across the planes first."""
        along = AXES.index(self.axis)
        return triple((along, *(axis for axis in range(3) if axis != along)))

    @property
    def shape(self) -> Triple:
        """Native size in voxels in the order of the file: planes, rows, columns."""
        return triple(self.box.shape[axis] for axis in self.order)

    @property
    def spacing_nm(self) -> tuple[float, float, float]:
        """Native voxel size in the order of the file."""
        return nm_triple([self.voxel_size_nm[axis] for axis in self.order])

    def file_shape(self, pixel_nm: float | None) -> Triple:
        """Size of the exported file: planes are aligned to ``pixel_nm``, their number is kept."""
        if pixel_nm is None:
            return self.shape
        (planes, height, width), (_, *plane_nm) = self.shape, self.spacing_nm
        return triple((planes, *aligned_shape((height, width), (plane_nm[0], plane_nm[1]), pixel_nm)))

    def file_spacing_nm(self, pixel_nm: float | None) -> tuple[float, float, float]:
        """Voxel size of the exported file, in its order."""
        across, y, x = self.spacing_nm
        return (across, y, x) if pixel_nm is None else (across, pixel_nm, pixel_nm)


@dataclass(frozen=True)
class Layout:
    """Everything that decides an export; ``cases.json`` holds it."""

    dataset: str  # name without a path
    config: str
    dimension: str  # "2d" or "3d"
    file_ending: str
    reader: str  # nnU-Net's reader and writer of the format
    pixel_nm: float | None  # None: native
    labels: Mapping[str, int]
    unannotated: str  # "ignore" or "drop"
    digests: Mapping[str, str]  # of the labels of each split
    cases: tuple[Case, ...]

    def of(self, *folds: str) -> list[Case]:
        """Return the cases of some folds."""
        return [case for case in self.cases if case.fold in folds]

    @property
    def organelles(self) -> tuple[str, ...]:
        """Exported organelles, in the order of their numbers."""
        return tuple(name for name in self.labels if name in ORGANELLES)


def row_name(row: RowBox) -> str:
    """Name the file of a row: ``"lucchipp-train_z00007"``, a tile ``"cell_z00007_2048_0"``."""
    y, x = (at for axis, at in zip(AXES, row.box.start, strict=True) if axis != row.axis)
    tile = f"_{y}_{x}" if y or x else ""
    return f"{row.box.volume_id}_{row.axis}{row.box.start[AXES.index(row.axis)]:05d}{tile}"


def row_cases(rows: Iterable[RowBox], fold: str) -> list[Case]:
    """Make a 2D case of every row."""
    return [
        Case(row_name(row), fold, row.axis, row.box, row.voxel_size_nm, row.annotated, row.has_ignore, (row.record_id,))
        for row in rows
    ]


def slab_cases(rows: Iterable[RowBox], fold: str) -> list[Case]:
    """Make a 3D case of every run of neighbouring slices along z; slices along other axes lie in those already."""
    columns: dict[tuple[str, int, int, int, int], list[RowBox]] = {}
    for row in rows:
        if row.axis == "z":
            columns.setdefault((row.box.volume_id, *row.box.start[1:], *row.box.shape[1:]), []).append(row)
    cases = []
    for members in columns.values():
        members.sort(key=lambda row: row.box.start[0])
        begin = 0
        for place in range(1, len(members) + 1):
            if place == len(members) or members[place].box.start[0] != members[place - 1].box.stop[0]:
                cases.append(_slab(members[begin:place], fold))
                begin = place
    return cases


def whole_cases(
    rows: Sequence[RowBox], volumes: Mapping[str, tuple[Box, tuple[float, float, float]]], fold: str
) -> list[Case]:
    """Make a 3D case of every whole volume that has a row in the split; its name is the volume's."""
    by_volume: dict[str, list[RowBox]] = {}
    for row in rows:
        by_volume.setdefault(row.box.volume_id, []).append(row)
    missing = sorted(set(by_volume) - set(volumes))
    if missing:
        raise InputError("rows come from volumes that the dataset does not list", found=", ".join(missing[:8]))
    return [
        Case(
            name,
            fold,
            "z",
            *volumes[name],
            members[0].annotated,
            any(row.has_ignore for row in members),
            tuple(row.record_id for row in members),
        )
        for name, members in by_volume.items()
    ]


def _slab(members: Sequence[RowBox], fold: str) -> Case:
    first, last = members[0], members[-1]
    depth = last.box.stop[0] - first.box.start[0]
    box = Box(first.box.volume_id, first.box.start, triple((depth, *first.box.shape[1:])))
    _, y, x = first.box.start
    name = f"{box.volume_id}_z{box.start[0]:05d}-{box.stop[0] - 1:05d}" + (f"_{y}_{x}" if y or x else "")
    ignored = any(row.has_ignore for row in members)
    records = tuple(row.record_id for row in members)
    return Case(name, fold, "z", box, first.voxel_size_nm, first.annotated, ignored, records)


def check_names(cases: Sequence[Case]) -> None:
    """Raise ``InputError`` if two cases would be one file."""
    twice = [name for name, count in Counter(case.name.lower() for case in cases).items() if count > 1]
    if twice:
        raise InputError(
            "some cases have the same name",
            found=", ".join(twice[:8]),
            expected="names that differ in more than upper and lower case",
            remedy="rename the volumes, or export one configuration at a time",
        )


def label_numbers(organelles: Sequence[str], needs_ignore: bool) -> dict[str, int]:
    """Number the labels consecutively, as nnU-Net wants them: background, organelles, and ``ignore`` as the highest."""
    names = ["background", *organelles, *([IGNORE] if needs_ignore else [])]
    return {name: number for number, name in enumerate(names)}


def dataset_json(layout: Layout, name: str) -> dict[str, object]:
    """Return nnU-Net's ``dataset.json``. A channel that is not called CT is normalised by z-score, image by image."""
    return {
        "channel_names": {"0": "EM"},
        "labels": dict(layout.labels),
        "numTraining": len(layout.of("train", "validation")),
        "file_ending": layout.file_ending,
        "overwrite_image_reader_writer": layout.reader,
        "name": name,
        "description": f"{layout.dataset}, configuration {layout.config}, {layout.dimension}",
    }


def splits_final(layout: Layout) -> list[dict[str, list[str]]]:
    """Return ``splits_final.json``: fold 0 is our train and validation.

    Without a validation case it validates on what it trains on, as nnU-Net's own fold ``all`` does.
    """
    train, validation = ([case.name for case in layout.of(fold)] for fold in ("train", "validation"))
    return [{"train": train or validation, "val": validation or train}]


def write_json(path: Path, content: object) -> None:
    """Write a JSON file that appears complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda partial: partial.write_text(json.dumps(content, indent=1) + "\n"))


def layout_json(layout: Layout) -> dict[str, Any]:
    """Return the content of ``cases.json``."""
    return {"format": FORMAT, **json.loads(json.dumps(asdict(layout)))}


def read_layout(path: str | os.PathLike[str]) -> Layout:
    """Read ``cases.json``; anything that is none is an ``InputError``."""
    file = Path(path)
    if file.is_dir():
        file = file / CASES_FILE
    try:
        if file.stat().st_size > MOST_BYTES:
            raise ValueError(f"{file.stat().st_size:,} bytes")
        content = json.loads(file.read_text())
        if content.pop("format") != FORMAT:
            raise ValueError("another format")
        cases = tuple(_case(entry) for entry in content.pop("cases"))
        layout = Layout(**content, cases=cases)
        _check_layout(layout)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{file} says not which case is which part of the dataset",
            found=f"{type(error).__name__}: {error}",
            expected=f"{CASES_FILE} that `em-bench export nnunet` wrote ({FORMAT!r})",
            remedy="name it with --cases, or leave --cases out if the files are named after volumes or rows",
        ) from error
    return layout


def _case(entry: Mapping[str, Any]) -> Case:
    box = Box(str(entry["box"]["volume_id"]), triple(entry["box"]["start"]), triple(entry["box"]["shape"]))
    if entry["axis"] not in AXES or min(box.shape) < 1 or min(box.start) < 0:
        raise ValueError(f"case {entry['name']!r} is no box of a volume")
    size = nm_triple(entry["voxel_size_nm"])
    if not all(0 < nm < float("inf") for nm in size):
        raise ValueError(f"case {entry['name']!r} has the voxel size {size}")
    named = {"annotated": tuple(entry["annotated"]), "records": tuple(entry["records"])}
    return Case(
        str(entry["name"]), str(entry["fold"]), entry["axis"], box, size, has_ignore=entry["has_ignore"], **named
    )


def _check_layout(layout: Layout) -> None:
    numbers = list(layout.labels.values())
    if not set(layout.labels) <= {"background", IGNORE, *ORGANELLES} or numbers != list(range(len(numbers))):
        raise ValueError(f"labels {layout.labels}")
    if layout.pixel_nm is not None and not 0 < layout.pixel_nm < float("inf"):
        raise ValueError(f"pixels of {layout.pixel_nm} nm")
    check_names(layout.cases)
