"""Weights of Segment Anything and micro-SAM: their .pth files, and transformers' own folders, to the baseline ``sam``.

Files hold a state dict with segment-anything's tensor names, on its own, under ``model_state`` (micro-SAM) or behind a
prefix ``sam.`` (micro-SAM's training). Pickles are read with ``weights_only=True``, which runs no code. The shapes of
the tensors say which architecture it is; only the number of the mask decoder's heads is not in them, and follows the
published 32 channels a head. The table below is held against an independent network with segment-anything's names
(tests/sam_twin.py); no published weights could be loaded where this was written.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from baselines.models.sam import VIT_B, VIT_H, VIT_L, Sam, SamBaselineConfig
from baselines.pretrained import CONFIG, PICKLES, WEIGHTS, load_pretrained
from baselines.weight_files import read_tensors
from em_bench_eval.errors import InputError

EXPECTED = (
    "a .pth of segment-anything (sam_vit_b_01ec64.pth) or micro-SAM (vit_b_em_organelles), a checkpoint folder of "
    "em-bench sam --convert, or a SAM of transformers (facebook/sam-vit-base)"
)
ARCHITECTURES: Mapping[str, SamBaselineConfig] = {"vit_b": VIT_B, "vit_l": VIT_L, "vit_h": VIT_H}
GAUSSIAN = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"

# segment-anything -> transformers, on whole names; what is not listed has the same name in both
RENAMED: tuple[tuple[str, str], ...] = (
    (r"image_encoder\.patch_embed\.proj\.(.*)", r"vision_encoder.patch_embed.projection.\1"),
    (r"image_encoder\.blocks\.(\d+)\.norm([12])\.(.*)", r"vision_encoder.layers.\1.layer_norm\2.\3"),
    (r"image_encoder\.blocks\.(.*)", r"vision_encoder.layers.\1"),
    (r"image_encoder\.neck\.0\.(.*)", r"vision_encoder.neck.conv1.\1"),
    (r"image_encoder\.neck\.1\.(.*)", r"vision_encoder.neck.layer_norm1.\1"),
    (r"image_encoder\.neck\.2\.(.*)", r"vision_encoder.neck.conv2.\1"),
    (r"image_encoder\.neck\.3\.(.*)", r"vision_encoder.neck.layer_norm2.\1"),
    (r"image_encoder\.(.*)", r"vision_encoder.\1"),
    (re.escape(GAUSSIAN), r"prompt_encoder.shared_embedding.positional_embedding"),
    (r"prompt_encoder\.point_embeddings\.(.*)", r"prompt_encoder.point_embed.\1"),
    (r"prompt_encoder\.mask_downscaling\.0\.(.*)", r"prompt_encoder.mask_embed.conv1.\1"),
    (r"prompt_encoder\.mask_downscaling\.1\.(.*)", r"prompt_encoder.mask_embed.layer_norm1.\1"),
    (r"prompt_encoder\.mask_downscaling\.3\.(.*)", r"prompt_encoder.mask_embed.conv2.\1"),
    (r"prompt_encoder\.mask_downscaling\.4\.(.*)", r"prompt_encoder.mask_embed.layer_norm2.\1"),
    (r"prompt_encoder\.mask_downscaling\.6\.(.*)", r"prompt_encoder.mask_embed.conv3.\1"),
    (
        r"mask_decoder\.transformer\.layers\.(\d+)\.norm([1-4])\.(.*)",
        r"mask_decoder.transformer.layers.\1.layer_norm\2.\3",
    ),
    (r"mask_decoder\.transformer\.norm_final_attn\.(.*)", r"mask_decoder.transformer.layer_norm_final_attn.\1"),
    (r"mask_decoder\.output_upscaling\.0\.(.*)", r"mask_decoder.upscale_conv1.\1"),
    (r"mask_decoder\.output_upscaling\.1\.(.*)", r"mask_decoder.upscale_layer_norm.\1"),
    (r"mask_decoder\.output_upscaling\.3\.(.*)", r"mask_decoder.upscale_conv2.\1"),
    (r"(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.0\.(.*)", r"\1.proj_in.\2"),
    (r"(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.1\.(.*)", r"\1.layers.0.\2"),
    (r"(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.2\.(.*)", r"\1.proj_out.\2"),
)


def load_sam(weights: str | os.PathLike[str]) -> Sam:
    """Load SAM or micro-SAM weights: a .pth file, our own checkpoint folder, or a folder or Hub name of transformers.

    Raises ``InputError`` for anything else, and for files whose tensors are not those of a SAM.
    """
    path = Path(weights)
    if path.is_file():
        return from_state_dict(read_state_dict(path), path.name)
    name = os.fspath(weights)
    if not path.is_dir() and (path.suffix in (*PICKLES, ".safetensors") or name.count("/") != 1):
        raise InputError(f"there is no file {path}", expected=EXPECTED)
    if _model_type(path if path.is_dir() else _downloaded_config(name)) == "sam":
        return _from_transformers(name)
    model = load_pretrained(name, expected=Sam)
    assert isinstance(model, Sam)
    return model


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a .pth (or .pt, .safetensors) to a flat state dict with segment-anything's names."""
    export = "export the model with micro_sam.util.export_custom_sam_model, which writes tensors only"
    tensors = read_tensors(path, EXPECTED, ("model_state",), convert=export)
    if all(name.startswith("sam.") for name in tensors):
        tensors = {name[len("sam.") :]: value for name, value in tensors.items()}
    return tensors


