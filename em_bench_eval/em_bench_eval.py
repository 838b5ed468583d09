"""The ``evaluate`` module: ``evaluate.load("em_bench_eval")`` at the repository root, or by path, or from a Hub Space.

``evaluate`` copies this file and the siblings named below to its cache and imports the copies, so nothing of ours
needs to be installed. Hence the rules of this file (``tests/test_evaluate_module.py`` holds them): every sibling that
travels is named here, siblings import each other relatively, and these lines carry no comments. The classes of the
copies are not those of an installed ``em_bench_eval``: only arrays, strings, numbers and dicts cross over.

Label maps are reduced to additive statistics as they arrive. These are what enters the Arrow cache and what is gathered
from the other processes; label maps never do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import datasets
import evaluate

from .blocks import OpenItem
from .boundary_statistics import boundary_statistics
from .components import component_sizes
from .errors import InputError
from .hdf5_volume import open_hdf5
from .judging import judge
from .label_maps import organelle_name
from .matching import best_matching
from .matching_compiled import kernel
from .metric import Metric
from .metrics import METRICS
from .metrics_boundary import METRICS as BOUNDARY
from .metrics_instance import METRICS as INSTANCE
from .metrics_network import METRICS as NETWORK
from .metrics_panoptic import METRICS as PANOPTIC
from .metrics_semantic import METRICS as SEMANTIC
from .metrics_skeleton import METRICS as SKELETON
from .mrc_volume import open_mrc
from .nifti_volume import open_nifti
from .numba_kernels import compile_kernels
from .opened import Opened
from .overlap import contingency
from .overlap_compiled import kernels
from .overlap_statistics import overlap_statistics
from .per_instance import instance_rows
from .rows import decode_png
from .schema import ORGANELLES
from .score_volumes import open_labels, score_volumes
from .scoring import Evaluation, statistic_names
from .settings import METRIC_VERSION, Settings
from .simple_points import classify
from .skeleton_graph import edges_between
from .skeleton_statistics import skeleton_statistics
from .spacing import Spacing
from .squared_distance import squared_distance
from .stack_volume import open_stack
from .surface import Surface
from .thinning import skeletonise
from .thinning_compiled import kernels as thinning_kernels
from .tiff_volume import open_tiff
from .touching import without_contacts
from .volume_files import FORMATS
from .volume_io import open_volume

_DESCRIPTION = (
    f"Instance segmentation of organelles in electron microscopy ({', '.join(ORGANELLES)}): exact, pooled over images, "
    "with partial annotation and ignored regions. Every key names its aggregation."
)

_INPUTS = """
Args:
    predictions, references: lists of items, image by image (or volume by volume). An item is one of
        - a row of the dataset, as `load_dataset` gives it (columns instances and objects; of a reference row also
          annotated, ignore and pixel_size_nm are used), or a row of a prediction folder;
        - `{"mito": label_map, ...}`;
        - `(label_map, {1: "mito", 2: "er", ...})`;
        - a label map, if `organelle` says what it holds;
        - the path or address of a volume (zarr, N5, TIFF, NIfTI, HDF5, MRC): a label map of `organelle`, a folder with
          a label map per organelle, or a volume of the dataset. It is read in blocks; needs `tensorstore` for zarr.
      A label map is an integer array, a PIL image, encoded PNG bytes or nested lists; 0 is background.
    voxel_size_nm: `(y, x)` or `(z, y, x)`, the same for the whole call; default: the row's pixel_size_nm.
    annotated: organelles that the references label; default: the row's, or all five.
    ignore: one mask (or None) per item, True where nobody annotated; default: the row's.
    organelle: judge this organelle alone, and read plain label maps as its instances.
Returns:
    `{"mito/dice__instance": 0.71, "mito/pq": ..., "macro/dice__instance": ..., ...}`, None where a value is undefined:
""" + "".join(f"    - {name}: {metric.definition} ({metric.aggregation})\n" for name, metric in METRICS.items())

_STATISTICS = "statistics"  # in the order of scoring.statistic_names

_CITATION = """\
@software{em_organelle_wild,
  title = {em-organelle-wild: a multi-source benchmark for organelle instance segmentation in electron microscopy}
}
"""


class EMBenchEval(evaluate.Metric):  # type: ignore[misc]  # evaluate has no type hints
    """Per-organelle instance metrics; ``evaluate.load`` takes the fields of ``scoring.Settings`` as keywords."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        given = {name: kwargs.pop(name) for name in list(kwargs) if name in Settings.__dataclass_fields__}
        self._settings = Settings(**given)
        self._names = statistic_names()
        super().__init__(*args, **kwargs)

    def _info(self) -> Any:
        text = datasets.Value("string")
        columns = {"settings": text, "axes": datasets.Value("int8"), "item": text, "organelle": text}
        return evaluate.MetricInfo(
            description=f"{_DESCRIPTION} Metric version {METRIC_VERSION}.",
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({**columns, _STATISTICS: datasets.List(datasets.Value("float64"))}),
        )

    def add(self, *, prediction: Any = None, reference: Any = None, ignore: Any = None, **kwargs: Any) -> None:
        """Count one image or volume; see ``add_batch``."""
        self.add_batch(predictions=[prediction], references=[reference], ignore=[ignore], **kwargs)

    def add_batch(
        self,
        *,
        predictions: Any = None,
        references: Any = None,
        voxel_size_nm: Sequence[float] | None = None,
        annotated: Sequence[str] | None = None,
        ignore: Sequence[Any] | None = None,
        organelle: str | None = None,
        **unknown: Any,
    ) -> None:
        """Count a batch of images or volumes; a batch with a fault is not counted at all."""
        if unknown:
            raise InputError(
                f"em_bench_eval does not know {', '.join(sorted(unknown))}",
                expected="predictions, references, voxel_size_nm, annotated, ignore, organelle",
                remedy="settings such as reference_ids belong to evaluate.load(..., reference_ids='slice')",
            )
        items = [list(items) for items in (predictions, references)]
        masks = [None] * len(items[1]) if ignore is None else list(ignore)
        if not len(items[0]) == len(items[1]) == len(masks):
            raise InputError(
                "predictions and references must come in pairs",
                found=f"{len(items[0])} predictions, {len(items[1])} references, {len(masks)} ignore masks",
                expected="one of each per image",
            )
        evaluation = Evaluation(self._settings)
        for prediction, reference, mask in zip(*items, masks, strict=True):
            if isinstance(reference, (str, PathLike)) or isinstance(prediction, (str, PathLike)):
                evaluation.merge(self._score_paths(prediction, reference, mask, organelle, voxel_size_nm))
                continue
            evaluation.add(
                _maps("prediction", prediction, organelle),
                _maps("reference", reference, organelle),
                **_context(reference, voxel_size_nm, annotated, mask, organelle),
            )
        rows = evaluation.to_rows()
        batch = {name: [row[name] for row in rows] for name in self.features if name != _STATISTICS}
        # one column of lists: evaluate spends time on every column
        super().add_batch(**batch, **{_STATISTICS: [[row.get(name) for name in self._names] for row in rows]})

    def _score_paths(
        self, prediction: Any, reference: Any, mask: Any, organelle: str | None, voxel_size_nm: Sequence[float] | None
    ) -> Evaluation:
        """Score a volume by path against another, block by block."""
        if not all(isinstance(path, (str, PathLike)) for path in (prediction, reference)):
            raise InputError(
                "a path meets an array",
                found=f"{type(prediction).__name__}, {type(reference).__name__}",
                expected="both",
            )
        return score_volumes(
            open_labels(prediction, organelle),
            open_labels(reference, organelle),
            settings=self._settings,
            voxel_size_nm=voxel_size_nm,
            ignore=None if mask is None else open_volume(mask),
        )

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any] | None:
        """Count what is given, then compute every metric over all that was added; None but on process 0."""
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references, **kwargs)
        elif self.writer is None:  # a process without images still takes part in the gathering
            super().add_batch(**{name: [] for name in self.features})
        result: dict[str, Any] | None = super().compute()
        return result

    def _compute(self, **columns: Any) -> dict[str, Any]:
        evaluation = Evaluation(self._settings)
        statistics = columns.pop(_STATISTICS)
        for values, *head in zip(statistics, *columns.values(), strict=True):
            row = dict(zip(columns, head, strict=True))
            evaluation.add_rows([{**row, **dict(zip(self._names, values, strict=True))}])
        return evaluation.compute()


def _is_row(item: Any) -> bool:
    return isinstance(item, Mapping) and "instances" in item


def _maps(name: str, item: Any, organelle: str | None) -> Any:
    """Bring an item to a form that ``Evaluation.add`` takes."""
    if _is_row(item):
        return decode_png(item["instances"]), {entry["id"]: str(entry["organelle"]) for entry in _objects(item)}
    if isinstance(item, Mapping) and "bytes" not in item:
        return {key: decode_png(labels) for key, labels in item.items()}
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], Mapping):
        return decode_png(item[0]), item[1]
    if organelle is None:
        raise InputError(
            f"a {name} is a plain label map, and nothing says of which organelle",
            found=type(item).__name__,
            expected='{"mito": label map}, (label map, {1: "mito", ...}) or a dataset row',
            remedy='pass organelle="mito" if all label maps hold mitochondria',
        )
    return {organelle_name(organelle): decode_png(item)}


def _objects(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """List a row's objects, which ``datasets`` gives as a list of dicts or as a dict of lists."""
    objects = row["objects"]
    if isinstance(objects, Mapping):
        return [dict(zip(objects, entry, strict=True)) for entry in zip(*objects.values(), strict=True)]
    return list(objects)


def _context(
    reference: Any,
    voxel_size_nm: Sequence[float] | None,
    annotated: Sequence[str] | None,
    mask: Any,
    organelle: str | None,
) -> dict[str, Any]:
    """Take voxel size, annotated organelles and ignore mask from the call, else from the reference row."""
    row: Mapping[str, Any] = reference if _is_row(reference) else {}
    voxel_size_nm = row.get("pixel_size_nm") if voxel_size_nm is None else voxel_size_nm
    if voxel_size_nm is None:
        raise InputError(
            "voxel_size_nm is missing",
            expected="voxel_size_nm=(y, x) or (z, y, x) in nm, or reference rows with pixel_size_nm",
        )
    judged = row.get("annotated") if annotated is None else annotated
    judged = None if judged is None else [organelle_name(str(name)) for name in judged]
    if organelle is not None:
        judged = [organelle_name(organelle)] if judged is None or organelle in judged else []
    mask = row.get("ignore") if mask is None else mask
    return {
        "voxel_size_nm": voxel_size_nm,
        "annotated": judged,
        "ignore": None if mask is None else decode_png(mask),
    }
