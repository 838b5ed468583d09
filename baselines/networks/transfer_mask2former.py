"""Published weights into our Mask2Former: a folder in transformers' layout, three colour channels into one.

Written for ``facebook/mask2former-swin-*`` and for ImageNet Swin folders, saved locally. It was tested on random
weights that transformers itself wrote, not on the published files: they could not be downloaded where this was written.
The published models expect ImageNet's mean and deviation; images here are normalised to about the same range (-1.5 to
1.5), not to the same statistics.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from em_bench_eval.errors import InputError

ENCODER = "model.pixel_level_module.encoder."
# what may differ from the published model, and is then left as it was initialised
REPLACEABLE = (
    "class_predictor.",
    "model.transformer_module.queries_embedder.",
    "model.transformer_module.queries_features.",
)


def load_into(network: nn.Module, folder: Path) -> str:
    """Copy the weights in ``folder`` into ``network``, transformers' Mask2FormerForUniversalSegmentation.

    ``folder`` holds a whole Mask2Former or a model of the network's backbone type alone, ``config.json`` and
    safetensors. The first convolution's three input channels are summed, which gives a gray image the answer that it
    would have had in three equal channels. The class head (and queries of another number) stay as initialised.
    Returns a sentence for the records. Raises ``InputError`` for pickles and for weights of another architecture.
    """
    kind = _kind(folder)
    backbone = str(network.config.backbone_config.model_type)  # type: ignore[union-attr]
    if kind == "mask2former":
        theirs = _mask2former(folder)
    elif kind == backbone:
        theirs = {ENCODER + name: tensor for name, tensor in _backbone(folder, network).items()}
    else:
        raise InputError(
            f"{folder.name} holds another model",
            found=kind,
            expected=f"mask2former, or {backbone} (this model's backbone)",
            remedy="name another folder, or choose the configuration's backbone accordingly",
        )
    ours = network.state_dict()
    wanted = [name for name in ours if kind == "mask2former" or name.startswith(ENCODER)]
    fitted = {name: _fit(theirs[name], ours[name]) for name in wanted if name in theirs}
    left = [name for name in wanted if name not in fitted or fitted[name] is None]
    wrong = [name for name in left if not name.startswith(REPLACEABLE) and "hidden_states_norms" not in name]
    if wrong:
        found = ["absent" if name not in theirs else tuple(theirs[name].shape) for name in wrong[:3]]
        raise InputError(
            f"the weights in {folder.name} do not fit this model ({len(wrong)} of {len(wanted)} tensors)",
            found=", ".join(f"{name} {shape}" for name, shape in zip(wrong, found, strict=False)),
            expected=", ".join(f"{name} {tuple(ours[name].shape)}" for name in wrong[:3]),
            remedy="choose the configuration of the published model (the preset `official` is Swin-T)",
        )
    copied = {name: tensor for name, tensor in fitted.items() if tensor is not None}
    network.load_state_dict(copied, strict=False)
    summed = [name for name in copied if copied[name].shape != theirs[name].shape]
    return (
        f"{kind} weights of {folder.name}: {len(copied)} of {len(ours)} tensors copied, "
        f"{len(summed)} of them summed over the colour channels; as initialised: {', '.join(left) or 'none'}"
    )


def _fit(theirs: Tensor, ours: Tensor) -> Tensor | None:
    """The tensor to copy, or ``None`` if the shapes do not fit."""
    if theirs.shape == ours.shape:
        return theirs
    gray_of_colour = theirs.ndim == 4 and theirs.shape[1] == 3 and ours.shape[1] == 1
    summed = theirs.sum(dim=1, keepdim=True) if gray_of_colour else theirs
    return summed if summed.shape == ours.shape else None


def _kind(folder: Path) -> str:
    if not (folder / "config.json").is_file() or not list(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in folder.glob("*.bin")) if folder.is_dir() else []
        raise InputError(
            f"{folder} holds no weights that can be loaded",
            found=f"pickled weights, which are not read because they can run code: {', '.join(pickles)}"
            if pickles
            else "no config.json with safetensors beside it",
            expected="a folder as transformers' save_pretrained writes it",
            remedy="download the model with `hf download NAME --local-dir FOLDER` and name that folder",
        )
    try:
        return str(json.loads((folder / "config.json").read_text())["model_type"])
    except (json.JSONDecodeError, KeyError) as error:
        raise InputError(
            f"{folder / 'config.json'} does not describe a transformers model", found=f"{type(error).__name__}: {error}"
        ) from error


def _mask2former(folder: Path) -> dict[str, Tensor]:
    """All weights, read by transformers, which knows how its tensors were called in earlier versions."""
    from transformers import Mask2FormerForUniversalSegmentation

    return _read(Mask2FormerForUniversalSegmentation, folder)


def _backbone(folder: Path, network: Any) -> dict[str, Tensor]:
    model_class = type(network.model.pixel_level_module.encoder)
    return _read(model_class, folder, out_features=["stage1", "stage2", "stage3", "stage4"])


def _read(model_class: Any, folder: Path, **options: Any) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):  # what it initialises and then overwrites draws no numbers from ours
        try:
            model = model_class.from_pretrained(folder, local_files_only=True, use_safetensors=True, **options)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"the weights in {folder} cannot be read", found=error) from error
    weights: dict[str, Tensor] = model.state_dict()
    return weights
