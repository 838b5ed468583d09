"""Training and inference of the baselines against a bare loop of the same network.

::

    python benchmarks/baselines.py train --dataset em-organelle-wild --model unet
    python benchmarks/baselines.py predict --dataset em-organelle-wild --model unet

``train``: crops per second of `em-bench train` (decoding, alignment, sampling, augmentation, partial losses, averaged
weights, logging) over those of forward, the same loss, backward and optimiser on one batch that lies in memory.
``predict``: megapixels per second of `em-bench predict` (decoding, alignment, tiles, stitching, instances, PNG) over
those of the network on the same tiles - overlaps and margins included - that lie in memory. Rounds alternate; the
ratio is of medians. Equality first: both trainings begin with the same loss.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)  # instead of this folder, where a file is called lpa


def request_of(options: argparse.Namespace, out: Path) -> Any:
    from baselines.model import load_model
    from baselines.training import TrainingRequest

    preset = load_model(options.model).preset(options.preset)
    recipe = dataclasses.replace(preset.recipe, steps=options.steps, patience=None)
    if options.crops is not None:
        recipe = dataclasses.replace(recipe, batch_size=options.crops)
    return TrainingRequest(
        model=options.model,
        dataset=options.dataset,
        config="wild",
        out=out,
        preset=options.preset,
        architecture=preset.config,
        recipe=recipe,
        validate_every=1 << 30,
        checkpoint_every=1 << 30,
        workers=options.workers,
    )


def first_batch(request: Any) -> Any:
    """The batch of a training's first step, on the device."""
    import torch
    from torch.utils.data import default_collate

    from baselines.augment import augmented, to_batch
    from baselines.preprocess import normalisation
    from baselines.training_data import open_training_data

    data = open_training_data(request)
    crops = default_collate([data.crops[number] for number in range(request.recipe.batch_size)])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = to_batch(crops, device)
    if request.recipe.augment:
        batch = augmented(batch, crops["number"], request.seed, normalisation(request.architecture.normalisation))
    return data, batch


def bare_training(request: Any, data: Any, batch: Any) -> tuple[float, float]:
    """Crops per second, and the loss of the first step."""
    import torch

    from baselines.model import load_model
    from baselines.optimizer import make_optimizer, set_learning_rate

    torch.manual_seed(request.seed)
    config = dataclasses.replace(request.architecture, trained_organelles=data.trained_organelles)
    model = load_model(request.model).build(config).to(batch["image"].device)
    optimizer = make_optimizer(model, request.recipe)
    first = 0.0
    since = time.perf_counter()
    for step in range(request.recipe.steps):
        set_learning_rate(optimizer, request.recipe.learning_rate(step, step / request.recipe.steps))
        losses = model.loss(model(batch["image"]), batch)
        losses["loss"].backward()
        if request.recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), request.recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        first = first or float(losses["loss"].detach())
    _wait()
    return request.recipe.steps * request.recipe.batch_size / (time.perf_counter() - since), first


def our_training(request: Any) -> tuple[float, float]:
    """Crops per second between the first and last optimisation step, by the log, and the loss of the first step."""
    from baselines import training

    losses: list[float] = []
    original = training._Loop.step
    begin: list[float] = []

    def step(self: Any, batches: Any, fraction: float) -> Any:
        if not begin:
            begin.append(time.perf_counter())
        found = original(self, batches, fraction)
        if not losses:
            losses.append(float(found["loss"]))
        if self.progress.step + 1 == request.recipe.steps:
            _wait()
            begin.append(time.perf_counter())
        return found

    training._Loop.step = step  # type: ignore[method-assign]
    try:
        training.train(request, overwrite=True)
    finally:
        training._Loop.step = original  # type: ignore[method-assign]
    return request.recipe.steps * request.recipe.batch_size / (begin[1] - begin[0]), losses[0]