def from_state_dict(tensors: Mapping[str, Tensor], where: str) -> Sam:
    """Build the baseline from tensors with segment-anything's names; ``where`` they are from, for messages."""
    config = config_of(tensors, where)
    model = Sam(config)
    _load(model, converted(tensors), where)
    model.training_info = {"weights": where, "architecture": architecture_name(config)}
    return model.eval()


def converted(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename segment-anything's tensors to those of ``transformers.SamModel``."""
    renamed = {new_name(name): tensor for name, tensor in tensors.items()}
    if GAUSSIAN in tensors:  # one table there, two of the same values here
        renamed["shared_image_embedding.positional_embedding"] = tensors[GAUSSIAN].clone()
    return renamed


def new_name(name: str) -> str:
    """Name in transformers of a tensor of segment-anything."""
    for pattern, replacement in RENAMED:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, replacement, name)
    return name


def config_of(tensors: Mapping[str, Tensor], where: str) -> SamBaselineConfig:
    """Read the architecture off the shapes of segment-anything's tensors; ``InputError`` if they are no SAM's."""
    if any(name.startswith("image_encoder.layers.") for name in tensors):
        raise InputError(
            f"{where} is a MobileSAM (vit_t), which is another architecture",
            found="image_encoder.layers.*",
            expected=EXPECTED,
            remedy="use the vit_b or vit_l weights, or micro-SAM itself (the extra `sam`)",
        )
    try:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        width, _, patch, _ = shapes["image_encoder.patch_embed.proj.weight"]
        tokens = shapes["image_encoder.pos_embed"][1]
        depth = _count(shapes, r"image_encoder\.blocks\.(\d+)\..*")
        reach = [shapes[f"image_encoder.blocks.{layer}.attn.rel_pos_h"] for layer in range(depth)]
        whole = 2 * tokens - 1
        embedding = shapes["prompt_encoder.no_mask_embed.weight"][1]
        inner = shapes["mask_decoder.transformer.layers.0.self_attn.q_proj.weight"][0]
        known = next((c for c in ARCHITECTURES.values() if (c.encoder_width, c.encoder_depth) == (width, depth)), VIT_B)
        return replace(
            known,
            image_size=tokens * patch,
            patch_size=patch,
            encoder_width=width,
            encoder_depth=depth,
            encoder_heads=width // reach[0][1],
            global_layers=tuple(layer for layer in range(depth) if reach[layer][0] == whole),
            window=(min(length for length, _ in reach) + 1) // 2,
            width=embedding,
            decoder_depth=_count(shapes, r"mask_decoder\.transformer\.layers\.(\d+)\..*"),
            # nothing in the tensors says how many heads share a width: 32 channels each, as published
            decoder_heads=max(2, inner // 32),
            decoder_mlp=shapes["mask_decoder.transformer.layers.0.mlp.lin1.weight"][0],
            mask_channels=shapes["prompt_encoder.mask_downscaling.3.weight"][0],
        )
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"{where} does not hold the tensors of a SAM",
            found=f"{error} is missing or has another shape; there are {', '.join(sorted(tensors)[:3])}, ...",
            expected=EXPECTED,
        ) from error


