"""The training loop of every baseline, on Accelerate: one process or many, CPU or GPU, interruptible anywhere."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from baselines.augment import augmented, to_batch
from baselines.data import name_without_path
from baselines.early_stopping import Best
from baselines.memory_faults import out_of_memory_as_input_error
from baselines.model import Baseline, BaselineConfig, Batch, load_model
from baselines.optimizer import make_optimizer, set_learning_rate
from baselines.preprocess import normalisation
from baselines.progress import Average, Progress, step_seed
from baselines.recipe import Recipe
from baselines.resumable_loop import ResumableLoop
from baselines.run_folder import RunFolder
from baselines.trackers import make_accelerator
from baselines.training_data import TrainingData, open_training_data
from baselines.validation import mean_dice
from em_bench_eval.errors import InputError


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
    micro_batch: int | None = None  # crops that a process takes at a time; None: its whole share of the batch
    encoder_weights: str | None = None  # file or folder of pre-trained weights of others
    start_from: str | None = None  # checkpoint of the same model
    sources: tuple[str, ...] = ()  # only rows of these sources; (): all
    streaming: bool = False  # read the rows in order while training, and keep none on disk
    checkpoint_every: int = 500  # steps
    validate_every: int = 100  # steps
    workers: int = 0
    trackers: tuple[str, ...] = ()

    def settings(self) -> dict[str, Any]:
        """What a resumed training must have in common with the one it goes on with."""
        same = ("model", "config", "preset", "seed", "max_minutes", "mixed_precision", "micro_batch", "streaming")
        places = ("dataset", "encoder_weights", "start_from")
        return (
            {name: getattr(self, name) for name in same}
            | {name: value and name_without_path(value) for name in places for value in [getattr(self, name)]}
            | {
                "sources": list(self.sources),
                "architecture": dataclasses.asdict(self.architecture),
                "recipe": dataclasses.asdict(self.recipe),
            }
        )


def train(request: TrainingRequest, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Train as requested and return the folder of the finished checkpoint.

    An interruption loses the steps since the last checkpoint. With ``resume`` the training goes on there and ends with
    the weights that it would have had without the interruption: to the bit where the arithmetic is reproducible, as on
    one machine's CPU. The exceptions are ``max_minutes``, where the learning rate follows the clock, and ``streaming``.

    Raises ``InputError`` for unusable data, an output folder in use, too little memory, or a loss that is not a number.
    """
    declared = load_model(request.model)
    if not declared.trainable:
        raise InputError(
            f"{request.model} is not trained here",
            expected="a model that `em-bench train` trains",
            remedy=f"its weights come from elsewhere: em-bench {request.model} --help",
        )
    accelerator = make_accelerator(request.out, request.mixed_precision, request.trackers)
    run = RunFolder(request.out)
    data = open_training_data(request)
    settings = request.settings() | {"training_rows": data.rows, "processes": accelerator.num_processes}
    run.check(settings, resume=resume, overwrite=overwrite)
    if run.is_complete and not overwrite:
        if accelerator.is_main_process:
            print(f"{request.out} holds this training, finished; --overwrite would start again.", file=sys.stderr)
        return request.out

    torch.manual_seed(request.seed)
    architecture = request.architecture
    if request.encoder_weights is not None:
        architecture = declared.build.config_for_weights(architecture, request.encoder_weights)
    model = declared.build(dataclasses.replace(architecture, trained_organelles=data.trained_organelles))
    started = _start(model, request)
    accelerator.wait_for_everyone()  # all have looked at the folder before one of them changes it
    if accelerator.is_main_process:
        run.prepare(settings, overwrite=overwrite)
        for note in (*started.values(), *data.notes(model, request.recipe.crop)):
            print(note, file=sys.stderr)
    accelerator.wait_for_everyone()
    if accelerator.log_with:
        accelerator.init_trackers("em-organelle-wild", config={"model": request.model, "preset": request.preset})

    loop = _Loop(request, accelerator, run, data, model, started)
    loop.restore()
    remedy = "use a smaller --micro-batch (crops at a time; the recipe stays the same), or a smaller --crop"
    with out_of_memory_as_input_error(f"training {request.model}", f"{remedy}; --resume goes on"):
        loop.run_to_end()
    return request.out


