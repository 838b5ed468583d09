"""Checkpoints: a folder or Hub repository with ``config.json``, ``model.safetensors`` and a model card.

No pickle is ever written or read, so a downloaded checkpoint cannot run code. Files appear under their names only
when complete, the weights last: a folder with ``model.safetensors`` is a complete checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_bench_eval import __version__, registry
from em_bench_eval.errors import InputError
from em_bench_eval.schema import ORGANELLES

if TYPE_CHECKING:
    from torch import nn

    from baselines.model import Baseline

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".tar", ".pkl")


def save_pretrained(model: Baseline, folder: str | os.PathLike[str]) -> None:
    """Write a complete checkpoint into ``folder`` (made if needed), replacing an earlier one file by file."""
    write_checkpoint(folder, model, checkpoint_config(model), model_card(model))


def write_checkpoint(folder: str | os.PathLike[str], model: nn.Module, config: Mapping[str, Any], card: str) -> None:
    """Write weights, ``config.json`` and card into ``folder``, each whole or not at all, the weights last."""
    from safetensors.torch import save_file

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=target) as name:
        partial = Path(name)
        (partial / CARD).write_text(card)
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        save_file(weights, partial / WEIGHTS, metadata={"format": "pt"})
        for file in (CARD, CONFIG, WEIGHTS):
            os.replace(partial / file, target / file)


def checkpoint_config(model: Baseline) -> dict[str, Any]:
    """What ``config.json`` holds: the model's name, its configuration, and how it was trained."""
    config = dataclasses.asdict(model.config)
    return {"model": model.name, "em_organelle_wild": __version__, "config": config, "training": model.training_info}


def load_pretrained(
    checkpoint: str | os.PathLike[str],
    expected: type[Baseline] | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
) -> Baseline:
    """Load a checkpoint folder or Hub repository, in evaluation mode on the CPU.

    ``revision`` (tag, branch or commit) and ``token`` are for the Hub; without a token that of ``hf auth login`` or
    ``HF_TOKEN`` is used.

    Raises ``InputError`` if it is no checkpoint, a pickle, of another model than ``expected``, of other organelles, or
    if its tensors do not fit its configuration.
    """
    from baselines.model import load_model
    from baselines.weight_files import read_content

    folder = _checkpoint_folder(checkpoint, revision, token)
    try:
        stored = json.loads((folder / CONFIG).read_text())
        name, values = stored["model"], dict(stored["config"])
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder / CONFIG} does not describe a baseline",
            found=f"{type(error).__name__}: {error}",
            expected='JSON with "model" and "config", as written by `em-bench train`',
        ) from error
    if expected is not None and name != expected.name:
        raise InputError(
            f"{checkpoint} is a checkpoint of another model",
            found=name,
            expected=expected.name,
            remedy=f"load it with baselines.pretrained.load_pretrained, or train a {expected.name}",
        )
    build = load_model(name).build
    if list(values.get("organelles", ())) != list(ORGANELLES):
        raise InputError(
            f"{checkpoint} predicts other classes",
            found=values.get("organelles"),
            expected=list(ORGANELLES),
            remedy="train again with this version, or use the version that wrote the checkpoint: "
            f"{stored.get('em_organelle_wild', 'unknown')}",
        )
    known = {field.name for field in dataclasses.fields(build.config_class)}
    if set(values) - known:
        raise InputError(
            f"{folder / CONFIG} has settings that {name} does not know",
            found=sorted(set(values) - known),
            expected=sorted(known),
            remedy=f"use version {stored.get('em_organelle_wild', 'unknown')}, which wrote the checkpoint",
        )
    model = build(build.config_class(**{key: with_tuples(value) for key, value in values.items()}))
    written = "what `em-bench train` wrote"
    weights = read_content(folder / WEIGHTS, written, fetch="the file is damaged: copy or train it again")
    _require_fit(checkpoint, weights, model.state_dict())
    model.load_state_dict(weights)
    model.training_info = stored.get("training", {})
    return model.eval()


def load_into(model: Baseline, checkpoint: str | os.PathLike[str]) -> None:
    """Give a model the weights of a checkpoint folder or Hub repository of the same architecture.

    What the checkpoint says about its training is not taken over. Raises ``InputError`` if it is another model, or if
    its tensors do not fit.
    """
    other = load_pretrained(checkpoint, expected=type(model))
    weights = other.state_dict()
    _require_fit(checkpoint, weights, model.state_dict())
    model.load_state_dict(weights)


