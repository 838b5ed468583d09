"""Files of weights, from others too: .safetensors, and torch's pickles of nothing but tensors and plain values."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from em_bench_eval.errors import InputError

SAFETENSORS = ".safetensors"
CONTAINERS = ("state_dict", "model", "model_state_dict")  # where checkpoints of a training hold the weights
SAFE_PICKLES_SINCE = (2, 6)  # before, weights_only=True could be made to run code: CVE-2025-32434
CONVERT = f"where you trust the file, save its state_dict as {SAFETENSORS} and use that"
FETCH = "the file is damaged, or no file of torch: fetch it again"


def read_content(file: Path, expected: str, *, convert: str = CONVERT, fetch: str = FETCH) -> Any:
    """Read what a file holds; never runs code of the file.

    Raises ``InputError`` for a pickle of more than tensors, numbers and texts, with ``convert`` as what to do, and for
    a file that cannot be read, with ``fetch``; ``expected`` says which files are meant.
    """
    if file.suffix != SAFETENSORS:
        _require_safe_pickles(file)
    try:
        if file.suffix == SAFETENSORS:
            from safetensors.torch import load_file

            return load_file(file)
        return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # pickle, zip, safetensors and torch raise all sorts for other, cut or refused files
        code = re.search(r"GLOBAL [\w.]+", str(error))
        if code and isinstance(error, pickle.UnpicklingError):
            problem = f"{file} is refused: more than weights is pickled in it, which could run code"
            raise InputError(problem, found=code[0], expected=expected, remedy=convert) from error
        # torch begins by saying how to read the file all the same, and ends with what is wrong
        reason = re.search(r"WeightsUnpickler error:\s*(.+)", str(error)) or re.search(r"(.+)", str(error))
        found = reason[1] if reason else type(error).__name__
        raise InputError(f"{file} cannot be read", found=found, expected=expected, remedy=fetch) from error


def read_tensors(
    file: Path, expected: str, under: Sequence[str] = CONTAINERS, *, convert: str = CONVERT
) -> dict[str, Tensor]:
    """Read the named tensors of a file, those ``under`` one of these names if it has one.

    Raises ``InputError`` as ``read_content`` does, and for a file without any.
    """
    content = read_content(file, expected, convert=convert)
    for key in under:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = f"keys {', '.join(map(str, list(content)[:6]))}" if isinstance(content, Mapping) else type(content)
        raise InputError(f"{file} holds no weights", found=keys, expected=expected)
    return tensors


def _require_safe_pickles(file: Path) -> None:
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < SAFE_PICKLES_SINCE:
        raise InputError(
            f"{file} is a pickle, which torch {torch.__version__} cannot read safely (CVE-2025-32434)",
            expected=f"torch {'.'.join(map(str, SAFE_PICKLES_SINCE))} or newer, or a {SAFETENSORS} file",
            remedy="pip install --upgrade torch, or convert the weights where you trust the file",
        )
