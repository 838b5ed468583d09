"""``em-bench pretrain``: options to a request; heavy imports only once they are parsed."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from em_bench_eval.argument_types import positive_float, positive_int

RECIPE_OPTIONS = ("steps", "batch_size", "lr")  # options that replace a number of the preset's recipe


def pretrain(argv: Sequence[str]) -> int:
    """Run ``em-bench pretrain``; return the exit status."""
    options = _parser().parse_args(argv)
    # waiting threads sleep instead of spinning; takes effect only before torch is imported
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from baselines.pretrain.pretrain_presets import preset
    from baselines.pretrain.pretraining import PretrainRequest
    from baselines.pretrain.pretraining import pretrain as run

    chosen = preset(options.preset)
    given = {name: getattr(options, name) for name in RECIPE_OPTIONS if getattr(options, name) is not None}
    epochs = chosen.epochs if options.epochs is None else options.epochs
    if options.epochs is not None or options.max_minutes is not None:
        given.setdefault("steps", None)
    if options.max_minutes is not None and options.epochs is None:  # the time is the budget
        epochs = None
    request = PretrainRequest(
        images=options.images,
        config=options.config,
        out=options.out,
        preset=options.preset,
        architecture=chosen.config,
        recipe=dataclasses.replace(chosen.recipe, **given),
        epochs=epochs,
        stretch=chosen.stretch,
        sources=tuple(options.source),
        seed=options.seed,
        max_minutes=options.max_minutes,
        mixed_precision=options.mixed_precision,
        checkpoint_every=options.checkpoint_every,
        workers=options.workers,
    )
    folder = run(request, resume=options.resume, overwrite=options.overwrite)
    if os.environ.get("RANK", "0") == "0":  # several processes run this under accelerate launch
        print(folder)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="em-bench pretrain",
        description="Pre-train the encoder of transunet on images without labels: restore them from spoilt ones "
        "(RETINA). OUT gets the weights that `em-bench train --model transunet --encoder-weights OUT` takes, and "
        "reconstruction.png to look at.",
        epilog="example:\n  em-bench pretrain --images cem500k --preset quick --out runs/encoder\n"
        "  em-bench train --model transunet --preset quick --encoder-weights runs/encoder "
        "--dataset em-organelle-wild --out runs/transunet\n\nseveral GPUs:\n"
        "  accelerate launch -m baselines.cli_pretrain --images cem500k --preset retina --mixed-precision bf16 "
        "--workers 12 --out runs/encoder",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--images", required=True, metavar="PLACE", help="folder of PNG and TIFF files, dataset folder, or Hub dataset")
    add("--config", default="wild", metavar="NAME", help="configuration of a dataset (default: %(default)s)")
    add("--source", action="append", default=[], metavar="NAME", help="only rows of this source; may be repeated")
    add("--out", required=True, type=Path, metavar="OUT", help="folder for the weights, the log and the picture")
    add("--preset", default="quick", metavar="NAME", help="retina, retina-192, quick or smoke (default: %(default)s)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=positive_int, metavar="N", help="optimisation steps (default: the preset's)")
    length.add_argument("--epochs", type=positive_float, metavar="N", help="so many passes over the images instead")
    add("--max-minutes", type=positive_float, metavar="M", help="train for this long instead; with --steps, at most")
    add("--batch-size", type=positive_int, metavar="N", help="crops per step, over all processes (default: preset's)")
    add("--lr", type=positive_float, metavar="RATE", help="peak learning rate (default: the preset's)")
    add("--seed", type=int, default=0, metavar="N", help="of weights, crops and augmentation (default: %(default)s)")
    add("--mixed-precision", default="no", choices=("no", "bf16", "fp16"), help="default: %(default)s")
    add("--workers", type=int, default=0, metavar="N", help="data-loading processes (default: none but this one)")
    add("--checkpoint-every", type=positive_int, default=500, metavar="N", help="steps (default: %(default)s)")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="go on from OUT's last checkpoint, if it has one")
    either.add_argument("--overwrite", action="store_true", help="delete the pre-training in OUT and start again")
    return parser


if __name__ == "__main__":  # under accelerate launch
    import sys

    from em_bench_eval.errors import InputError

    try:
        sys.exit(pretrain(sys.argv[1:]))
    except InputError as error:
        sys.exit(f"em-bench pretrain: {error}")
