"""The loop of ``em-bench pretrain``: on Accelerate, one process or many, interruptible anywhere.

What distinguishes it from ``baselines.training``: images without labels, each once per epoch; an input and a target
instead of heads and partial labels; and pictures of images that are held out, so that one can see what is learnt.
"""

from __future__ import annotations

import dataclasses
import math
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from baselines.data import name_without_path
from baselines.memory_faults import out_of_memory_as_input_error
from baselines.models.transunet import TransUNetConfig
from baselines.optimizer import OPTIMIZERS, set_learning_rate
from baselines.pretrain.pretrain_augment import gray_scale
from baselines.pretrain.pretrain_crops import HeldOut, SpoiltCrops
from baselines.pretrain.pretrain_images import PreparedImages, find_bad, open_images
from baselines.pretrain.pretrain_picture import write_picture
from baselines.pretrain.reconstruction import Reconstruction, reconstruction_loss, restored_images, save_reconstruction
from baselines.pretrain.skipped_images import SkippedImages
from baselines.progress import Progress, step_seed
from baselines.recipe import Recipe
from baselines.resumable_loop import ResumableLoop, numbered_batches
from baselines.run_folder import RunFolder
from baselines.trackers import make_accelerator
from em_bench_eval.errors import InputError


@dataclass(frozen=True)
class PretrainRequest:
    """What decides the result of a pre-training, and where it goes."""

    images: str
    config: str  # of a dataset
    out: Path
    preset: str
    architecture: TransUNetConfig
    recipe: Recipe
    epochs: float | None = None
    stretch: float = 1.0
    sources: tuple[str, ...] = ()  # only rows of these sources of a dataset; (): all
    seed: int = 0
    max_minutes: float | None = None  # if set, the learning rate follows the clock
    mixed_precision: str = "no"
    checkpoint_every: int = 500  # steps
    workers: int = 0

    def settings(self) -> dict[str, Any]:
        """What a resumed pre-training must have in common with the one it goes on with."""
        same = ("config", "preset", "epochs", "stretch", "seed", "max_minutes", "mixed_precision")
        return {name: getattr(self, name) for name in same} | {
            "images": name_without_path(self.images),
            "sources": list(self.sources),
            "architecture": dataclasses.asdict(self.architecture),
            "recipe": dataclasses.asdict(self.recipe),
        }


