"""Score a prediction folder against the dataset that it predicts: every image, pooled by group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_bench_eval.errors import InputError

if TYPE_CHECKING:
    from em_bench_eval.metric import Value
    from em_bench_eval.rows import LabelledImage
    from em_bench_eval.schema import Prediction
    from em_bench_eval.scoring import Evaluation
    from em_bench_eval.settings import Settings

SCORE_FORMAT = "em-organelle-wild score v1"
INTERVAL_METRICS = ("dice__instance", "iou__instance", "pq", "ap50", "semantic_dice", "voi__union")
_FAULTS_SHOWN = 10
_PER_IMAGE = ("dice__instance", "n_reference", "n_prediction", "n_matched")


def score_folder(
    prediction: Path,
    reference: str,
    config: str,
    split: str,
    settings: Settings,
    info: Mapping[str, Any],
    *,
    keep_instances: bool = False,
    class_agnostic: bool = False,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Score every image of a prediction folder; returns what ``score.json`` holds, and a row per instance if asked.

    Images are read once, in the order of the predictions; only statistics are kept. All faults (missing or unexpected
    images, another shape, ids without an organelle) are raised together as one ``InputError``. ``intervals`` are 95 %
    bootstrap intervals over volumes where a group has several, else over images. ``class_agnostic``: by the protocols
    of ``em_bench_eval.class_agnostic``, whatever organelles the predictions name, or if they name none.
    """
    from tqdm import tqdm

    from em_bench_eval import rows
    from em_bench_eval.class_agnostic import AgnosticEvaluation
    from em_bench_eval.scoring import Evaluation
    from em_bench_eval.settings import METRIC_VERSION

    build: Any = AgnosticEvaluation if class_agnostic else Evaluation

    dataset = rows.open_rows(reference, config, split)
    index_of = index_by_record(dataset)
    groups: dict[str, Any] = {"all": build(settings)}
    volumes: dict[str, list[str]] = {"all": []}
    per_image: dict[str, dict[str, Value]] = {}
    instances: list[dict[str, Any]] = []
    faults: list[str] = []
    seen: set[str] = set()
    progress = tqdm(rows.read_predictions(prediction), total=info.get("images"), desc="score", unit="image")
    for predicted in progress:
        name = predicted.record_id
        if name in seen or name not in index_of:
            faults.append(f"{name}: {'predicted twice' if name in seen else f'not in {config}/{split}'}")
            continue
        seen.add(name)
        image = rows.decode_row(dataset[index_of[name]])
        if not image.labelled:
            raise rows.labels_are_private(f"{reference} ({config}/{split})")
        try:
            evaluation = score_image(build(settings, keep_instances=keep_instances), predicted, image)
        except InputError as error:
            faults.append(f"{name}: {error.problem} ({error.found})")
            continue
        instances += evaluation.instances()
        for group in ("all", f"domain={image.domain}", f"source={image.source}"):
            groups.setdefault(group, build(settings)).merge(evaluation)
            volumes.setdefault(group, []).append(name.rsplit("/", 2)[0])
        per_image[name] = evaluation.per_image() if class_agnostic else image_values(evaluation)
    faults += [f"{name}: not predicted" for name in index_of if name not in seen]
    _raise_faults(faults, prediction, f"{reference} ({config}/{split})", len(index_of))
    result = {
        "format": SCORE_FORMAT,
        "metric_version": METRIC_VERSION,
        "settings": asdict(settings),
        "settings_hash": settings.hash(),
        "prediction": dict(info),
        **({"class_agnostic": True} if class_agnostic else {}),
        "dataset": {"path": reference, "config": config, "split": split},
        "images": len(per_image),
        "groups": {group: groups[group].compute() for group in sorted(groups)},
        "intervals": {group: group_intervals(groups[group], volumes[group]) for group in sorted(groups)},
        "per_image": {name: per_image[name] for name in sorted(per_image)},
    }
    return result, instances


def score_image(evaluation: Any, predicted: Prediction, image: LabelledImage) -> Any:
    """Add one image to an ``Evaluation`` and return that."""
    evaluation.add(
        (predicted.instances, predicted.organelle_of),
        (image.instances, image.organelle_of),
        voxel_size_nm=image.pixel_size_nm,
        annotated=image.annotated,
        ignore=image.ignore,
        item=predicted.record_id,
    )
    return evaluation


def group_intervals(evaluation: Any, volume_of_item: list[str]) -> dict[str, Any]:
    """Bootstrap the headline keys over volumes, or over images where there is one volume only."""
    from em_bench_eval.confidence import LEVEL, RESAMPLES, intervals
    from em_bench_eval.schema import ORGANELLES

    several = len(set(volume_of_item)) > 1
    clusters = volume_of_item if several else None
    if hasattr(evaluation, "intervals"):
        found = evaluation.intervals(clusters)
    else:
        items = [statistics for _, statistics in evaluation.items()]
        keys = [f"{name}/{metric}" for name in (*ORGANELLES, "macro") for metric in INTERVAL_METRICS]
        found = intervals(items, keys, clusters=clusters)
    return {
        "over": "volumes" if several else "images",
        "n": len(set(volume_of_item)) if several else len(volume_of_item),
        "level": LEVEL,
        "resamples": RESAMPLES,
        "values": {key: list(bounds) for key, bounds in found.items() if bounds is not None},
    }


def image_values(evaluation: Evaluation) -> dict[str, Value]:
    """Select the keys kept per image: the headline and the counts, of organelles that occur in it."""
    values = evaluation.compute()
    kept = {}
    for key, value in values.items():
        organelle, _, name = key.partition("/")
        occurs = organelle == "macro" or values[f"{organelle}/n_reference"] or values[f"{organelle}/n_prediction"]
        if name in _PER_IMAGE and occurs:
            kept[key] = value
    return kept


def index_by_record(dataset: Any) -> dict[str, int]:
    """Map record id to position, reading no image."""
    from em_bench_eval.rows import ID_COLUMNS, row_id

    columns = [name for name in ID_COLUMNS if name in dataset.column_names]
    return {row_id(row): index for index, row in enumerate(dataset.select_columns(columns))}


def _raise_faults(faults: list[str], prediction: Path, dataset: str, images: int) -> None:
    if faults:
        shown = faults[:_FAULTS_SHOWN] + ["..."] * (len(faults) > _FAULTS_SHOWN)
        raise InputError(
            f"the predictions in {prediction} do not fit {dataset}: {len(faults)} faults",
            found="\n    ".join(["", *shown]),
            expected=f"exactly one prediction, of the same shape, for each of the {images} images",
            remedy="predict the same configuration and split that you score (--config, --split), then score again",
        )
