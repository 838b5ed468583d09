"""``em-bench score``: predictions against the reference; a dataset's split, or one volume."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_bench_eval.argument_types import voxel_size_nm
from em_bench_eval.errors import InputError
from em_bench_eval.schema import ORGANELLES
from em_bench_eval.whole_file import write_whole

if TYPE_CHECKING:
    from em_bench_eval.score_volumes import Ends
    from em_bench_eval.settings import Settings

SCORE_FILE = "score.json"
EPILOG = """examples:
  em-bench score predictions/unet em-organelle-wild --config wild --split test
      every image of a split, per organelle, pooled, for each domain
  em-bench score mine.zarr em-organelle-wild/volumes/vnc_sstem-stack1.zarr --organelle mito
  em-bench score result.nii.gz truth.tif --organelle er --full --voxel-size-nm 8,8,8
      one volume; zarr (v2, v3, OME), N5, TIFF, NIfTI, HDF5, MRC, local or over HTTP and S3
  em-bench score results/ truth/ --per-instance instances.parquet
      folders with one label map per organelle, mito.nii.gz, er.nii.gz, ...

em-bench explain lists every key of the result and says what it means.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="em-bench score",
        description="Score predicted instances against the reference, per organelle.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("prediction", metavar="PRED", help="folder written by `em-bench predict`, or a label volume")
    add("reference", metavar="REF", help="dataset folder or dataset on the Hub, or a label volume")
    rules = parser.add_argument_group("what counts")
    rules.add_argument(
        "--reference-ids",
        choices=("volume", "slice"),
        default="volume",
        help="'volume': ids as published, one instance may have several pieces in an image; 'slice': each 8-connected "
        "piece of the reference image is an instance (default: %(default)s)",
    )
    rules.add_argument(
        "--min-size-nm2",
        "--min-size-nm3",
        dest="min_size_nm",
        type=float,
        default=0.0,
        metavar="SIZE",
        help="do not judge reference or predicted instances smaller than this: nm^2 in images, nm^3 in volumes "
        "(default: %(default)s)",
    )
    rules.add_argument(
        "--border",
        choices=("judge", "ignore"),
        default="judge",
        help="reference instances that the border cuts: judge them like others, or not at all (default: %(default)s)",
    )
    more = parser.add_argument_group("what is measured besides overlaps")
    names = ", ".join(ORGANELLES)
    more.add_argument("--skeleton", nargs="+", default=[], metavar="ORGANELLE", help=f"clDice, ERL, ... of {names}")
    more.add_argument("--boundary", nargs="+", default=[], metavar="ORGANELLE", help="NSD, HD95, ... of these")
    more.add_argument("--full", action="store_true", help="short for --skeleton er golgi --boundary with all five")
    more.add_argument("--tolerance-nm", type=float, default=16.0, metavar="NM", help="of NSD (default: %(default)s)")
    split = parser.add_argument_group("for a dataset")
    split.add_argument(
        "--class-agnostic",
        action="store_true",
        help="match instances whatever their organelle: keys any/... and .../dice__stratified (always so for "
        "predictions without organelles, as em-bench sam writes them)",
    )
    split.add_argument("--config", help="dataset configuration (default: the one that was predicted)")
    split.add_argument("--split", help="dataset split (default: the one that was predicted)")
    volume = parser.add_argument_group("for a volume")
    volume.add_argument("--organelle", help="what both label maps hold, where they do not say it themselves")
    volume.add_argument("--voxel-size-nm", type=voxel_size_nm, metavar="Z,Y,X", help="where no file states it")
    volume.add_argument("--ignore", metavar="PATH", help="volume that is not 0 where nobody annotated")
    volume.add_argument(
        "--box",
        metavar="Z0:Z1,Y0:Y1,X0:X1",
        help="cut this part out of both first (default: what PRED says was predicted, else all)",
    )
    out = parser.add_argument_group("output")
    out.add_argument(
        "--out", type=Path, metavar="FILE.json", help=f"where to write (default: PRED/{SCORE_FILE}; volumes: nowhere)"
    )
    out.add_argument("--json", action="store_true", help="print the result as JSON instead of tables")
    out.add_argument("--table", action="store_true", help="print a table for each source as well")
    out.add_argument("--per-instance", type=Path, metavar="FILE.parquet", help="write a row for every instance")
    return parser


def score(argv: list[str]) -> int:
    """Run ``em-bench score``; see ``em-bench score --help``."""
    arguments = _parser().parse_args(argv)
    from em_bench_eval.rows import PREDICTION_INFO_FILE
    from em_bench_eval.settings import NETWORKS, Settings

    settings = Settings(
        min_size_nm=arguments.min_size_nm,
        reference_ids=arguments.reference_ids,
        border=arguments.border,
        tolerance_nm=arguments.tolerance_nm,
        skeleton=NETWORKS if arguments.full else tuple(arguments.skeleton),
        boundary=ORGANELLES if arguments.full else tuple(arguments.boundary),
    )
    if Path(arguments.prediction, PREDICTION_INFO_FILE).is_file() or not _is_volume(arguments):
        return _score_dataset(arguments, settings)
    return _score_volume(arguments, settings)


