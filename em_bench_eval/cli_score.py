"""``em-bench score``: a prediction folder against the dataset it predicts."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
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
SCORE_FILE = "score.json"
_FAULTS_SHOWN = 10

# header -> metric name; the footnote of the table is made from the declarations of the same metrics
_COLUMNS = {
    "Dice inst": "dice__instance",
    "IoU inst": "iou__instance",
    "PQ": "pq",
    "RQ": "rq",
    "SQ": "sq",
    "Dice sem": "semantic_dice",
    "n ref": "n_reference",
    "n pred": "n_prediction",
}
_PER_IMAGE = ("dice__instance", "n_reference", "n_prediction", "n_matched")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="em-bench score",
        description="Score the predictions of one split against the reference, per organelle and per domain.",
        epilog="example: em-bench score predictions/unet em-organelle-wild --config wild --split test",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prediction", metavar="PRED", type=Path, help="folder written by `em-bench predict`")
    parser.add_argument("reference", metavar="REF", help="dataset folder, or a dataset on the Hub")
    parser.add_argument("--config", help="dataset configuration (default: the one that was predicted)")
    parser.add_argument("--split", help="dataset split (default: the one that was predicted)")
    parser.add_argument(
        "--reference-ids",
        choices=("volume", "slice"),
        default="volume",
        help="'volume': ids as published, one instance may have several pieces in an image; 'slice': each 8-connected "
        "piece of the reference image is an instance (default: %(default)s)",
    )
    parser.add_argument(
        "--min-size-nm2",
        type=float,
        default=0.0,
        metavar="AREA",
        help="do not judge reference or predicted instances smaller than this, in nm^2 (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help=f"where to write (default: PRED/{SCORE_FILE})")
    parser.add_argument("--table", action="store_true", help="print a table for each source as well")
    return parser


def score(argv: list[str]) -> int:
    """Run ``em-bench score``; see ``em-bench score --help``."""
    arguments = _parser().parse_args(argv)
    from em_bench_eval import rows
    from em_bench_eval.settings import Settings

    settings = Settings(min_size_nm=arguments.min_size_nm2, reference_ids=arguments.reference_ids)
    info = rows.read_prediction_info(arguments.prediction)
    config = arguments.config or info.get("config", "wild")
    split = arguments.split or info.get("split", "test")
    result = score_folder(arguments.prediction, arguments.reference, config, split, settings, info)
    out = arguments.out or arguments.prediction / SCORE_FILE
    write_json(out, result)
    print(format_tables(result, by_source=arguments.table))
    print(f"wrote {out}", file=sys.stderr)
    return 0


def score_folder(
    prediction: Path, reference: str, config: str, split: str, settings: Settings, info: Mapping[str, Any]
) -> dict[str, Any]:
    """Score every image of a prediction folder; returns what ``score.json`` holds.

    Images are read once, in the order of the predictions; only counts are kept. All faults (missing or unexpected
    images, another shape, ids without an organelle) are raised together as one ``InputError``.
    """
    from tqdm import tqdm

    from em_bench_eval import rows
    from em_bench_eval.scoring import Evaluation
    from em_bench_eval.settings import METRIC_VERSION

    dataset = rows.open_rows(reference, config, split)
    index_of = _index_by_record(dataset)
    groups: dict[str, Evaluation] = {"all": Evaluation(settings)}
    per_image: dict[str, dict[str, Value]] = {}
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
        try:
            evaluation = _evaluate(predicted, image, settings)
        except InputError as error:
            faults.append(f"{name}: {error.problem} ({error.found})")
            continue
        for group in ("all", f"domain={image.domain}", f"source={image.source}"):
            groups.setdefault(group, Evaluation(settings)).merge(evaluation)
        per_image[name] = _of_image(evaluation)
    faults += [f"{name}: not predicted" for name in index_of if name not in seen]
    _raise_faults(faults, prediction, f"{reference} ({config}/{split})", len(index_of))
    return {
        "format": SCORE_FORMAT,
        "metric_version": METRIC_VERSION,
        "settings": asdict(settings),
        "settings_hash": settings.hash(),
        "prediction": dict(info),
        "dataset": {"path": reference, "config": config, "split": split},
        "images": len(per_image),
        "groups": {group: groups[group].compute() for group in sorted(groups)},
        "per_image": {name: per_image[name] for name in sorted(per_image)},
    }


def _evaluate(predicted: Prediction, image: LabelledImage, settings: Settings) -> Evaluation:
    from em_bench_eval.scoring import Evaluation

    evaluation = Evaluation(settings)
    evaluation.add(
        (predicted.instances, predicted.organelle_of),
        (image.instances, image.organelle_of),
        voxel_size_nm=image.pixel_size_nm,
        annotated=image.annotated,
        ignore=image.ignore,
    )
    return evaluation


def _of_image(evaluation: Evaluation) -> dict[str, Value]:
    """Select the keys kept per image: the headline and the counts, of organelles that occur in it."""
    values = evaluation.compute()
    kept = {}
    for key, value in values.items():
        organelle, _, name = key.partition("/")
        occurs = organelle == "macro" or values[f"{organelle}/n_reference"] or values[f"{organelle}/n_prediction"]
        if name in _PER_IMAGE and occurs:
            kept[key] = value
    return kept


def _index_by_record(dataset: Any) -> dict[str, int]:
    """Map record id to position, reading no image."""
    from em_bench_eval.rows import row_id

    return {row_id(row): index for index, row in enumerate(dataset.select_columns(["volume_id", "axis", "slice"]))}


def _raise_faults(faults: list[str], prediction: Path, dataset: str, images: int) -> None:
    if faults:
        shown = faults[:_FAULTS_SHOWN] + ["..."] * (len(faults) > _FAULTS_SHOWN)
        raise InputError(
            f"the predictions in {prediction} do not fit {dataset}: {len(faults)} faults",
            found="\n    ".join(["", *shown]),
            expected=f"exactly one prediction, of the same shape, for each of the {images} images",
            remedy="predict the same configuration and split that you score (--config, --split), then score again",
        )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON (null, never NaN) under its final name only when complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(partial, 0o644)  # mkstemp makes it private
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def format_tables(result: Mapping[str, Any], *, by_source: bool = False) -> str:
    """Lay out the table of the whole split, of each domain where both occur and, if asked for, of each source."""
    from em_bench_eval.metrics import METRICS

    groups = result["groups"]
    domains = [group for group in groups if group.startswith("domain=")]
    dataset = result["dataset"]
    whole = "all images" if len(domains) > 1 else f"all images, {domains[0]}" if domains else "no images"
    titles = {"all": whole}
    titles.update((group, group) for group in domains if len(domains) > 1)
    titles.update((group, group) for group in groups if by_source and group.startswith("source="))
    lines = [
        f"{dataset['path']} {dataset['config']}/{dataset['split']}, {result['images']} images, "
        f"metric version {result['metric_version']}, settings {result['settings_hash']}"
    ]
    for group, title in titles.items():
        lines += ["", title, *_table(groups[group])]
    lines += ["", "what the columns are:"]
    for header, name in _COLUMNS.items():
        lines.append(f"  {header:<9}  {name}: {METRICS[name].aggregation}")
    lines.append("  macro      plain mean over the organelles with a value; - where nothing defines one")
    return "\n".join(lines)


def _table(values: Mapping[str, Value]) -> list[str]:
    from em_bench_eval.schema import ORGANELLES

    lines = ["  organelle  " + "  ".join(f"{header:>9}" for header in _COLUMNS)]
    for organelle in (*ORGANELLES, "macro"):
        cells = [_cell(values.get(f"{organelle}/{name}")) for name in _COLUMNS.values()]
        lines.append(f"  {organelle:<9}  " + "  ".join(f"{cell:>9}" for cell in cells))
    return lines


def _cell(value: Value) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
