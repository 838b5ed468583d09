"""The loop of every training: steps until the budget is used, with a log, and checkpoints that it goes on from."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from baselines.progress import Progress
from baselines.recipe import Recipe
from baselines.run_folder import RunFolder
from em_bench_eval.errors import InputError

LOG_EVERY = 10  # steps; also how often the loss is looked at, so that a GPU is not waited for at every step
CROP_NUMBERS_END = 1 << 62


class ResumableLoop:
    """A subclass says what a step is, what is looked at in between, and what is written in the end.

    It sets ``model`` and ``optimizer`` as Accelerate prepared them. A checkpoint holds their state, and ``parts``.
    """

    def __init__(
        self,
        what: str,
        accelerator: Any,
        run: RunFolder,
        recipe: Recipe,
        progress: Progress,
        *,
        checkpoint_every: int,
        look_every: int,
    ) -> None:
        self.what, self.accelerator, self.run, self.recipe, self.progress = what, accelerator, run, recipe, progress
        self.checkpoint_every, self.look_every = checkpoint_every, look_every
        self.parts: list[Any] = [progress]  # each with save(folder) and restore(folder)
        self.model: Any = None
        self.optimizer: Any = None

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """Batches from the first crop that no step has used yet."""
        raise NotImplementedError

    def step(self, batches: Iterator[dict[str, Tensor]], fraction: float) -> dict[str, Tensor]:
        """Make one optimisation step when ``fraction`` of the budget is used; returns losses, the first of them "loss".

        ``self.progress.step`` is the number of this step, from 0.
        """
        raise NotImplementedError

    def look(self) -> None:
        """See how good the model has become; every ``look_every`` steps and at the end, in all processes."""

    def is_over(self) -> bool:
        """Say, after a look, whether to stop before the budget is used; the same in all processes."""
        return False

    def logged(self, fraction: float) -> dict[str, float]:
        """What the log says besides losses and speed."""
        return {}

    def shown(self, fraction: float) -> dict[str, str]:
        """What the progress bar says besides loss and speed."""
        return {}

    def write_result(self) -> None:
        """Write the finished weights; in the first process only."""
        raise NotImplementedError

    @property
    def plain_model(self) -> Any:
        """The model itself, without what Accelerate wrapped around it."""
        return self.accelerator.unwrap_model(self.model)

    def restore(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        if self.run.checkpoints:
            folder = self.run.checkpoints[-1]
            self.accelerator.load_state(str(folder))
            for part in self.parts:
                part.restore(folder)
        if self.accelerator.is_main_process:
            self.run.rewind_log(self.progress.step)

    def run_to_end(self) -> None:
        """Make all steps that are left, and write the result."""
        progress, batch_size = self.progress, self.recipe.batch_size
        batches, fraction = self.batches(), progress.fraction(self.accelerator)
        first, saved, training_seconds = progress.step, progress.step, 0.0
        with tqdm(
            total=progress.steps,
            initial=progress.step,
            desc=self.what,
            unit="step",
            disable=not self.accelerator.is_main_process,
        ) as bar:
            while fraction < 1.0:
                since = time.monotonic()
                losses = self.step(batches, fraction)
                progress.step += 1
                progress.crops += batch_size
                fraction = progress.fraction(self.accelerator)
                save = progress.step % self.checkpoint_every == 0 or fraction >= 1.0
                look = progress.step % self.look_every == 0 or fraction >= 1.0
                log = progress.step % LOG_EVERY == 0 or save or look
                values = self._checked(losses, saved) if log else {}
                training_seconds += time.monotonic() - since
                bar.update()
                if look:
                    self.look()
                if log:
                    values["images_per_s"] = (progress.step - first) * batch_size / training_seconds
                    self._log(values, bar, fraction)
                if save:
                    self._save()
                    saved = progress.step
                if look and self.is_over():
                    break
        if self.accelerator.is_main_process:
            self.write_result()
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    def update_weights(self) -> None:
        """Clip the gradients as the recipe says, and let the optimiser use them."""
        if self.recipe.clip is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _checked(self, losses: dict[str, Tensor], saved: int) -> dict[str, float]:
        """Losses as numbers, mean over the processes; raises ``InputError`` if they, or the weights, are none."""
        values = {name: float(self.accelerator.reduce(loss, reduction="mean")) for name, loss in losses.items()}
        weights_finite = all(bool(torch.isfinite(weight).all()) for weight in self.model.parameters())
        if weights_finite and all(map(math.isfinite, values.values())):
            return values
        raise InputError(
            f"training diverged by step {self.progress.step}: the loss or a weight is not a finite number",
            found=", ".join(f"{name} {value:g}" for name, value in values.items()),
            remedy=f"lower --lr (now {self.recipe.lr:g}) or use --mixed-precision no; "
            + (f"the checkpoint of step {saved} in {self.run.path} is intact" if saved else "nothing was saved yet"),
        )

    def _log(self, values: dict[str, float], bar: Any, fraction: float) -> None:
        values |= self.logged(fraction)
        self.accelerator.log(values, step=self.progress.step)
        if self.accelerator.is_main_process:
            rounded = {name: float(f"{value:.6g}") for name, value in values.items()}
            self.run.append_log({"step": self.progress.step, "seconds": round(self.progress.seconds, 2), **rounded})
        shown = {"loss": f"{values['loss']:.3f}", "images/s": f"{values['images_per_s']:.1f}"}
        bar.set_postfix(shown | self.shown(fraction))

    def _save(self) -> None:
        step, partial = self.progress.step, self.run.partial_checkpoint(self.progress.step)
        self.accelerator.save_state(str(partial))
        if self.accelerator.is_main_process:
            for part in self.parts:
                part.save(partial)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            self.run.commit(step)
        self.accelerator.wait_for_everyone()


def numbered_batches(crops: Any, accelerator: Any, first_crop: int, batch_size: int, workers: int) -> Iterable[Any]:
    """Collate ``crops[n]`` from ``first_crop`` on, ``batch_size`` at a time; numbers run over all processes."""
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(
        crops,
        batch_size=batch_size,
        sampler=range(first_crop, CROP_NUMBERS_END),
        num_workers=workers,
        pin_memory=accelerator.device.type == "cuda",
        persistent_workers=workers > 0,
    )
    batches: Iterable[Any] = accelerator.prepare(loader)
    return batches