def pretrain(request: PretrainRequest, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Pre-train as requested and return the folder of the finished encoder.

    An interruption loses the steps since the last checkpoint. With ``resume`` it goes on there and ends with the
    weights that it would have had otherwise, to the bit on one machine's CPU; not with ``max_minutes``.

    Raises ``InputError`` for unusable images, an output folder in use, too little memory, or a loss that is no number.
    """
    run = RunFolder(request.out)
    to_gray = gray_scale(request.architecture.normalisation).to_gray
    images = PreparedImages(open_images(request.images, request.config, request.sources), to_gray)
    accelerator = make_accelerator(request.out, request.mixed_precision, ())
    settings = request.settings() | {"images_found": len(images), "processes": accelerator.num_processes}
    run.check(settings, resume=resume, overwrite=overwrite)
    if run.is_complete and not overwrite:
        if accelerator.is_main_process:
            print(f"{request.out} holds this pre-training, finished; --overwrite would start again.", file=sys.stderr)
        return request.out
    found: list[tuple[str, str]] = []
    bad = find_bad(images, lambda name, reason: found.append((name, reason)))
    accelerator.wait_for_everyone()
    skipped = SkippedImages(request.out)
    if accelerator.is_main_process:
        if overwrite:
            skipped.clear()
        run.prepare(settings, overwrite=overwrite)
        skipped.add(found)
        skipped.announce()
    accelerator.wait_for_everyone()
    if accelerator.log_with:
        accelerator.init_trackers("em-organelle-wild", config={"pretrain": request.preset})

    torch.manual_seed(request.seed)
    loop = _Loop(request, accelerator, run, images, bad, skipped)
    loop.restore()
    remedy = "use a smaller --batch-size or more processes; --resume goes on"
    with out_of_memory_as_input_error("pre-training", remedy):
        loop.run_to_end()
    return request.out


class _Loop(ResumableLoop):
    def __init__(
        self,
        request: PretrainRequest,
        accelerator: Any,
        run: RunFolder,
        images: PreparedImages,
        bad: set[int],
        skipped: SkippedImages,
    ) -> None:
        recipe, name = request.recipe, request.architecture.normalisation
        self.request, self.skipped = request, skipped
        self.held_out = HeldOut(images, bad, recipe.crop, name, request.seed)
        training = sorted(set(range(len(images))) - bad - set(self.held_out.numbers))
        self.crops = SpoiltCrops(images, training, recipe.crop, name, request.seed, skipped)
        steps = recipe.steps
        if steps is None and request.epochs is not None:
            steps = max(1, math.ceil(request.epochs * len(training) / recipe.batch_size))
        every = request.checkpoint_every
        progress = Progress(steps, request.max_minutes)
        super().__init__("pretrain", accelerator, run, recipe, progress, checkpoint_every=every, look_every=every)
        self.share = _share_of_a_process(recipe.batch_size, accelerator.num_processes)
        model = Reconstruction(request.architecture)
        groups = [{"params": list(model.parameters()), "lr_factor": 1.0}]
        self.model, self.optimizer = accelerator.prepare(model, OPTIMIZERS[recipe.optimizer](groups, recipe))
        self.errors: dict[str, float] = {}
        self.lr = recipe.lr

    def batches(self) -> Iterator[dict[str, Tensor]]:
        first_crop = self.progress.step * self.recipe.batch_size
        return iter(numbered_batches(self.crops, self.accelerator, first_crop, self.share, self.request.workers))

    def step(self, batches: Iterator[dict[str, Tensor]], fraction: float) -> dict[str, Tensor]:
        step, batch, device = self.progress.step, next(batches), self.accelerator.device
        self.lr = self.recipe.learning_rate(step, fraction / self.request.stretch)
        set_learning_rate(self.optimizer, self.lr)
        torch.manual_seed(step_seed(self.request.seed, step, self.accelerator.process_index))
        with self.accelerator.autocast():
            restored = self.model(batch["image"].to(device))
        loss = reconstruction_loss(restored, batch["target"].to(device))
        self.accelerator.backward(loss)
        self.update_weights()
        return {"loss": loss.detach()}

    def look(self) -> None:
        """Restore the held-out crops: their errors, and the picture."""
        if not self.accelerator.is_main_process:
            return
        device, crops = self.accelerator.device, self.held_out
        restored = restored_images(self.plain_model, crops.inputs.to(device)).cpu()
        self.errors = {
            "held_out_mse": float(reconstruction_loss(restored, crops.targets)),
            "held_out_mse_of_input": float(reconstruction_loss(crops.inputs, crops.targets)),
        }
        name, about = self.request.architecture.normalisation, f"step {self.progress.step}"
        write_picture(self.run.path, crops.inputs, crops.targets, restored, name, about)

    def logged(self, fraction: float) -> dict[str, float]:
        return self.errors | {"lr": self.lr}

    def shown(self, fraction: float) -> dict[str, str]:
        return {"held out": f"{self.errors['held_out_mse']:.3f}"} if self.errors else {}

    def write_result(self) -> None:
        self.skipped.announce()
        model = self.plain_model
        model.training_info = self.training_info()
        save_reconstruction(model, self.run.path)

    def training_info(self) -> dict[str, Any]:
        """What ``config.json`` and the card say."""
        request = self.request
        return {
            "images": name_without_path(request.images),
            "sources": list(request.sources),
            "images_trained_on": len(self.crops.numbers),
            "images_left_out": len(self.skipped),
            "preset": request.preset,
            "seed": request.seed,
            "steps": self.progress.step,
            "crops": self.progress.crops,
            "minutes": round(self.progress.seconds / 60, 2),
            "mixed_precision": request.mixed_precision,
            **{name: round(value, 4) for name, value in self.errors.items()},
            "recipe": dataclasses.asdict(request.recipe),
            "versions": {name: version(name) for name in ("torch", "accelerate", "numpy", "scipy")}
            | {"python": platform.python_version()},
        }


def _share_of_a_process(batch_size: int, processes: int) -> int:
    if batch_size % processes:
        raise InputError(
            f"a batch of {batch_size} images cannot be divided",
            found=f"{processes} processes",
            remedy="use a --batch-size that is a multiple of the number of processes",
        )
    return batch_size // processes