def architecture_name(config: SamBaselineConfig) -> str:
    """``vit_b``, ``vit_l``, ``vit_h``, or ``vit <width>x<depth>``."""
    for name, known in ARCHITECTURES.items():
        if (config.encoder_width, config.encoder_depth) == (known.encoder_width, known.encoder_depth):
            return name
    return f"vit {config.encoder_width}x{config.encoder_depth}"


def _count(shapes: Mapping[str, Any], pattern: str) -> int:
    return 1 + max(int(match[1]) for name in shapes if (match := re.fullmatch(pattern, name)))


def _load(model: Sam, weights: Mapping[str, Tensor], where: str) -> None:
    needed = {name: tuple(tensor.shape) for name, tensor in model.network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    wrong = sorted(n for n in needed.keys() | found.keys() if needed.get(n, "absent") != found.get(n, "absent"))
    if wrong:
        raise InputError(
            f"{where} is not a plain SAM: {len(wrong)} tensors differ",
            found="; ".join(f"{name} {found.get(name, 'absent')}" for name in wrong[:4]),
            expected="; ".join(f"{name} {needed.get(name, 'absent')}" for name in wrong[:4]),
            remedy="adapters (LoRA) must be merged into the weights first",
        )
    model.network.load_state_dict({name: tensor.float() for name, tensor in weights.items()})


def _model_type(folder: Path) -> str | None:
    """What transformers calls the model of a folder; None for our own checkpoints and anything else."""
    try:
        found = json.loads((folder / CONFIG).read_text()).get("model_type")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def _downloaded_config(repo_id: str) -> Path:
    """Fetch config.json of a Hub repository; returns the folder that it is in."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(repo_id, CONFIG)).parent
    except (HfHubHTTPError, HFValidationError, OSError) as error:  # absent, private, offline, or not a possible name
        raise InputError(
            f"there are no weights {repo_id!r}",
            found=f"no such file or folder, and not on the Hub ({type(error).__name__})",
            expected=EXPECTED,
        ) from error


def _from_transformers(source: str) -> Sam:
    import transformers

    try:
        network = transformers.SamModel.from_pretrained(source, use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"there are no SAM weights {source}",
            found=str(error).splitlines()[0],
            expected=f"{EXPECTED} with {WEIGHTS}",
        ) from error
    vision, decoder = network.config.vision_config, network.config.mask_decoder_config
    config = SamBaselineConfig(
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        encoder_width=vision.hidden_size,
        encoder_depth=vision.num_hidden_layers,
        encoder_heads=vision.num_attention_heads,
        global_layers=tuple(vision.global_attn_indexes),
        window=vision.window_size,
        width=decoder.hidden_size,
        decoder_depth=decoder.num_hidden_layers,
        decoder_heads=decoder.num_attention_heads,
        decoder_mlp=decoder.mlp_dim,
        mask_channels=network.config.prompt_encoder_config.mask_input_channels,
    )
    model = Sam(config)
    _load(model, network.state_dict(), source)
    model.training_info = {"weights": Path(source).name, "architecture": architecture_name(config)}
    return model.eval()