class _Loop(ResumableLoop):
    def __init__(
        self,
        request: TrainingRequest,
        accelerator: Any,
        run: RunFolder,
        data: TrainingData,
        model: Baseline,
        started: dict[str, str],
    ) -> None:
        recipe = request.recipe
        super().__init__(
            f"train {request.model}",
            accelerator,
            run,
            recipe,
            Progress(recipe.steps, request.max_minutes),
            checkpoint_every=request.checkpoint_every,
            look_every=request.validate_every,
        )
        self.request, self.data, self.started = request, data, started
        self.normalisation = normalisation(model.config.normalisation)
        self.micro_batch, self.passes = _share_of_a_process(request, accelerator.num_processes)
        self.model, self.optimizer = accelerator.prepare(model, make_optimizer(model, recipe))
        self.average = None if recipe.ema_decay is None else Average(self.plain_model, recipe.ema_decay)
        self.best = None if recipe.patience is None else Best(recipe.patience)
        self.parts += [part for part in (self.average, self.best) if part is not None]
        self.validation_dice: dict[str, float] = {}

    def batches(self) -> Iterator[dict[str, Tensor]]:
        first_crop = self.progress.step * self.recipe.batch_size
        return iter(self.data.batches(self.accelerator, first_crop, self.micro_batch, self.request.workers))

    def step(self, batches: Iterator[dict[str, Tensor]], fraction: float) -> dict[str, Tensor]:
        """Make one optimisation step, over as many passes as the batch takes; returns the mean losses."""
        set_learning_rate(self.optimizer, self.recipe.learning_rate(self.progress.step, fraction))
        total: dict[str, Tensor] = {}
        for number in range(self.passes):
            batch = self.batch(next(batches))
            if number == 0:  # dropout and sampled losses draw the same numbers after an interruption
                torch.manual_seed(step_seed(self.request.seed, self.progress.step, self.accelerator.process_index))
            alone = number + 1 < self.passes  # gradients are exchanged at the last pass only
            with self.accelerator.no_sync(self.model) if alone else contextlib.nullcontext():
                with self.accelerator.autocast():
                    heads = self.model(batch["image"])
                losses = self.plain_model.loss(heads, batch)
                self.accelerator.backward(losses["loss"] / self.passes)
            for name, loss in losses.items():
                total[name] = total.get(name, 0.0) + loss.detach() / self.passes
        self.update_weights()
        if self.average is not None:
            self.average.update(self.plain_model, self.progress.step)
        return total

    def batch(self, crops: dict[str, Tensor]) -> Batch:
        batch = to_batch(crops, self.accelerator.device)
        if not self.recipe.augment:
            return batch
        return augmented(batch, crops["number"], self.request.seed, self.normalisation)

    def look(self) -> None:
        """Validate, in the first process."""
        if self.data.validation is None or not self.accelerator.is_main_process:
            return
        model = self.averaged_model()
        self.validation_dice = self.data.validation.dice(model, self.accelerator.device)
        if self.best is not None and self.validation_dice:
            self.best.see(mean_dice(self.validation_dice), self.progress.step, model.state_dict())

    def is_over(self) -> bool:
        """What the first process, which alone validates, decides."""
        if self.best is None:
            return False
        if self.accelerator.num_processes == 1:
            return self.best.is_over
        from accelerate.utils import broadcast

        return bool(broadcast(torch.tensor(float(self.best.is_over), device=self.accelerator.device)) > 0)

    def logged(self, fraction: float) -> dict[str, float]:
        values = {f"validation_dice_{name}": value for name, value in self.validation_dice.items()}
        return values | {"lr": self.recipe.learning_rate(self.progress.step - 1, fraction)}

    def shown(self, fraction: float) -> dict[str, str]:
        shown = {}
        if self.validation_dice:
            shown["validation Dice"] = f"{mean_dice(self.validation_dice):.3f}"
        if self.request.max_minutes is not None:
            shown["time used"] = f"{min(fraction, 1.0):.0%}"
        return shown

    def averaged_model(self) -> Baseline:
        """The model, or a copy of it with the averaged weights where there are any."""
        model: Baseline = self.plain_model
        if self.average is None:
            return model
        copy = type(model)(model.config).to(self.accelerator.device)
        copy.load_state_dict(self.average.weights)
        return copy.eval()

    def write_result(self) -> None:
        model = self.averaged_model()
        if self.best is not None and self.best.weights:
            model.load_state_dict(self.best.weights)
        model.training_info = _training_info(self.request, self.progress, self.validation_dice, self.started)
        if self.best is not None and self.best.weights:
            model.training_info |= {"best_step": self.best.step, "best_validation_dice": round(self.best.dice, 4)}
        model.save_pretrained(self.run.path)


def _share_of_a_process(request: TrainingRequest, processes: int) -> tuple[int, int]:
    """Return how many crops a process takes at a time, and how many times per step."""
    total = request.recipe.batch_size
    share = total // processes
    micro = share if request.micro_batch is None else min(request.micro_batch, share)
    if share * processes != total or not micro or share % micro:
        raise InputError(
            f"a batch of {total} crops cannot be divided",
            found=f"{processes} processes"
            + (f", {request.micro_batch} crops at a time" if request.micro_batch else ""),
            expected="a batch that is a multiple of processes times --micro-batch",
            remedy="change --batch-size, --micro-batch or the number of processes",
        )
    return micro, share // micro


def _start(model: Baseline, request: TrainingRequest) -> dict[str, str]:
    """Load what the training starts from; returns what that was, for the records."""
    if request.start_from is not None:
        from baselines.pretrained import load_into

        load_into(model, request.start_from)
        return {"started_from": f"weights of {name_without_path(request.start_from)}"}
    if request.encoder_weights is not None:
        return {"encoder_weights": model.load_encoder_weights(request.encoder_weights)}
    return {}


def _training_info(
    request: TrainingRequest, progress: Progress, dice: dict[str, float], started: dict[str, str]
) -> dict[str, Any]:
    """What ``config.json`` and the model card say about the training."""
    return {
        "dataset": name_without_path(request.dataset),
        "config": request.config,
        "sources": list(request.sources),
        "preset": request.preset,
        "seed": request.seed,
        "steps": progress.step,
        "crops": progress.crops,
        "minutes": round(progress.seconds / 60, 2),
        "mixed_precision": request.mixed_precision,
        **started,
        "validation_semantic_dice": {name: round(value, 4) for name, value in dice.items()},
        "recipe": dataclasses.asdict(request.recipe),
        "versions": {name: version(name) for name in ("torch", "accelerate", "datasets", "numpy")}
        | {"python": platform.python_version()},
    }
