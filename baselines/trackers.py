"""Accelerate, set up for a training, and the trackers that it writes to besides ``train_log.jsonl``."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from em_bench_eval.errors import InputError

TRACKERS = ("tensorboard", "trackio", "wandb")


def make_accelerator(out: Path, mixed_precision: str, trackers: Sequence[str]) -> Any:
    """Return the ``Accelerator``; no tracker named means TensorBoard where it is installed.

    Raises ``InputError`` for a tracker that is not installed, or a precision that this device does not have.
    """
    from accelerate import Accelerator
    from accelerate.utils import is_tensorboard_available

    for name in trackers:
        if name != "tensorboard" and importlib.util.find_spec(name) is None:
            raise _missing(name, name)
    if "tensorboard" in trackers and not is_tensorboard_available():
        raise _missing("tensorboard", "-e .[ui]")
    names = list(trackers) or (["tensorboard"] if is_tensorboard_available() else [])
    try:
        return Accelerator(mixed_precision=mixed_precision, log_with=names or None, project_dir=str(out))
    except ValueError as error:  # fp16 without a GPU, bf16 where it is not supported
        raise InputError(
            f"--mixed-precision {mixed_precision} does not work here",
            found=error,
            remedy="use --mixed-precision no",
        ) from error


def _missing(tracker: str, package: str) -> InputError:
    return InputError(
        f"the tracker {tracker} is not installed",
        remedy=f"install it with: pip install {package}; without --tracker the log is OUT/train_log.jsonl",
    )
