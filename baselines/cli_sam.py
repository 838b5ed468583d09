"""``em-bench sam``: convert SAM and micro-SAM weights, and predict with them, automatically or prompted."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from em_bench_eval.errors import InputError

KINDS = ("point", "point+4neg", "box", "box+1+4")  # baselines.sam.prompts.PROMPTS, which imports scipy
CORE = "core"  # SAM on transformers; the other engines are baselines.sam.engines.ENGINES
ENGINES = (CORE, "segment-anything", "micro-sam-amg", "micro-sam-ais", "micro-sam-apg")
EPILOG = """examples:
  em-bench sam --weights sam_vit_b_01ec64.pth --dataset em-organelle-wild --split test --out predictions/sam
      automatic: masks at a grid of points; then em-bench score predictions/sam em-organelle-wild
  em-bench sam --weights vit_b_em_organelles.pt --name micro-sam --mode prompted --prompts box+1+4 \\
      --dataset em-organelle-wild --out predictions/micro-sam-prompted
      prompts made from the reference: an upper bound, never ranked with automatic predictions
  em-bench sam --weights sam_vit_b_01ec64.pth --classes-from runs/unet --dataset em-organelle-wild --out vote
      the masks of SAM, the organelles of a trained dense model: scored like every other prediction
  em-bench sam --weights vit_b_em_organelles.pt --engine micro-sam-ais --decoder vit_b_em_organelles_decoder.pt \\
      --dataset em-organelle-wild --out predictions/micro-sam-ais
      by micro-SAM's own package, in the environment of the extra `sam` (docs/sam.md)
  em-bench sam --weights sam_vit_b_01ec64.pth --convert checkpoints/sam
      safetensors, config.json and a model card, for --weights or the Hub

