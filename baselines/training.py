"""The training loop of every baseline, on Accelerate: one process or many, CPU or GPU, interruptible anywhere."""

from __future__ import annotations

import dataclasses
import math
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from baselines.data import Crops, name_without_path
from baselines.model import Baseline, BaselineConfig, Batch, load_model
from baselines.progress import Average, Progress
from baselines.recipe import Recipe
from baselines.run_folder import RunFolder
from baselines.validation import Validation, mean_dice
from em_bench_eval.errors import InputError
from em_bench_eval.rows import open_rows

LOG_EVERY = 10  # steps; also how often the loss is looked at, so that a GPU is not waited for at every step
CROP_NUMBERS_END = 1 << 62


@dataclass(frozen=True)
class TrainingRequest:
    """What decides the result of a training, and where it goes."""

    model: str
    dataset: str
    config: str
    out: Path
    preset: str
    architecture: BaselineConfig
    recipe: Recipe
    seed: int = 0
    max_minutes: float | None = None  # if set, the learning rate follows the clock
    mixed_precision: str = "no"
    checkpoint_every: int = 500  # steps
    validate_every: int = 100  # steps
    workers: int = 0

    def settings(self) -> dict[str, Any]:
        """What a resumed training must have in common with the one it goes on with."""
        same = ("model", "config", "preset", "seed", "max_minutes", "mixed_precision")
        return {name: getattr(self, name) for name in same} | {
            "dataset": name_without_path(self.dataset),
            "architecture": dataclasses.asdict(self.architecture),
            "recipe": dataclasses.asdict(self.recipe),
        }


