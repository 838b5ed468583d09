"""ResNet-50 weights as others publish them: ImageNet, CEM500K (MoCoV2), CEM1.5M (SwAV); one channel or three.

Where they come from: CEM500K is Zenodo record 6453140 (``cem500k_mocov2_resnet50_200ep.pth.tar``), CEM1.5M is 6453160
(``cem1.5m_swav_resnet50_200ep_balanced.pth.tar``), ImageNet any torchvision-style file, timm's safetensors, or
the file of ``microsoft/resnet-50``. None was at hand when this was written: the tests use files of that structure.

Gray values need no conversion to those of the pre-training (CEM500K: mean 0.573, standard deviation 0.127). The first
convolution has no bias and is followed by batch normalisation, which takes its statistics from the new images.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from baselines.weight_files import read_tensors
from em_bench_eval.errors import InputError
from em_bench_eval.whole_file import sha256_of

EXPECTED = "a file .safetensors, .pth or .pth.tar with tensors by name, alone or as its state_dict"
COUNTER = "num_batches_tracked"  # of batch normalisation: absent from old files, and without effect

# what stands before "conv1.weight", the first that is there; momentum encoders and queues stay behind
PREFIXES = {
    "module.encoder_q.": "query encoder of MoCo",
    "encoder_q.": "query encoder of MoCo",
    "module.": "ResNet trained in parallel, as SwAV's",
    "backbone.": "backbone",
    "encoder.": "encoder",
    "": "ResNet",
}
TRANSFORMERS_PREFIXES = ("resnet.", "backbone.", "")
_PARTS = {"conv": "convolution", "bn": "normalization"}
_STEM = re.compile(r"(conv|bn)1\.(\w+)")
_BLOCK = re.compile(r"layer(\d)\.(\d+)\.(conv|bn)(\d)\.(\w+)")
_SHORTCUT = re.compile(r"layer(\d)\.(\d+)\.downsample\.([01])\.(\w+)")
_TRUNK = re.compile(r"(conv|bn|layer)\d")


@dataclass(frozen=True)
class EncoderWeights:
    """Tensors by their names in a backbone of transformers, and a line that says what they are."""

    tensors: dict[str, Tensor]
    about: str
    head: Mapping[str, Tensor] = field(default_factory=dict)  # of a UperNet


def read_resnet_weights(path: str | os.PathLike[str]) -> EncoderWeights:
    """Read a ``.safetensors`` file, or a ``.pth`` or ``.pth.tar`` of nothing but tensors and plain values.

    Heads (``fc``, projections, prototypes) are left out. Raises ``InputError`` for a file that is missing, damaged,
    could run code, or holds no ResNet; whether the ResNet fits a model is for ``load_exactly`` to say.
    """
    file = Path(path)
    if not file.is_file():
        found_there = "a folder" if file.is_dir() else "no such file"
        raise InputError(f"there are no weights {file}", found=found_there, expected=EXPECTED)
    found = read_tensors(file, EXPECTED)
    for prefix in TRANSFORMERS_PREFIXES:
        if f"{prefix}embedder.embedder.convolution.weight" in found:
            tensors = {
                name.removeprefix(prefix): tensor
                for name, tensor in found.items()
                if name.startswith((prefix + "embedder.", prefix + "encoder."))
            }
            return EncoderWeights(tensors, f"{file.name} (ResNet of transformers, sha256 {sha256_of(file)[:12]})")
    for prefix, about in PREFIXES.items():
        if f"{prefix}conv1.weight" in found:
            names = {name: name[len(prefix) :] for name in found if name.startswith(prefix)}
            tensors = {transformers_name(n): found[key] for key, n in names.items() if _TRUNK.match(n)}
            return EncoderWeights(tensors, f"{file.name} ({about}, sha256 {sha256_of(file)[:12]})")
    raise InputError(
        f"{file} holds no ResNet",
        found=f"{len(found)} tensors: {', '.join(sorted(found)[:4])}",
        expected=f"conv1.weight after one of: {', '.join(prefix or 'nothing' for prefix in PREFIXES)}",
        remedy="name a file of ResNet-50 weights, such as cem500k_mocov2_resnet50_200ep.pth.tar",
    )


def transformers_name(name: str) -> str:
    """Translate a torchvision name, without prefix, to transformers' ``ResNetBackbone``; others are returned as is."""
    if match := _STEM.fullmatch(name):
        return f"embedder.embedder.{_PARTS[match[1]]}.{match[2]}"
    if match := _BLOCK.fullmatch(name):
        stage, block, part, number, rest = match.groups()
        return f"encoder.stages.{int(stage) - 1}.layers.{block}.layer.{int(number) - 1}.{_PARTS[part]}.{rest}"
    if match := _SHORTCUT.fullmatch(name):
        stage, block, number, rest = match.groups()
        part = "normalization" if int(number) else "convolution"
        return f"encoder.stages.{int(stage) - 1}.layers.{block}.shortcut.{part}.{rest}"
    return name


def load_exactly(module: nn.Module, tensors: dict[str, Tensor], source: object) -> int:
    """Copy ``tensors`` into ``module``: the same names and shapes, or ``InputError``; return how many.

    A convolution of three colours is summed to one for a gray image, which equals repeating the gray value.
    """
    expected = {name: tensor for name, tensor in module.state_dict().items() if not name.endswith(COUNTER)}
    given = {name: tensor for name, tensor in tensors.items() if not name.endswith(COUNTER)}
    fitted = {name: as_gray(tensor, expected[name]) for name, tensor in given.items() if name in expected}
    shapes = [{name: tuple(tensor.shape) for name, tensor in some.items()} for some in (given | fitted, expected)]
    names = shapes[0].keys() | shapes[1].keys()
    wrong = sorted(n for n in names if shapes[0].get(n, "absent") != shapes[1].get(n, "absent"))
    if wrong:
        found, needed = ("; ".join(f"{n} {some.get(n, 'absent')}" for n in wrong[:4]) for some in shapes)
        raise InputError(
            f"{source} does not fit the model's encoder ({len(wrong)} of {len(names)} tensors differ)",
            found=found,
            expected=needed,
            remedy="use weights of the architecture that the preset names, or a preset of the weights' architecture",
        )
    module.load_state_dict(fitted, strict=False)
    return len(fitted)


def as_gray(tensor: Tensor, like: Tensor) -> Tensor:
    """Sum a (C, 3, h, w) kernel over the colours where ``like`` is (C, 1, h, w); else return it as it is."""
    if tensor.ndim == 4 and like.ndim == 4 and (tensor.shape[1], like.shape[1]) == (3, 1):
        return tensor.sum(dim=1, keepdim=True)
    return tensor
