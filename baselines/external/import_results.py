"""Read the results of any program as a prediction folder, which ``em-bench score`` takes like one of our own."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tqdm import tqdm

from baselines.data import name_without_path
from baselines.external.import_decode import CaseResult
from baselines.external.import_files import find_results, raise_faults
from baselines.external.import_reader import ImportRequest, Reader, has_npz
from baselines.external.nnunet_layout import Case, Layout, layout_json, read_layout, row_cases, whole_cases
from baselines.external.row_boxes import AXES, RowBox, read_split, volume_boxes
from em_bench_eval import __version__
from em_bench_eval.errors import InputError
from em_bench_eval.rows import PREDICTIONS_FILE, write_predictions
from em_bench_eval.schema import Organelle, Prediction

REMEDY = "name files after the cases of --cases, or after volumes or rows of the dataset; or give --pattern"


def import_results(request: ImportRequest, out: Path, *, overwrite: bool = False) -> int:
    """Write the prediction folder ``out``; return the number of images.

    Everything about the files that can be wrong without reading voxels is raised as one ``InputError`` before anything
    is read.
    """
    if (out / PREDICTIONS_FILE).exists() and not overwrite:
        raise InputError(f"{out} holds a prediction", remedy="name another folder with --out, or add --overwrite")
    boxes = read_split(request.dataset, request.config, request.split)
    layout = _layout(request, boxes.boxes)
    if layout.digests.get(request.split, boxes.digest) != boxes.digest:
        print("note: the reference has changed since these cases were exported", file=sys.stderr)
    plan = _match_rows(boxes.boxes, layout, request)
    needed = list(dict.fromkeys(case.name for cases in plan.values() for case in cases))
    npz = request.kind == "probabilities" and has_npz(request.results)
    found = find_results(request.results, layout.cases, needed, request.pattern, npz)
    reader = Reader(request, layout, found, npz)
    faults = found.faults + reader.faults([case for case in layout.cases if case.name in set(needed)])
    raise_faults(faults, request.results, needed, REMEDY)
    info = _info(request, layout, reader)
    place_of = {name: place for place, name in enumerate(needed)}
    rows = sorted(boxes.boxes, key=lambda row: place_of[plan[row.record_id][0].name])
    at_once = max((len(cases) for cases in plan.values()), default=1)
    load = lru_cache(maxsize=at_once)(reader.load)
    with tqdm(rows, desc=f"import {request.model}", unit="image") as bar:
        count = write_predictions(out, (_prediction(row, plan[row.record_id], load) for row in bar), info)
    if reader.contested:
        print(
            f"note: {reader.contested} pixels were claimed by several organelles; the first kept them", file=sys.stderr
        )
    return count


def _layout(request: ImportRequest, rows: Sequence[RowBox]) -> Layout:
    """Return the export's cases, or where there was none those that the files' names speak of: volumes or rows."""
    if request.cases is not None:
        return read_layout(request.cases)
    labels = {"background": 0, **{organelle.value: organelle.label_id for organelle in Organelle}}
    flat = tuple(row_cases(rows, request.split))
    layout = Layout(name_without_path(request.dataset), request.config, "2d", "", "", None, labels, "", {}, flat)
    npz = request.kind == "probabilities" and has_npz(request.results)
    if find_results(request.results, flat, [], request.pattern, npz).of_case:
        return layout
    return replace(layout, dimension="3d", cases=tuple(whole_cases(rows, volume_boxes(request.dataset), request.split)))


def _match_rows(rows: Sequence[RowBox], layout: Layout, request: ImportRequest) -> dict[str, list[Case]]:
    """Return the cases that make up each row: the case of that very row, or the volumes that cover it."""
    by_volume: dict[str, list[Case]] = {}
    for case in layout.cases:
        by_volume.setdefault(case.box.volume_id, []).append(case)
    lists = {record: case for case in layout.cases for record in case.records}
    plan: dict[str, list[Case]] = {}
    faults = []
    for row in rows:
        there = by_volume.get(row.box.volume_id, [])
        if row.record_id in lists:  # a whole volume may cover the slabs of other folds
            there = [lists[row.record_id]]
        if layout.dimension == "2d":
            parts = [case for case in there if case.box == row.box and case.axis == row.axis][:1]
        else:
            whole = [case for case in there if case.box.covers(row.box)]
            parts = whole[:1] or [case for case in there if case.box.overlap(row.box)]
        covered = sum(part.voxels for case in parts if (part := case.box.overlap(row.box)))
        if covered != row.box.voxels:  # cases do not overlap one another
            faults.append(f"{row.record_id}: in no case" if not parts else f"{row.record_id}: only partly in cases")
        plan[row.record_id] = parts
    raise_faults(
        faults,
        request.cases or request.results,
        [case.name for case in layout.cases],
        "import the configuration and split that were exported (--config, --split), from the same dataset",
    )
    return plan


def _prediction(row: RowBox, cases: Sequence[Case], load: Callable[[Case], CaseResult]) -> Prediction:
    """Put a row together from the cases that it lies in; ids of different cases are different instances."""
    plane = np.zeros(row.box.shape, np.uint32)
    organelle_of: dict[int, Organelle] = {}
    confidence_of: dict[int, float] = {}
    for case in cases:
        part = case.box.overlap(row.box)
        assert part is not None, "cases of a row overlap it"
        inside = part.within(case.box)
        across, down, along = (inside[axis] for axis in case.order)
        piece = load(case).read((across, down, along))
        back = np.argsort(case.order)
        labels = np.transpose(piece.labels, back)
        known, positions = np.unique(labels, return_inverse=True)
        numbers = np.cumsum(known != 0) + len(organelle_of)
        numbers[known == 0] = 0
        plane[part.within(row.box)] = numbers[positions].reshape(labels.shape)
        for old, new in zip(known.tolist(), numbers.tolist(), strict=True):
            if old:
                organelle_of[new] = piece.organelle_of[old]
                confidence_of[new] = piece.confidence_of.get(old, 1.0)
    return Prediction(row.record_id, plane.squeeze(AXES.index(row.axis)), organelle_of, confidence_of)


def _info(request: ImportRequest, layout: Layout, reader: Reader) -> dict[str, object]:
    """What ``prediction.json`` records: everything that decided the result."""
    exported = json.dumps(layout_json(layout), sort_keys=True).encode()
    decoding: dict[str, object] = {"kind": request.kind, "axes": request.axes, "inside": request.inside}
    if request.kind != "instances":
        decoding |= {"rule": asdict(request.rule), "labels": reader.labels}
        if request.rule.decode == "baseline":
            names = [Organelle(name) for name in reader.organelles]
            decoding["decoders"] = {str(name): request.rule.decoder(name).recorded("components") for name in names}
    return {
        "model": request.model,
        "checkpoint": request.checkpoint,
        "dataset": name_without_path(request.dataset),
        "config": request.config,
        "split": request.split,
        "organelles": list(reader.organelles),
        "imported": True,
        "settings": {
            **decoding,
            "dimension": layout.dimension,
            "pixel_size_nm": layout.pixel_nm,
            "cases_sha256": hashlib.sha256(exported).hexdigest(),
        },
        "training": {"note": request.note} if request.note else {},
        "versions": {"em_organelle_wild": __version__, "numpy": version("numpy")},
    }