def push_to_hub(
    model: Baseline,
    repo_id: str,
    *,
    public: bool = False,
    revision_tag: str | None = None,
    dataset: str = "",
    score: str | os.PathLike[str] | None = None,
    base_model: str = "",
    token: str | None = None,
) -> str:
    """Upload the checkpoint to a Hub model repository, made if needed; return its address.

    Private unless ``public``; resumable; see ``em-bench push model --help`` for more. ``dataset``, a folder or a name
    on the Hub, gives the card licences and citations; ``score`` is a ``score.json`` of these weights; ``token`` is that
    of ``hf auth login`` or ``HF_TOKEN`` if not given.
    """
    from baselines.hub.hub_model import Publication, push
    from em_bench_eval.hub_upload import Repository

    about = Publication(dataset, score=None if score is None else Path(score), base_model=base_model)
    return push(model, Repository(repo_id, "model", public=public), about, revision_tag, token).url


def model_card(model: Baseline) -> str:
    """Return the card of a checkpoint as far as it knows itself; ``hub.model_card`` says more when published."""
    from baselines.hub.model_card import CardFacts, card

    return card(model, CardFacts())


def with_tuples(value: Any) -> Any:
    """JSON has lists where configurations have tuples."""
    return tuple(map(with_tuples, value)) if isinstance(value, list) else value


def _checkpoint_folder(checkpoint: str | os.PathLike[str], revision: str | None, token: str | None) -> Path:
    folder = Path(checkpoint)
    if folder.is_dir():
        if revision is not None:
            raise InputError(f"{folder} is a folder", found=f"revision {revision}", expected="a Hub repository")
        missing = [file for file in (CONFIG, WEIGHTS) if not (folder / file).is_file()]
        if not missing:
            return folder
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
        raise InputError(
            f"{folder} is not a complete checkpoint",
            found=f"pickled weights, which are not read because they can run code: {', '.join(pickles)}"
            if pickles
            else f"no {' and no '.join(missing)}",
            expected=f"{CONFIG} and {WEIGHTS}, as written at the end of `em-bench train`",
            remedy="convert the weights to safetensors"
            if pickles
            else "finish the training (em-bench train ... --resume), or name another folder",
        )
    if folder.is_file():
        raise InputError(
            f"{folder} is a file",
            expected=f"the folder that holds {CONFIG} and {WEIGHTS}",
            remedy="pickled weights are not read because they can run code: convert them to safetensors"
            if folder.suffix in PICKLES
            else f"name {folder.parent}",
        )
    return _downloaded(str(checkpoint), revision, token)


def _downloaded(repo_id: str, revision: str | None, token: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    from em_bench_eval.hub_faults import read_problem

    wanted = [CONFIG, WEIGHTS, CARD]
    try:
        folder = Path(snapshot_download(repo_id, allow_patterns=wanted, revision=revision, token=token))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        found, remedy = read_problem(error, token)
        raise InputError(
            f"there is no checkpoint {repo_id!r}" + (f" at revision {revision!r}" if revision else ""),
            found=f"no such folder, and {found}",
            expected="a folder written by `em-bench train`, or a Hub repository <org>/<model>",
            remedy=f"{remedy}; known models: {', '.join(registry.names('baselines.models'))}",
        ) from None  # the client's own traceback may quote request headers
    missing = [file for file in (CONFIG, WEIGHTS) if not (folder / file).is_file()]
    if missing:
        raise InputError(
            f"{repo_id} is not a checkpoint of this project",
            found=f"no {' and no '.join(missing)}",
            expected=f"{CONFIG} and {WEIGHTS}, as em-bench push model uploads them",
        )
    return folder


def _require_fit(checkpoint: object, weights: dict[str, Any], needed: dict[str, Any]) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in needed.items()}
    wrong = sorted(
        name for name in found.keys() | expected.keys() if found.get(name, "absent") != expected.get(name, "absent")
    )
    if wrong:
        shown = "; ".join(f"{name} {found.get(name, 'absent')}" for name in wrong[:4])
        raise InputError(
            f"the weights of {checkpoint} do not fit its configuration ({len(wrong)} tensors differ)",
            found=shown,
            expected="; ".join(f"{name} {expected.get(name, 'absent')}" for name in wrong[:4]),
            remedy="config.json and model.safetensors come from different models or numbers of classes",
        )
