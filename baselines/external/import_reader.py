"""Opening and decoding the results of single cases, as a request says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from baselines.external.import_arrays import npz_shape, open_result, read_maps, read_npz
from baselines.external.import_decode import (
    CaseResult,
    Decoded,
    Given,
    Piece,
    Rule,
    classes_of,
    instances_of,
    most_probable,
)
from baselines.external.import_files import ANY, PROBABILITIES, Results
from baselines.external.nnunet_layout import IGNORE, Case, Layout
from em_bench_eval.errors import InputError
from em_bench_eval.opened import Box, Opened
from em_bench_eval.schema import ORGANELLES, Organelle

BYTES_PER_VOXEL = 16  # classes, instances, and what labelling needs


@dataclass(frozen=True)
class ImportRequest:
    """What to read, and what it means.

    ``labels``: organelle of each value of a semantic map, or of each channel of probabilities (default: those of
    ``cases``, else ``Organelle.label_id``); 0 is background. ``organelle``: of files whose name says none.
    ``cases``: of the export; without it files are called after volumes or rows. ``inside``: the array in HDF5, zarr and
    N5. ``axes``: order of the axes in the files.
    """

    results: Path
    dataset: str
    config: str
    split: str
    model: str
    kind: str = "semantic"
    cases: Path | None = None
    organelle: str | None = None
    labels: Mapping[str, int] | None = None
    pattern: str | None = None
    inside: str | None = None
    axes: str = "zyx"
    rule: Rule = field(default_factory=Rule)
    checkpoint: str | None = None
    note: str | None = None
    memory_gb: float = 16.0


class Reader:
    """Opens the results of cases."""

    def __init__(self, request: ImportRequest, layout: Layout, found: Results, npz: bool) -> None:
        self.request, self.layout, self._files, self._npz = request, layout, found.of_case, npz
        self.contested = 0
        self.labels = dict(request.labels) if request.labels is not None else dict(layout.labels)
        self.organelles = self._predicted(found)

    def faults(self, cases: Sequence[Case]) -> list[str]:
        """Check size and number of channels of every needed result, and what would need too much memory."""
        faults = []
        for case in cases:
            for path in self._files.get(case.name, {}).values():
                try:
                    fault = self._fault(case, path)
                except InputError as error:
                    fault = f"{error.problem} ({error.found})"
                if fault:
                    faults.append(f"{case.name}: {fault}")
        return faults

    def load(self, case: Case) -> CaseResult:
        """Read and decode a case; instance maps are only opened."""
        request, files, ratio = self.request, self._files[case.name], self._ratio(case)
        ordered = [(name, files[name]) for name in (ANY, *ORGANELLES) if name in files]
        if request.kind == "instances":
            maps = [(Organelle(name or str(request.organelle)), self._open(path)) for name, path in ordered]
            given = Given(maps, case.shape, ratio)
            return _Counting(given, self)
        if request.kind == "probabilities":
            if self._npz:
                probability = read_npz(files[ANY], case.shape, ratio)
                channels = sorted((number, name) for name, number in self.labels.items() if name != IGNORE)
                label_ids = [Organelle(name).label_id if name in ORGANELLES else 0 for _, name in channels]
            else:
                probability = read_maps([self._open(path) for _, path in ordered], case.shape, ratio)
                label_ids = [0, *(Organelle(name or str(request.organelle)).label_id for name, _ in ordered)]
            classes, best = most_probable(probability, label_ids)
            return Decoded(instances_of(classes, case.spacing_nm, request.rule, best))
        merged = None
        for name, path in ordered:
            single = name or request.organelle
            classes = classes_of(self._open(path), case.shape, ratio, None if single else self._table())
            if single:
                classes *= np.uint8(Organelle(single).label_id)
            if merged is not None:
                self.contested += int(((merged > 0) & (classes > 0)).sum())
            merged = classes if merged is None else np.where(merged > 0, merged, classes)
        assert merged is not None, "a case has a result"
        return Decoded(instances_of(merged, case.spacing_nm, request.rule))

    def _predicted(self, found: Results) -> tuple[str, ...]:
        request = self.request
        if found.organelles:
            return found.organelles
        if request.organelle is not None:
            return (request.organelle,)
        if request.kind == "instances" or (request.kind == "probabilities" and not self._npz):
            raise InputError(
                f"nothing says of which organelle the results in {request.results} are",
                expected="--organelle NAME, a folder for each organelle (mito/CASE), or names like CASE_mito",
                remedy=f"name it: --organelle {' | '.join(ORGANELLES)}",
            )
        return tuple(name for name in self.labels if name in ORGANELLES)

    def _table(self) -> dict[int, int]:
        """Return what each value of a semantic map means; ``ignore`` is never predicted, and reads as background."""
        known = {number: Organelle(name).label_id for name, number in self.labels.items() if name in ORGANELLES}
        return {0: 0, **{number: 0 for name, number in self.labels.items() if name not in ORGANELLES}, **known}

    def _open(self, path: Path) -> Opened:
        return open_result(path, self.request.inside, self.request.axes)

    def _ratio(self, case: Case) -> tuple[float, float, float]:
        if self.layout.pixel_nm is None:
            return (1.0, 1.0, 1.0)
        return (1.0, case.spacing_nm[1] / self.layout.pixel_nm, case.spacing_nm[2] / self.layout.pixel_nm)

    def _fault(self, case: Case, path: Path) -> str | None:
        expected = case.file_shape(self.layout.pixel_nm)
        channels = 0
        if self._npz:
            channels, *shape = npz_shape(path)
            usual = len([name for name in self.labels if name != IGNORE])
            if channels != usual:
                return f"{path.name} has {channels} channels, not {usual} (background and the organelles)"
        else:
            shape = list(self._open(path).shape)
        if tuple(shape) != expected:
            turned = " (its axes may be in another order: --axes)" if sorted(shape) == sorted(expected) else ""
            return f"{path.name} has the shape {tuple(shape)}, not {expected}{turned}"
        whole = self.request.kind != "instances"
        needed_gb = case.box.voxels * (BYTES_PER_VOXEL + 6 * channels) / 1e9 if whole else 0
        if needed_gb > self.request.memory_gb:
            return f"decoding needs about {needed_gb:.0f} GB: label it with em-bench label, import with --instances"
        return None


@dataclass(frozen=True)
class _Counting:
    """Instance maps that report contested pixels to their reader."""

    given: Given
    reader: Reader

    def read(self, box: Box) -> Piece:
        """Read a box."""
        before = self.given.contested
        piece = self.given.read(box)
        self.reader.contested += self.given.contested - before
        return piece


def has_npz(place: Path) -> bool:
    """Tell whether results are nnU-Net's probabilities."""
    return place.suffix == PROBABILITIES or (place.is_dir() and any(place.glob(f"*{PROBABILITIES}")))
