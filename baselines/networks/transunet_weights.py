"""R50+ViT weights of others, under our names: Google's .npz, timm's, TransUNet's and RETINA's files, and our folders.

The names and shapes are those of the files (``R50+ViT-B_16.npz``; timm ``vit_base_r50_s16_224``; the state dict of
TransUNet, which RETINA keeps). Google and timm pad as TensorFlow does and normalise projections in 32 groups; TransUNet
loads the same tensors into symmetric padding and one group per channel, and so do we unless the configuration says
otherwise. What the loaded networks then compute was compared with what the formats mean (tests), not with published
outputs.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from baselines.networks.transunet_names import GOOGLE, OURS, POSITIONS, STATE_DICTS, renamed
from baselines.networks.vit import resized_positions
from baselines.pretrained import CONFIG, WEIGHTS
from baselines.weight_files import read_tensors
from em_bench_eval.errors import InputError

if TYPE_CHECKING:
    from baselines.models.transunet import Encoder, TransUNetConfig

FORMATS = (
    "Google's R50+ViT-B_16.npz, timm's vit_base_r50_s16_224 (.safetensors, .pth), a .pth of TransUNet or RETINA, or a "
    "folder written by `em-bench pretrain` or `em-bench train --model transunet`"
)


@dataclass(frozen=True)
class EncoderWeights:
    """Tensors by their names in ``Encoder``; a file may hold only a part of them."""

    tensors: Mapping[str, Tensor]
    source: str  # format and file name, without the path
    heads: int | None = None  # where the file tells

    def architecture(self) -> dict[str, Any]:
        """Return the fields of ``TransUNetConfig`` that the shapes determine; ``InputError`` without a transformer."""
        blocks = {int(name.split(".")[2]) for name in self.tensors if name.startswith("vit.blocks.")}
        if not blocks or "vit.norm.weight" not in self.tensors:
            raise InputError(f"{self.source} holds no transformer", expected=FORMATS)
        fields: dict[str, Any] = {
            "hidden": len(self.tensors["vit.norm.weight"]),
            "layers": len(blocks),
            "mlp": len(self.tensors["vit.blocks.0.fc1.bias"]),
        }
        if self.heads is not None:
            fields["heads"] = self.heads
        if "trunk.root.weight" in self.tensors:
            units: dict[int, set[int]] = {}
            for name in self.tensors:
                if name.startswith("trunk.stages."):
                    stage, unit = map(int, name.split(".")[2:4])
                    units.setdefault(stage, set()).add(unit)
            fields["trunk_width"] = len(self.tensors["trunk.root.weight"])
            fields["trunk_units"] = tuple(len(units[stage]) for stage in sorted(units))
        return fields


def read_encoder_weights(path: str | os.PathLike[str]) -> EncoderWeights:
    """Read any of ``FORMATS``; raises ``InputError`` for anything else and for pickles that hold more than tensors."""
    place = Path(path)
    if place.is_dir():
        return _read_folder(place)
    if not place.is_file():
        raise InputError(f"there are no encoder weights {place}", found="no such file or folder", expected=FORMATS)
    if place.suffix == ".npz":
        return _read_google(place)
    state = {name.removeprefix("module."): tensor for name, tensor in read_tensors(place, FORMATS).items()}
    for format_, rules in STATE_DICTS.items():
        tensors = renamed(state, rules)
        if any(name.startswith("vit.") for name in tensors):
            return EncoderWeights(_fused(tensors, place), f"{format_} weights {place.name}")
    raise _unknown_names(place, state)


def load_into(encoder: Encoder, weights: EncoderWeights, config: TransUNetConfig) -> str:
    """Copy what ``config.transfer`` names, resizing the position embedding; return what was done, for the records."""
    own = encoder.state_dict()
    wanted = [name for name in own if config.transfer == "all_encoder" or name.startswith("vit.")]
    chosen = {name: weights.tensors[name].to(own[name].dtype) for name in wanted if name in weights.tensors}
    notes = []
    if POSITIONS in chosen:
        grid = math.isqrt(own[POSITIONS].shape[1])
        before = math.isqrt(chosen[POSITIONS].shape[1])
        chosen[POSITIONS] = resized_positions(chosen[POSITIONS], (grid, grid))
        if before != grid:
            notes.append(f"position embedding resized from {before} x {before} to {grid} x {grid}")
    if weights.heads not in (None, config.heads):
        raise _misfit(weights, [f"{weights.heads} attention heads"], [f"{config.heads} attention heads"])
    wrong = [name for name in wanted if name not in chosen or chosen[name].shape != own[name].shape]
    if wrong:
        raise _misfit(
            weights,
            [f"{n} {tuple(chosen[n].shape) if n in chosen else 'absent'}" for n in wrong[:4]],
            [f"{n} {tuple(own[n].shape)}" for n in wrong[:4]],
        )
    encoder.load_state_dict(chosen, strict=False)
    what = {"vit": "transformer blocks", "all_encoder": "trunk, embeddings and transformer blocks"}[config.transfer]
    return "; ".join([f"{what} from {weights.source} ({len(chosen)} tensors)", *notes])


def _misfit(weights: EncoderWeights, found: list[str], expected: list[str]) -> InputError:
    fields = ", ".join(f"{name} {value}" for name, value in weights.architecture().items())
    return InputError(
        f"{weights.source} does not fit the model",
        found="; ".join(found),
        expected="; ".join(expected),
        remedy=f"train a preset of the weights' architecture ({fields}): `retina` is 768 wide, `retina-192` 192, and "
        "`quick` and `smoke` take what `em-bench pretrain` wrote with the same --preset",
    )


def _read_google(path: Path) -> EncoderWeights:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError) as error:  # pickled arrays, or no zip
        raise InputError(f"{path} cannot be read", found=error, expected="an .npz of plain arrays") from error
    query = [array for name, array in arrays.items() if name.endswith("query/kernel")]
    tensors = {}
    for name, array in arrays.items():
        for ours, value in renamed({name: array}, GOOGLE).items():
            tensors[ours] = torch.from_numpy(np.ascontiguousarray(_from_google(ours, value), dtype=np.float32))
    if not query:
        raise _unknown_names(path, arrays)
    return EncoderWeights(_fused(tensors, path), f"Google weights {path.name}", heads=query[0].shape[1])


def _from_google(ours: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Bring one array to torch's layout: HWIO to OIHW, input x output to output x input, heads side by side."""
    if ours == POSITIONS:
        return array
    if not ours.endswith(".weight") or "norm" in ours:
        return array.reshape(-1)
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if ".attention.out." in ours:  # (heads, width of a head, outputs)
        return array.reshape(-1, array.shape[-1]).T
    return array.reshape(array.shape[0], -1).T  # (inputs, heads, width of a head) or (inputs, outputs)


