"""``em-bench train``: options to a request; heavy imports only once they are parsed."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from em_bench_eval import registry
from em_bench_eval.argument_types import positive_float, positive_int
from em_bench_eval.errors import unknown_name

MODELS = "baselines.models"
RECIPE_OPTIONS = (
    "steps",
    "batch_size",
    "crop",
    "lr",
    "patience",
)  # options that replace a number of the preset's recipe


def train(argv: Sequence[str]) -> int:
    """Run ``em-bench train``; return the exit status."""
    options = _train_parser().parse_args(argv)
    if options.model not in registry.names(MODELS):  # answer before anything heavy is imported
        raise unknown_name("model", options.model, registry.names(MODELS))

    _share_the_cores()
    from baselines.model import load_model
    from baselines.training import TrainingRequest
    from baselines.training import train as run

    preset = load_model(options.model).preset(options.preset)
    given = {name: getattr(options, name) for name in RECIPE_OPTIONS if getattr(options, name) is not None}
    if options.max_minutes is not None:  # the time is the budget, unless steps are asked for as well
        given.setdefault("steps", None)
    request = TrainingRequest(
        model=options.model,
        dataset=options.dataset,
        config=options.config,
        out=options.out,
        preset=options.preset,
        architecture=preset.config,
        recipe=dataclasses.replace(preset.recipe, **given),
        seed=options.seed,
        max_minutes=options.max_minutes,
        mixed_precision=options.mixed_precision,
        micro_batch=options.micro_batch,
        encoder_weights=options.encoder_weights,
        start_from=options.start_from,
        sources=tuple(options.source),
        streaming=options.streaming,
        checkpoint_every=options.checkpoint_every,
        validate_every=options.validate_every,
        workers=options.workers,
        trackers=tuple(options.tracker),
    )
    folder = run(request, resume=options.resume, overwrite=options.overwrite)
    if os.environ.get("RANK", "0") == "0":  # several processes run this under accelerate launch
        print(folder)
    return 0


def _train_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="em-bench train",
        description="Train a baseline. OUT gets a checkpoint (safetensors and a model card) when training is complete.",
        epilog="example:\n  em-bench train --model unet --preset quick --max-minutes 3 --dataset em-organelle-wild "
        "--config wild --out runs/unet\n\nseveral GPUs:\n  accelerate launch -m baselines.train --model unet --preset "
        "paper --dataset em-organelle-wild --config wild --out runs/unet",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="NAME", help=f"one of: {', '.join(registry.names(MODELS))}")
    add("--dataset", required=True, metavar="DATASET", help="dataset folder, or name on the Hub")
    add("--config", default="wild", metavar="NAME", help="configuration of the dataset (default: %(default)s)")
    add("--out", required=True, type=Path, metavar="OUT", help="folder for the checkpoint and the log")
    add(
        "--preset",
        default="quick",
        metavar="NAME",
        help="architecture and recipe: quick (a CPU, minutes), official (as its authors train it), paper (as the "
        "benchmark's paper does), or a further one of the model (default: %(default)s)",
    )
    add("--source", action="append", default=[], metavar="NAME", help="only rows of this source; may be repeated")
    add("--steps", type=positive_int, metavar="N", help="optimisation steps (default: the preset's)")
    add("--max-minutes", type=positive_float, metavar="M", help="train for this long instead; with --steps, at most")
    add("--crop", type=positive_int, metavar="PIXELS", help="edge of the crops at 8 nm (default: the preset's)")
    add("--batch-size", type=positive_int, metavar="N", help="crops per step, over all GPUs (default: the preset's)")
    add(
        "--micro-batch",
        type=positive_int,
        metavar="N",
        help="crops that fit into memory: a step takes several passes",
    )
    add("--lr", type=positive_float, metavar="RATE", help="peak learning rate (default: the preset's)")
    add(
        "--patience",
        type=positive_int,
        metavar="N",
        help="stop after N validations without a better Dice; keep the best",
    )
    add("--encoder-weights", metavar="PATH", help="pre-trained weights of others: .safetensors, .pth, .npz or a folder")
    add(
        "--start-from",
        metavar="CHECKPOINT",
        help="go on from a finished checkpoint of the same model, as a new training",
    )
    add("--streaming", action="store_true", help="read rows while training; nothing of the dataset is kept on disk")
    add("--seed", type=int, default=0, metavar="N", help="of weights, crops and augmentation (default: %(default)s)")
    add("--mixed-precision", default="no", choices=("no", "bf16", "fp16"), help="default: %(default)s")
    add("--workers", type=int, default=0, metavar="N", help="data-loading processes (default: none but this one)")
    add(
        "--tracker",
        action="append",
        default=[],
        choices=("tensorboard", "trackio", "wandb"),
        help="may be repeated (default: tensorboard, if installed)",
    )
    add("--checkpoint-every", type=positive_int, default=500, metavar="N", help="steps (default: %(default)s)")
    add("--validate-every", type=positive_int, default=100, metavar="N", help="steps (default: %(default)s)")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="go on from OUT's last checkpoint, if it has one")
    either.add_argument("--overwrite", action="store_true", help="delete the training in OUT and start again")
    return parser


def _share_the_cores() -> None:
    """Let waiting threads sleep; takes effect only before torch is imported.

    Where other programs run too, torch's threads otherwise spin for the cores that they wait for: a training step on
    two busy cores took 2 to 8 times as long (measured, seconds instead of 0.25).
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
