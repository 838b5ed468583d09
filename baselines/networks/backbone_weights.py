"""Initial weights for an encoder of transformers: from a file of ResNet weights, or from a model of transformers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from baselines.networks.resnet_weights import EncoderWeights, read_resnet_weights
from em_bench_eval.errors import InputError

STAGES = ["stage1", "stage2", "stage3", "stage4"]  # transformers' names of a backbone's outputs
BACKBONE, HEAD = "backbone.", "decode_head."  # of a UperNet
UNUSED = ("swin.layernorm.", "layernorm.")  # of a classifier on the last stage; a backbone has its own norms
FILES = (".safetensors", ".pth", ".pt", ".tar", ".bin")  # what ends so is no name on the Hub
CLASSES = {"convnext": "ConvNextBackbone", "resnet": "ResNetBackbone", "swin": "SwinBackbone"}


def read_encoder_weights(source: str | os.PathLike[str], kind: str) -> EncoderWeights:
    """Read weights for a backbone of ``kind`` (a key of ``CLASSES``), by their names in transformers' backbone.

    A file holds ResNet weights, see ``networks.resnet_weights``. Anything else is a folder with ``config.json`` and
    ``model.safetensors``, or a name on the Hub: a backbone, a classifier on it, or a UperNet, whose head is returned
    too. Raises ``InputError`` for what is neither, or of another kind.
    """
    if not Path(source).is_file() and Path(source).suffix not in FILES:
        return _read_transformers(str(source), kind)
    if kind != "resnet":
        raise InputError(
            f"weights of a {kind} are not read from a file",
            found=source,
            expected="a folder (or Hub name) with config.json and model.safetensors, as transformers saves it",
            remedy=f"name {Path(source).parent}, if it is one",
        )
    return read_resnet_weights(source)


def _read_transformers(source: str, kind: str) -> EncoderWeights:
    """Let transformers read its own model: it knows the tensor names of its earlier versions."""
    import transformers

    options: dict[str, Any] = {"use_safetensors": True, "output_loading_info": True}
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # what is missing is said by those who load
    try:
        found = transformers.AutoConfig.from_pretrained(source).model_type
        if found == "upernet":
            model, info = transformers.UperNetForSemanticSegmentation.from_pretrained(source, **options)
            found = model.backbone.config.model_type
        elif found == kind:
            build = getattr(transformers, CLASSES[kind])
            model, info = build.from_pretrained(source, out_features=STAGES, **options)
    except (OSError, ValueError) as error:  # no such folder or repository, no safetensors in it, a broken config
        raise InputError(
            f"there are no weights {source}",
            found=str(error).splitlines()[0],
            expected="a file of ResNet weights (.safetensors, .pth, .pth.tar), or a folder or Hub name with "
            "config.json and model.safetensors",
        ) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    if found != kind:
        raise InputError(f"{source} is of another architecture", found=found, expected=f"{kind}, or upernet on {kind}")
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in set(info["missing_keys"])}
    if not hasattr(model, "decode_head"):
        return EncoderWeights(_used(tensors, ""), f"{Path(source).name} ({kind} of transformers)")
    head = {name[len(HEAD) :]: tensor for name, tensor in tensors.items() if name.startswith(HEAD)}
    return EncoderWeights(_used(tensors, BACKBONE), f"{Path(source).name} (UperNet of transformers on {kind})", head)


def _used(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    names = {name: name[len(prefix) :] for name in tensors if name.startswith(prefix)}
    return {short: tensors[name] for name, short in names.items() if not short.startswith(UNUSED)}