def train(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        request = request_of(options, Path(folder) / "run")
        data, batch = first_batch(request)
        rates: dict[str, list[float]] = {"bare": [], "ours": []}
        for _ in range(options.rounds):
            bare, bare_loss = bare_training(request, data, batch)
            with contextlib.redirect_stderr(io.StringIO()):
                ours, our_loss = our_training(request)
            if abs(bare_loss - our_loss) > 1e-4 * abs(bare_loss):
                raise SystemExit(f"the first losses differ: {bare_loss} and {our_loss}")
            rates["bare"].append(bare)
            rates["ours"].append(ours)
            print(f"  bare {bare:.2f}, em-bench train {ours:.2f} crops/s", flush=True)
    report("training", options, rates, "crops/s")


def predict(options: argparse.Namespace) -> None:
    import numpy as np
    import torch

    from baselines import cli_predict
    from baselines.prediction_settings import TileSettings
    from baselines.pretrained import load_pretrained
    from baselines.tiling import batched, tiles_of
    from baselines.training import train as run
    from em_bench_eval.align import aligned_shape
    from em_bench_eval.rows import decode_png, open_rows

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        if options.checkpoint is None:
            with contextlib.redirect_stderr(io.StringIO()):
                checkpoint = run(request_of(options, Path(folder) / "run"))
        else:
            checkpoint = Path(options.checkpoint)
        model = load_pretrained(checkpoint).to(device)
        settings = TileSettings(tile=options.tile, batch_size=options.batch).of(model)
        rows = open_rows(options.dataset, "wild", "test").select_columns(["image", "pixel_size_nm"])
        shapes = [aligned_shape(decode_png(row["image"]).shape, tuple(row["pixel_size_nm"])) for row in rows]
        pixels = sum(int(np.prod(shape)) for shape in shapes)
        tiles = [
            torch.from_numpy(np.stack([tile for _, tile in batch])[:, None]).to(device)
            for shape in shapes
            for batch in batched(
                tiles_of(
                    np.random.default_rng(0).normal(size=shape).astype(np.float32),
                    tile=settings.tile,
                    margin=settings.margin,
                    overlap=settings.overlap,
                    multiple=model.multiple,
                ),
                options.batch,
            )
        ]
        rates: dict[str, list[float]] = {"bare": [], "ours": []}
        for number in range(options.rounds):
            since = time.perf_counter()
            with torch.no_grad():
                for tile in tiles:
                    model.maps(tile).cpu()
            bare = pixels / (time.perf_counter() - since) / 1e6
            arguments = [
                *("--checkpoint", str(checkpoint), "--dataset", options.dataset, "--split", "test"),
                *("--out", str(Path(folder) / f"p{number}"), "--tile", str(options.tile)),
                *("--batch-size", str(options.batch)),
            ]
            since = time.perf_counter()
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                cli_predict.predict(arguments)
            ours = pixels / (time.perf_counter() - since) / 1e6
            rates["bare"].append(bare)
            rates["ours"].append(ours)
            print(f"  bare {bare:.3f}, em-bench predict {ours:.3f} megapixels/s at 8 nm", flush=True)
    report("inference", options, rates, "megapixels/s")


def report(what: str, options: argparse.Namespace, rates: dict[str, list[float]], unit: str) -> None:
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPUs"
    bare, ours = (statistics.median(rates[name]) for name in ("bare", "ours"))
    print(
        f"{what} {options.model} {options.preset} on {device}, {torch.get_num_threads()} threads, "
        f"{options.rounds} rounds: bare {bare:.3f} {unit}, ours {ours:.3f} {unit}, ratio {ours / bare:.2f}"
    )


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "predict"))
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--model", default="unet")
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--crops", type=int, help="per step, instead of the preset's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--checkpoint", help="for predict: instead of training one")
    options = parser.parse_args()
    {"train": train, "predict": predict}[options.what](options)


if __name__ == "__main__":
    main()
