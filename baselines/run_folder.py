"""The output folder of a training: what is in it, when it may be touched, and checkpoints that are whole or absent.

OUT/settings.json            what was asked for; a resumed training must ask for the same
OUT/train_log.jsonl          one line per logged step
OUT/checkpoints/step-000500  Accelerate state: weights, optimiser, random states, EMA, clock
OUT/{config.json, model.safetensors, README.md}   the result, there only when training is complete
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from baselines.pretrained import CARD, CONFIG, WEIGHTS
from em_bench_eval.errors import InputError

SETTINGS, LOG, CHECKPOINTS, TRACKERS = "settings.json", "train_log.jsonl", "checkpoints", "tensorboard"
OURS = (SETTINGS, LOG, CHECKPOINTS, TRACKERS, CARD, CONFIG, WEIGHTS)
KEPT_CHECKPOINTS = 2


class RunFolder:
    """One training's output folder."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = Path(folder)
        self.log = self.path / LOG

    @property
    def is_complete(self) -> bool:
        """True once the final weights are there."""
        return (self.path / WEIGHTS).is_file()

    def check(self, settings: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
        """Raise ``InputError`` unless a training with ``settings`` may start, restart, go on or be done here.

        Writes nothing.
        """
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise InputError(f"{self.path} is not a folder", remedy="name another folder with --out")
        inside = sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith(".partial-"))
        if not inside:
            return
        if SETTINGS not in inside:
            raise InputError(
                f"{self.path} holds something else",
                found=", ".join(inside[:6]),
                expected="a new or empty folder, or one that `em-bench train` wrote",
                remedy="name another folder with --out; it is not overwritten, not even with --overwrite",
            )
        if overwrite:
            return
        if not resume and not self.is_complete:
            raise InputError(
                f"{self.path} holds an unfinished training",
                found=f"checkpoint of step {self.last_step}" if self.last_step else "no checkpoint yet",
                remedy="add --resume to go on with it, --overwrite to start again, or name another folder with --out",
            )
        self._require_same(settings)

    def prepare(self, settings: Mapping[str, Any], *, overwrite: bool) -> None:
        """Make the folder ready, after ``check``: with ``overwrite`` an earlier training in it is deleted."""
        if overwrite:
            for name in OURS:
                path = self.path / name
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
        (self.path / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        for leftover in (self.path / CHECKPOINTS).glob(".partial-*"):
            shutil.rmtree(leftover)
        if not (self.path / SETTINGS).exists():
            partial = self.path / f".partial-{SETTINGS}"
            partial.write_text(json.dumps(settings, indent=2) + "\n")
            os.replace(partial, self.path / SETTINGS)

    @property
    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted((self.path / CHECKPOINTS).glob("step-*"))

    @property
    def last_step(self) -> int:
        """Optimisation steps done at the last complete checkpoint; 0 without one."""
        return int(self.checkpoints[-1].name.removeprefix("step-")) if self.checkpoints else 0

    def partial_checkpoint(self, step: int) -> Path:
        """Where to write the checkpoint of a step; ``commit`` gives it its name."""
        return self.path / CHECKPOINTS / f".partial-step-{step:06d}"

    def commit(self, step: int) -> None:
        """Give a completely written checkpoint its name, and delete all but the last two."""
        final = self.path / CHECKPOINTS / f"step-{step:06d}"
        if final.exists():  # the same step again, after a resumed run that had nothing left to do
            shutil.rmtree(final)
        os.replace(self.partial_checkpoint(step), final)
        for old in self.checkpoints[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)

    def append_log(self, entry: Mapping[str, Any]) -> None:
        """Add a line to ``train_log.jsonl``."""
        with self.log.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def rewind_log(self, step: int) -> None:
        """Drop the lines of steps after ``step``: they are about to be done again."""
        if not self.log.exists():
            return
        kept = [line for line in self.log.read_text().splitlines() if _step_of(line) <= step]
        partial = self.path / f".partial-{LOG}"
        partial.write_text("".join(line + "\n" for line in kept))
        os.replace(partial, self.log)

    def _require_same(self, settings: Mapping[str, Any]) -> None:
        before = json.loads((self.path / SETTINGS).read_text())
        now = json.loads(json.dumps(settings))
        changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if changed:
            raise InputError(
                f"{self.path} was started with other settings",
                found="; ".join(f"{key}: {now.get(key)}" for key in changed),
                expected="; ".join(f"{key}: {before.get(key)}" for key in changed),
                remedy="repeat the original options, start again with --overwrite, or name another folder with --out",
            )


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line cut short by the interruption
        return float("inf")