SAM does not know organelles. Without --classes-from its instances have none, and em-bench score matches them with the
annotated instances of all organelles: keys any/..., and <organelle>/dice__stratified.
"""


def sam(argv: Sequence[str]) -> int:
    """Run ``em-bench sam``; return the exit status."""
    options = _parser().parse_args(argv)
    if options.convert is None and (options.dataset is None or options.out is None):
        raise InputError(
            "em-bench sam has nothing to do",
            expected="--dataset and --out to predict, or --convert to convert the weights",
        )
    if options.mode == "automatic" and options.prompts is not None:
        raise InputError("--prompts belongs to the prompted mode", remedy="add --mode prompted, or leave it away")

    model = _model(options)
    if options.convert is not None:
        from baselines.pretrained import save_pretrained

        save_pretrained(model, options.convert)
        print(f"{options.convert}: {model.training_info.get('architecture')}")
    if options.dataset is None or options.out is None:
        return 0
    from baselines.sam.grid import GridSettings
    from baselines.sam.predict import SamSettings, predict_sam

    grid = GridSettings(
        points_per_side=options.points_per_side,
        points_per_batch=options.points_per_batch,
        min_predicted_iou=options.min_predicted_iou,
        min_stability=options.min_stability,
        max_box_iou=options.max_box_iou,
        min_area=options.min_area,
        drop_background=not options.keep_background,
    )
    settings = SamSettings(
        options.mode, grid, options.prompts or "box", reference_ids=options.reference_ids, seed=options.seed
    )
    if options.engine != CORE:
        from baselines.sam.engines import engine_settings

        settings = engine_settings(model, settings)
    count = predict_sam(
        model,
        options.dataset,
        options.config,
        options.split,
        options.out,
        settings,
        name=options.name or _guessed_name(options.weights, options.engine),
        weights=options.weights,
        classes_from=options.classes_from,
        overwrite=options.overwrite,
    )
    print(f"{options.out}: {count} images")
    return 0


def _model(options: argparse.Namespace) -> Any:
    decoder_options = ("decoder", "foreground", "centre_distance", "boundary_distance")
    given = [f"--{name.replace('_', '-')}" for name in decoder_options if getattr(options, name) is not None]
    if given and options.engine not in ("micro-sam-ais", "micro-sam-apg"):
        raise InputError(
            f"{', '.join(given)}: the engine {options.engine} has no decoder",
            expected="--engine micro-sam-ais or micro-sam-apg",
        )
    if options.engine == CORE:
        from baselines.sam.weights import load_sam

        return load_sam(options.weights)
    if options.convert is not None:
        raise InputError("--convert needs no engine", found=f"--engine {options.engine}", remedy="leave it away")
    from baselines.sam.engines import load_engine

    thresholds = {name: getattr(options, name) for name in decoder_options[1:]}
    return load_engine(
        options.engine,
        options.weights,
        decoder=options.decoder,
        decoder_settings={
            **{name: value for name, value in thresholds.items() if value is not None},
            **({"min_area": options.min_area} if options.min_area else {}),
        },
        drop_background=not options.keep_background,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="em-bench sam",
        description="Predict images with Segment Anything or micro-SAM, automatically or prompted from the reference.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--weights",
        required=True,
        metavar="WEIGHTS",
        help=".pth of segment-anything or micro-SAM (vit_b, vit_l, vit_h), folder of --convert, or a SAM of "
        "transformers: folder or Hub name (facebook/sam-vit-base)",
    )
    add("--convert", type=Path, metavar="FOLDER", help="write the weights as a checkpoint folder")
    add(
        "--name",
        metavar="NAME",
        help="what the records call the model (default: sam or micro-sam by the file's name, or the engine)",
    )
    add("--dataset", metavar="DATASET", help="dataset folder, or name on the Hub")
    add("--config", default="wild", metavar="NAME", help="configuration of the dataset (default: %(default)s)")
    add("--split", default="test", metavar="NAME", help="default: %(default)s")
    add("--out", type=Path, metavar="OUT", help="folder for predictions.parquet and prediction.json")
    add("--overwrite", action="store_true", help="replace other predictions in OUT")
    add("--mode", choices=("automatic", "prompted"), default="automatic", help="default: %(default)s")
    add("--classes-from", metavar="CHECKPOINT", help="dense model (unet, ...) that says which organelle a mask is")
    add(
        "--engine",
        choices=ENGINES,
        default=CORE,
        help="SAM on transformers, or the package of its authors, from the extra `sam` (default: %(default)s)",
    )
    prompted = parser.add_argument_group("prompted: everything here is made from the reference")
    prompted.add_argument(
        "--prompts",
        choices=KINDS,
        help="a point inside, the same and four outside, the bounding box, or all of them (default: box)",
    )
    prompted.add_argument(
        "--reference-ids",
        choices=("volume", "slice"),
        default="volume",
        help="an object is all pieces with one id, or each connected piece (default: %(default)s)",
    )
    prompted.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the points outside (default: %(default)s)"
    )
    grid = parser.add_argument_group("automatic: segment-anything's mask generator")
    grid.add_argument("--points-per-side", type=int, default=32, metavar="N", help="default: %(default)s")
    grid.add_argument(
        "--points-per-batch",
        type=int,
        default=64,
        metavar="N",
        help="points or prompts at a time (default: %(default)s)",
    )
    grid.add_argument("--min-predicted-iou", type=float, default=0.88, metavar="IOU", help="default: %(default)s")
    grid.add_argument("--min-stability", type=float, default=0.95, metavar="IOU", help="default: %(default)s")
    grid.add_argument(
        "--max-box-iou", type=float, default=0.7, metavar="IOU", help="of two masks (default: %(default)s)"
    )
    grid.add_argument("--min-area", type=int, default=0, metavar="PIXELS", help="at 8 nm (default: %(default)s)")
    grid.add_argument(
        "--keep-background", action="store_true", help="keep the largest object also if it covers most of the image"
    )
    decoder = parser.add_argument_group("micro-sam-ais, micro-sam-apg: micro-SAM's decoder; thresholds are 0.5")
    decoder.add_argument(
        "--decoder",
        metavar="FILE",
        help="its weights (default: decoder_state in WEIGHTS); tensors only, no other pickle",
    )
    decoder.add_argument("--foreground", type=float, metavar="P", help="pixels above may belong to an object")
    decoder.add_argument("--centre-distance", type=float, metavar="D", help="seeds lie below,")
    decoder.add_argument("--boundary-distance", type=float, metavar="D", help="and below this")
    return parser


def _guessed_name(weights: str, engine: str) -> str:
    """micro-SAM names its models after what they are for: vit_b_em_organelles, vit_l_lm, ..."""
    if engine.startswith("micro-sam"):
        return engine
    stem = Path(weights).name.lower()
    return "micro-sam" if any(part in stem for part in ("micro", "_em", "_lm")) else "sam"