def _fused(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Join query, key and value, and drop the class token's position."""
    fused = {name: value for name, value in tensors.items() if not re.search(r"\.(query|key|value)\.", name)}
    for name in tensors:
        if ".query." in name:
            parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
            missing = [part for part in parts if part not in tensors]
            if missing:
                raise InputError(f"{path.name} is incomplete", found=f"no {', '.join(missing)}", expected=FORMATS)
            fused[name.replace(".query.", ".qkv.")] = torch.cat([tensors[part] for part in parts])
    if POSITIONS in fused:
        count = fused[POSITIONS].shape[1]
        if math.isqrt(count) ** 2 != count and math.isqrt(count - 1) ** 2 == count - 1:
            fused[POSITIONS] = fused[POSITIONS][:, 1:]
    return fused


def _read_folder(folder: Path) -> EncoderWeights:
    if not (folder / WEIGHTS).is_file():
        raise InputError(
            f"{folder} holds no encoder weights",
            found=f"no {WEIGHTS}",
            expected=FORMATS,
            remedy="finish the pre-training: em-bench pretrain ... --resume",
        )
    state = read_tensors(folder / WEIGHTS, FORMATS)
    tensors = renamed(state, OURS)
    if not any(name.startswith("vit.") for name in tensors):
        raise _unknown_names(folder / WEIGHTS, state)
    heads = None
    if (folder / CONFIG).is_file():
        heads = json.loads((folder / CONFIG).read_text()).get("config", {}).get("heads")
    return EncoderWeights(tensors, f"em-bench weights {folder.resolve().name}", heads)


def _unknown_names(path: Path, names: Mapping[str, Any]) -> InputError:
    shown = ", ".join(list(names)[:4]) or "no tensors"
    return InputError(f"{path} is no TransUNet encoder", found=f"{len(names)} tensors: {shown}", expected=FORMATS)