def train(request: TrainingRequest, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Train as requested and return the folder of the finished checkpoint.

    An interruption loses the steps since the last checkpoint. With ``resume`` the training goes on there and ends with
    the weights that it would have had without the interruption: to the bit where the arithmetic is reproducible, as on
    one machine's CPU. The exception is ``max_minutes``, where the learning rate follows the clock.

    Raises ``InputError`` for unusable data, an output folder in use, or a loss that is not a number.
    """
    accelerator = _accelerator(request)
    run = RunFolder(request.out)
    rows = open_rows(request.dataset, request.config, "train")
    settings = request.settings() | {"training_rows": len(rows), "processes": accelerator.num_processes}
    run.check(settings, resume=resume, overwrite=overwrite)
    if run.is_complete and not overwrite:
        if accelerator.is_main_process:
            print(f"{request.out} holds this training, finished; --overwrite would start again.", file=sys.stderr)
        return request.out
    crops = Crops(rows, request.recipe, request.seed)
    validation = _validation(request)
    accelerator.wait_for_everyone()  # all have looked at the folder before one of them changes it
    if accelerator.is_main_process:
        run.prepare(settings, overwrite=overwrite)
    accelerator.wait_for_everyone()
    if accelerator.log_with:  # TensorBoard, where it is installed
        accelerator.init_trackers("tensorboard")

    torch.manual_seed(request.seed)
    config = dataclasses.replace(request.architecture, trained_organelles=crops.trained_organelles)
    loop = _Loop(request, accelerator, run, crops, validation, load_model(request.model).build(config))
    loop.restore()
    loop.run_to_end()
    return request.out


class _Loop:
    def __init__(
        self,
        request: TrainingRequest,
        accelerator: Any,
        run: RunFolder,
        crops: Crops,
        validation: Validation | None,
        model: Baseline,
    ) -> None:
        self.request, self.accelerator, self.run, self.crops = request, accelerator, run, crops
        self.validation, recipe = validation, request.recipe
        self.progress = Progress(recipe.steps, request.max_minutes)
        optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.average = None if recipe.ema_decay is None else Average(self.plain_model, recipe.ema_decay)
        self.validation_dice: dict[str, float] = {}

    @property
    def plain_model(self) -> Baseline:
        model: Baseline = self.accelerator.unwrap_model(self.model)
        return model

    def restore(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        if self.run.checkpoints:
            folder = self.run.checkpoints[-1]
            self.accelerator.load_state(str(folder))
            self.progress.restore(folder)
            if self.average is not None:
                self.average.restore(folder)
        if self.accelerator.is_main_process:
            self.run.rewind_log(self.progress.step)

    def batches(self) -> Iterator[Batch]:
        """Batches from the first crop that no step has used yet; crop numbers run over all processes."""
        from torch.utils.data import DataLoader

        batch_size = self.request.recipe.batch_size
        first = self.progress.step * batch_size * self.accelerator.num_processes
        loader: Any = DataLoader(
            self.crops,  # type: ignore[arg-type]  # has a crop for every number, and so no length
            batch_size=batch_size,
            sampler=range(first, CROP_NUMBERS_END),
            num_workers=self.request.workers,
            pin_memory=self.accelerator.device.type == "cuda",
        )
        return iter(self.accelerator.prepare(loader))

    def run_to_end(self) -> None:
        progress, recipe = self.progress, self.request.recipe
        per_step = recipe.batch_size * self.accelerator.num_processes
        batches, fraction = self.batches(), progress.fraction(self.accelerator)
        first, saved, training_seconds = progress.step, progress.step, 0.0
        with tqdm(
            total=recipe.steps,
            initial=progress.step,
            desc=f"train {self.request.model}",
            unit="step",
            disable=not self.accelerator.is_main_process,
        ) as bar:
            while fraction < 1.0:
                since = time.monotonic()
                losses = self.step(next(batches), fraction)
                progress.step += 1
                progress.crops += per_step
                fraction = progress.fraction(self.accelerator)
                save = progress.step % self.request.checkpoint_every == 0 or fraction >= 1.0
                validate = progress.step % self.request.validate_every == 0 or fraction >= 1.0
                log = progress.step % LOG_EVERY == 0 or save or validate
                values = self.checked(losses, saved) if log else {}
                training_seconds += time.monotonic() - since
                bar.update()
                if validate:
                    self.validate()
                if log:
                    values["images_per_s"] = (progress.step - first) * per_step / training_seconds
                    self.log(values, bar, fraction)
                if save:
                    self.save()
                    saved = progress.step
        self.finish()

    def step(self, batch: Batch, fraction: float) -> dict[str, Tensor]:
        recipe = self.request.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate(self.progress.step, fraction)
        with self.accelerator.autocast():
            heads = self.model(batch["image"])
        losses = self.plain_model.loss(heads, batch)
        self.accelerator.backward(losses["loss"])
        if recipe.clip is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.plain_model, self.progress.step)
        return {name: loss.detach() for name, loss in losses.items()}

    def checked(self, losses: dict[str, Tensor], saved: int) -> dict[str, float]:
        """Losses as numbers, mean over the processes; raises ``InputError`` if they, or the weights, are none."""
        values = {name: float(self.accelerator.reduce(loss, reduction="mean")) for name, loss in losses.items()}
        weights_finite = all(bool(torch.isfinite(weight).all()) for weight in self.model.parameters())
        if weights_finite and all(map(math.isfinite, values.values())):
            return values
        raise InputError(
            f"training diverged by step {self.progress.step}: the loss or a weight is not a finite number",
            found=", ".join(f"{name} {value:g}" for name, value in values.items()),
            remedy=f"lower --lr (now {self.request.recipe.lr:g}) or use --mixed-precision no; "
            + (f"the checkpoint of step {saved} in {self.run.path} is intact" if saved else "nothing was saved yet"),
        )

    def validate(self) -> None:
        if self.validation is not None and self.accelerator.is_main_process:
            self.validation_dice = self.validation.dice(self.final_model(), self.accelerator.device)

    def log(self, values: dict[str, float], bar: Any, fraction: float) -> None:
        values |= {f"validation_dice_{name}": value for name, value in self.validation_dice.items()}
        values["lr"] = self.request.recipe.learning_rate(self.progress.step - 1, fraction)
        self.accelerator.log(values, step=self.progress.step)
        if self.accelerator.is_main_process:
            rounded = {name: float(f"{value:.6g}") for name, value in values.items()}
            self.run.append_log({"step": self.progress.step, "seconds": round(self.progress.seconds, 2), **rounded})
        shown = {"loss": f"{values['loss']:.3f}", "images/s": f"{values['images_per_s']:.1f}"}
        if self.validation_dice:
            shown["validation Dice"] = f"{mean_dice(self.validation_dice):.3f}"
        if self.request.max_minutes is not None:
            shown["time used"] = f"{min(fraction, 1.0):.0%}"
        bar.set_postfix(shown)

    def save(self) -> None:
        step, partial = self.progress.step, self.run.partial_checkpoint(self.progress.step)
        self.accelerator.save_state(str(partial))
        if self.accelerator.is_main_process:
            self.progress.save(partial)
            if self.average is not None:
                self.average.save(partial)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.run.commit(step)
        self.accelerator.wait_for_everyone()

    def final_model(self) -> Baseline:
        """The model, or a copy of it with the averaged weights where there are any."""
        model = self.plain_model
        if self.average is None:
            return model
        copy = type(model)(model.config).to(self.accelerator.device)
        copy.load_state_dict(self.average.weights)
        return copy.eval()

    def finish(self) -> None:
        if self.accelerator.is_main_process:
            model = self.final_model()
            model.training_info = _training_info(self.request, self.progress, self.validation_dice)
            model.save_pretrained(self.run.path)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()


def _training_info(request: TrainingRequest, progress: Progress, dice: dict[str, float]) -> dict[str, Any]:
    """What ``config.json`` and the model card say about the training."""
    return {
        "dataset": name_without_path(request.dataset),
        "config": request.config,
        "preset": request.preset,
        "seed": request.seed,
        "steps": progress.step,
        "crops": progress.crops,
        "minutes": round(progress.seconds / 60, 2),
        "mixed_precision": request.mixed_precision,
        "validation_semantic_dice": {name: round(value, 4) for name, value in dice.items()},
        "recipe": dataclasses.asdict(request.recipe),
        "versions": {name: version(name) for name in ("torch", "accelerate", "datasets", "numpy")}
        | {"python": platform.python_version()},
    }


def _accelerator(request: TrainingRequest) -> Any:
    from accelerate import Accelerator
    from accelerate.utils import is_tensorboard_available

    try:
        return Accelerator(
            mixed_precision=request.mixed_precision,
            log_with="tensorboard" if is_tensorboard_available() else None,
            project_dir=str(request.out),
        )
    except ValueError as error:  # fp16 without a GPU, bf16 where it is not supported
        raise InputError(
            f"--mixed-precision {request.mixed_precision} does not work here",
            found=error,
            remedy="use --mixed-precision no",
        ) from error


def _validation(request: TrainingRequest) -> Validation | None:
    try:
        rows = open_rows(request.dataset, request.config, "validation")
    except InputError:  # a dataset without that split
        return None
    return Validation(rows)
