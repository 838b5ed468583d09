"""Export a dataset for nnU-Net v2, and for any other program that reads folders of NIfTI, TIFF or PNG files.

2D cases are the rows. 3D cases are read from the OME-Zarr volumes: the slab of each fold, or for the test cases the
whole volume. Files are written plane by plane; an interrupted export goes on where it was.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from baselines.data import name_without_path
from baselines.external.nnunet_layout import (
    CASES_FILE,
    IMAGE_SUFFIX,
    Case,
    Layout,
    check_names,
    dataset_json,
    label_numbers,
    layout_json,
    row_cases,
    slab_cases,
    splits_final,
    whole_cases,
    write_json,
)
from baselines.external.nnunet_planes import Source
from baselines.external.nnunet_readme import readme
from baselines.external.plane_writers import FILE_KINDS, FileKind, Planes
from baselines.external.row_boxes import SplitRows, read_split, volume_boxes
from em_bench_eval.errors import InputError, unknown_name
from em_bench_eval.schema import FOLDS, ORGANELLES


@dataclass(frozen=True)
class ExportRequest:
    """What to export, and how.

    ``organelles`` None: all that a training case has annotated. ``unannotated``: what becomes of a training case where
    some exported organelle is not annotated - "ignore" gives its background, which may be that organelle, the ignore
    label; "drop" leaves the case out.
    """

    dataset: str
    config: str
    out: Path
    dimension: str = "2d"
    organelles: tuple[str, ...] | None = None
    unannotated: str = "ignore"
    file_format: str = "nifti"
    pixel_nm: float | None = None
    whole_volumes: bool = False
    test_only: bool = False
    dataset_id: int = 501
    name: str = "EM"


def export(request: ExportRequest, *, overwrite: bool = False) -> Layout:
    """Write the folder ``request.out``, which appears when it is complete.

    Raises ``InputError`` for a request that cannot be met, and where the folder or an unfinished export of other
    settings is in the way and ``overwrite`` is not set.
    """
    kind = _check(request)
    splits = _read_splits(request)
    layout = plan(request, splits)
    out, partial = request.out, request.out.with_name(f".partial-{request.out.name}")
    if out.exists() and not overwrite:
        _require_same(out, layout, f"{out} holds something else")
        return layout
    if out.exists() and any(out.iterdir()) and not (out / CASES_FILE).is_file():
        raise InputError(f"{out} holds something else", remedy="name another folder with --out; it is not overwritten")
    if partial.exists() and not (partial / CASES_FILE).exists():
        shutil.rmtree(partial)  # interrupted before it held anything
    elif partial.exists() and overwrite:
        shutil.rmtree(partial)
    elif partial.exists():
        _require_same(partial, layout, f"{partial} holds an unfinished export of other settings")
    write_json(partial / CASES_FILE, layout_json(layout))
    _write_all(request, layout, splits, kind, partial)
    if out.exists():
        shutil.rmtree(out)
    os.replace(partial, out)
    return layout


def plan(request: ExportRequest, splits: dict[str, SplitRows]) -> Layout:
    """Decide cases, labels and folds; reads no image."""
    cases: list[Case] = []
    for fold, split in splits.items():
        if request.dimension == "2d":
            cases += row_cases(split.boxes, fold)
        elif request.whole_volumes and fold == "test":
            cases += whole_cases(split.boxes, volume_boxes(request.dataset), fold)
        else:
            cases += slab_cases(split.boxes, fold)
    check_names(cases)
    organelles = _chosen(request, cases)
    kept = [case for case in cases if case.fold == "test" or _is_useful(case, organelles, request.unannotated)]
    if not request.test_only and all(case.fold == "test" for case in kept):
        raise InputError(
            "there is nothing to train on",
            found=f"{sum(case.fold != 'test' for case in cases)} training cases, none of them with what is asked for",
            expected=f"cases in which {', '.join(organelles) or 'an organelle'} is annotated",
            remedy="ask for other organelles, or export the test images alone with --test-only",
        )
    needs_ignore = any(case.has_ignore or not set(organelles) <= set(case.annotated) for case in kept)
    kind = FILE_KINDS[request.file_format]
    return Layout(
        dataset=name_without_path(request.dataset),
        config=request.config,
        dimension=request.dimension,
        file_ending=kind.ending,
        reader=kind.reader_2d if request.dimension == "2d" else str(kind.reader_3d),
        pixel_nm=request.pixel_nm,
        labels=label_numbers(organelles, needs_ignore),
        unannotated=request.unannotated,
        digests={fold: split.digest for fold, split in splits.items()},
        cases=tuple(kept),
    )


def _check(request: ExportRequest) -> FileKind:
    if request.file_format not in FILE_KINDS:
        raise unknown_name("format", request.file_format, FILE_KINDS)
    for organelle in request.organelles or ():
        if organelle not in ORGANELLES:
            raise unknown_name("organelle", organelle, ORGANELLES)
    kind = FILE_KINDS[request.file_format]
    if request.dimension == "3d" and kind.reader_3d is None:
        raise InputError(f"{kind.ending} files hold no volumes", remedy="--format nifti or tiff, or --dimension 2d")
    if request.whole_volumes and request.dimension == "2d":
        raise InputError("--whole-volumes exports volumes", found="--dimension 2d", remedy="add --dimension 3d")
    if not 1 <= request.dataset_id <= 999 or not request.name.replace("_", "").isalnum():
        raise InputError(
            "nnU-Net calls a dataset Dataset501_Name",
            found=f"number {request.dataset_id}, name {request.name!r}",
            expected="a number of 1 to 999, and a name of letters, digits and underscores",
        )
    if request.dimension == "3d" and not Path(request.dataset, "volumes.parquet").is_file():
        raise InputError(
            f"{request.dataset} has no volumes here",
            found="no volumes.parquet in such a folder",
            expected="a dataset folder with volumes/*.zarr",
            remedy="download the dataset first (hf download --repo-type dataset), or export --dimension 2d",
        )
    return kind


def _read_splits(request: ExportRequest) -> dict[str, SplitRows]:
    found: dict[str, SplitRows] = {}
    for fold in ("test",) if request.test_only else FOLDS:
        try:
            found[fold] = read_split(request.dataset, request.config, fold)
        except InputError:
            if fold != "validation":  # a small dataset may have none
                raise
    return found


def _chosen(request: ExportRequest, cases: list[Case]) -> tuple[str, ...]:
    """Return the organelles to export: those asked for, or all that are annotated where it matters."""
    if request.organelles:
        return tuple(name for name in ORGANELLES if name in request.organelles)
    folds = ("test",) if request.test_only else ("train", "validation")
    return tuple(name for name in ORGANELLES if any(name in case.annotated for case in cases if case.fold in folds))


def _is_useful(case: Case, organelles: tuple[str, ...], unannotated: str) -> bool:
    """Tell whether a training case teaches anything: one annotated organelle, or all of them where it must be."""
    there = [name in case.annotated for name in organelles]
    return all(there) and bool(there) if unannotated == "drop" else any(there)


def _require_same(folder: Path, layout: Layout, problem: str) -> None:
    there = json.loads((folder / CASES_FILE).read_text()) if (folder / CASES_FILE).is_file() else {}
    now = layout_json(layout)
    if there != now:
        changed = ", ".join(key for key in now if there.get(key) != now[key])
        raise InputError(
            problem,
            found=f"it differs in {changed}" if there else f"no {CASES_FILE}",
            remedy="name another folder with --out, or start again with --overwrite",
        )


def _write_all(
    request: ExportRequest, layout: Layout, splits: dict[str, SplitRows], kind: FileKind, folder: Path
) -> None:
    dataset = f"Dataset{request.dataset_id:03d}_{request.name}"
    raw = folder / "nnUNet_raw" / dataset
    source = Source(request.dataset, splits, layout)
    for case in tqdm(layout.cases, desc=f"export {layout.dimension}", unit="case"):
        part = "Ts" if case.fold == "test" else "Tr"
        wanted: list[tuple[Path, Planes, Any]] = [
            (raw / f"images{part}" / f"{case.name}{IMAGE_SUFFIX}", source.image(case), np.uint8),
            ((raw if part == "Tr" else folder) / f"labels{part}" / case.name, source.labels(case), np.uint8),
        ]
        if part == "Ts":
            wanted += [
                (folder / "instancesTs" / name / case.name, source.instances(case, name), source.id_dtype(case))
                for name in layout.organelles
            ]
        for stem, planes, dtype in wanted:
            _write(stem, planes, dtype, case, layout, kind)
    if not request.test_only:
        write_json(raw / "dataset.json", dataset_json(layout, request.name))
        splits_file = folder / "nnUNet_preprocessed" / dataset / "splits_final.json"
        write_json(splits_file, splits_final(layout))
    (folder / "README.md").write_text(readme(layout, request.dataset_id, dataset, request.test_only))


def _write(stem: Path, planes: Planes, dtype: Any, case: Case, layout: Layout, kind: FileKind) -> None:
    """Write one file of a case, unless an interrupted export did, and the file with its spacing where one is due."""
    path = stem.with_name(stem.name + layout.file_ending)
    spacing = case.file_spacing_nm(layout.pixel_nm)
    if not path.exists():
        flat = layout.dimension == "2d"
        kind.write(path, planes, case.file_shape(layout.pixel_nm), dtype, (0.0, *spacing[1:]) if flat else spacing)
    if layout.dimension == "3d" and not kind.states_spacing:
        write_json(path.with_name(f"{case.name}.json"), {"spacing": spacing})