def _is_volume(arguments: argparse.Namespace) -> bool:
    """A volume unless PRED is a folder that looks like one of predictions, or REF like a dataset."""
    prediction, reference = Path(arguments.prediction), Path(arguments.reference)
    if arguments.organelle:
        return True
    dataset = (reference / "data").is_dir() or (reference / "README.md").is_file()
    parquet = prediction.is_dir() and any(prediction.glob("*.parquet"))
    return not dataset and not parquet and (prediction.exists() or "://" in arguments.prediction)


def _score_dataset(arguments: argparse.Namespace, settings: Settings) -> int:
    from em_bench_eval import rows
    from em_bench_eval.class_agnostic import format_agnostic
    from em_bench_eval.score_dataset import score_folder
    from em_bench_eval.score_tables import format_tables

    prediction = Path(arguments.prediction)
    info = rows.read_prediction_info(prediction)
    config = arguments.config or info.get("config", "wild")
    split = arguments.split or info.get("split", "test")
    agnostic = bool(arguments.class_agnostic or info.get("class_agnostic"))
    result, instances = score_folder(
        prediction,
        arguments.reference,
        config,
        split,
        settings,
        info,
        keep_instances=arguments.per_instance is not None,
        class_agnostic=agnostic,
    )
    _write_instances(arguments.per_instance, instances)
    out = arguments.out or prediction / SCORE_FILE
    write_json(out, result)
    as_text = format_agnostic if agnostic else format_tables
    print(_as_json(result) if arguments.json else as_text(result, by_source=arguments.table))
    print(f"wrote {out}", file=sys.stderr)
    return 0


def _score_volume(arguments: argparse.Namespace, settings: Settings) -> int:
    from em_bench_eval.score_tables import format_volume
    from em_bench_eval.score_volumes import open_labels, score_volumes
    from em_bench_eval.settings import METRIC_VERSION
    from em_bench_eval.volume_io import open_volume

    box = _box(arguments.box) if arguments.box else None
    refused = [name for name in ("config", "split", "class_agnostic") if getattr(arguments, name)]
    if refused:
        raise InputError(
            f"--{refused[0].replace('_', '-')} belongs to a dataset",
            found=f"PRED {arguments.prediction}",
            expected="a prediction folder",
        )
    sides = [open_labels(path, arguments.organelle) for path in (arguments.prediction, arguments.reference)]
    ignore = open_volume(arguments.ignore) if arguments.ignore else None
    given = arguments.voxel_size_nm
    evaluation = score_volumes(
        *sides,
        settings=settings,
        voxel_size_nm=given,
        ignore=ignore,
        box=box,
        keep_instances=arguments.per_instance is not None,
    )
    box = box or sides[0].predicted_box
    size = given or tuple(sides[1].voxel_size_nm or sides[0].voxel_size_nm or ())
    result = {
        "metric_version": METRIC_VERSION,
        "settings": asdict(settings),
        "settings_hash": settings.hash(),
        "prediction": {"path": arguments.prediction},
        "reference": {"path": arguments.reference},
        "shape": list(sides[1].shape) if box is None else [stop - start for start, stop in box],
        "box": box,
        "voxel_size_nm": list(size),
        "scores": evaluation.compute(),
    }
    _write_instances(arguments.per_instance, evaluation.instances())
    print(_as_json(result) if arguments.json else format_volume(result))
    if arguments.out:
        write_json(arguments.out, result)
        print(f"wrote {arguments.out}", file=sys.stderr)
    return 0


def _box(text: str) -> Ends:
    try:
        z, y, x = (tuple(int(end) for end in part.split(":")) for part in text.split(","))
        (z0, z1), (y0, y1), (x0, x1) = z, y, x
    except ValueError as error:
        raise InputError(
            "--box is no box",
            found=text,
            expected="Z0:Z1,Y0:Y1,X0:X1 in voxels",
            remedy="for example 52:64,0:512,0:512",
        ) from error
    return (z0, z1), (y0, y1), (x0, x1)


def _write_instances(path: Path | None, instances: Sequence[dict[str, Any]]) -> None:
    if path is not None:
        from em_bench_eval.per_instance import write_parquet

        write_parquet(path, instances)
        print(f"wrote {path}: {len(instances)} instances", file=sys.stderr)


def _as_json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, allow_nan=False)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON (null, never NaN) under its final name only when complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = _as_json(content) + "\n"
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))
