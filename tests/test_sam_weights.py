"""Weights of segment-anything and micro-SAM become the same network; what is none of them gets a clear message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sam_twin
import torch

from baselines.model import count_parameters
from baselines.models.sam import SMOKE, VIT_B, PromptBatch, Sam
from baselines.pretrained import load_pretrained
from baselines.sam.weights import (
    ARCHITECTURES,
    architecture_name,
    config_of,
    from_state_dict,
    load_sam,
    read_state_dict,
)
from em_bench_eval.errors import InputError

STATE = sam_twin.random_state()


@pytest.fixture(scope="module")
def model() -> Sam:
    return from_state_dict(STATE, "twin.pth")


def test_the_architecture_is_read_off_the_shapes(model: Sam) -> None:
    config = model.config
    assert (config.image_size, config.patch_size) == (sam_twin.IMAGE, sam_twin.PATCH)
    assert (config.encoder_width, config.encoder_depth) == (sam_twin.WIDTH, sam_twin.DEPTH)
    assert (config.encoder_heads, config.window) == (sam_twin.HEADS, sam_twin.WINDOW)
    assert config.global_layers == sam_twin.GLOBAL
    assert (config.width, config.decoder_depth, config.decoder_mlp) == (sam_twin.EMBED, 2, sam_twin.MLP)
    assert model.training_info == {"weights": "twin.pth", "architecture": "vit 32x3"}


def test_no_tensor_is_missing_and_none_is_left_over(model: Sam) -> None:
    # one table is there twice in transformers; loading is strict about everything else
    doubled = STATE["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"].numel()
    assert count_parameters(model) == sum(tensor.numel() for tensor in STATE.values()) + doubled


@torch.no_grad()
def test_embeddings_are_those_of_the_twin(model: Sam) -> None:
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    expected = sam_twin.encode(STATE, pixels)
    torch.testing.assert_close(model.network.get_image_embeddings(pixels), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("several", [True, False])
@pytest.mark.parametrize(("points", "box"), [(1, False), (5, False), (0, True), (1, True), (5, True)])
def test_answers_to_prompts_are_those_of_the_twin(model: Sam, several: bool, points: int, box: bool) -> None:
    rng = torch.Generator().manual_seed(points)
    gray = (torch.rand(48, 64, generator=rng) * 255).byte().numpy()
    embedded = model.embed(gray)
    xy = torch.rand(2, points, 2, generator=rng) * 40
    labels = (torch.arange(points) == 0).long().repeat(2, 1)
    boxes = torch.tensor([[3.0, 4.0, 30.0, 20.0], [10.0, 0.0, 63.0, 47.0]])
    batch = PromptBatch(xy if points else None, labels if points else None, boxes if box else None)
    masks, quality = model.decode(embedded, batch, several=several)
    for index in range(2):
        expected = sam_twin.decode(
            STATE,
            embedded.features,
            xy[index] if points else None,
            labels[index] if points else None,
            boxes[index] if box else None,
            several=several,
        )
        torch.testing.assert_close(masks[index], expected[0], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(quality[index], expected[1], rtol=1e-3, atol=1e-3)


def _same(a: Sam, b: Sam) -> bool:
    return a.config == b.config and all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"model_state": STATE, "decoder_state": {"decoder.weight": torch.zeros(1)}},
        {"model_state": {f"sam.{name}": tensor for name, tensor in STATE.items()}},
        {f"sam.{name}": tensor.half().float() for name, tensor in STATE.items()},
    ],
    ids=["segment-anything", "micro-SAM", "micro-SAM training", "prefix"],
)
def test_every_layout_of_the_file(tmp_path: Path, model: Sam, content: Any) -> None:
    torch.save(content, tmp_path / "sam.pth")
    loaded = load_sam(tmp_path / "sam.pth")
    assert loaded.config == model.config
    expected = model.state_dict()
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-3)


def test_own_checkpoint_and_transformers_folder(tmp_path: Path, model: Sam) -> None:
    model.save_pretrained(tmp_path / "own")
    assert _same(load_sam(tmp_path / "own"), model)
    assert isinstance(load_pretrained(tmp_path / "own"), Sam)
    model.network.save_pretrained(tmp_path / "hf")
    assert _same(load_sam(tmp_path / "hf"), model)


@torch.no_grad()
def test_published_architectures_are_recognised() -> None:
    for name, config in ARCHITECTURES.items():
        with torch.device("meta"):
            network = Sam(config).network
        back = {new: old for old, new in _table_by_hand(config.encoder_depth).items()}
        state = {back.get(key, key): tensor for key, tensor in network.state_dict().items() if key in back}
        found = config_of(state, "file")
        assert found == config
        assert architecture_name(found) == name


def _table_by_hand(depth: int) -> dict[str, str]:
    """The few tensors whose shapes decide, by both names."""
    names = {
        "image_encoder.patch_embed.proj.weight": "vision_encoder.patch_embed.projection.weight",
        "image_encoder.pos_embed": "vision_encoder.pos_embed",
        "prompt_encoder.no_mask_embed.weight": "prompt_encoder.no_mask_embed.weight",
        "prompt_encoder.mask_downscaling.3.weight": "prompt_encoder.mask_embed.conv2.weight",
    }
    for layer in range(depth):
        rest = "attn.rel_pos_h"
        names[f"image_encoder.blocks.{layer}.{rest}"] = f"vision_encoder.layers.{layer}.{rest}"
    for layer in range(2):
        for rest in ("self_attn.q_proj.weight", "mlp.lin1.weight"):
            name = f"mask_decoder.transformer.layers.{layer}.{rest}"
            names[name] = name
    return names


class _Code:
    """Something that only a pickle that runs code could restore."""


def test_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"model_state": STATE, "init": _Code()}, path)
    with pytest.raises(InputError, match="could run code"):
        load_sam(path)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(InputError, match="cannot be read"):
        load_sam(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="cannot be read"):
        load_sam(path)
    torch.save([1, 2], path)
    with pytest.raises(InputError, match="holds no weights"):
        load_sam(path)
    torch.save({"image_encoder.layers.0.0.conv1.c.weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="MobileSAM"):
        load_sam(path)
    torch.save({"conv1.weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match="tensors of a SAM"):
        load_sam(path)
    with pytest.raises(InputError, match="there is no file"):
        load_sam(tmp_path / "absent.pth")
    with pytest.raises(InputError, match="not on the Hub"):
        load_sam("nobody/sam-v1.2")


def test_tensors_that_do_not_fit_are_named() -> None:
    name = "mask_decoder.iou_token.weight"
    with pytest.raises(InputError, match=r"mask_decoder\.iou_token\.weight absent"):
        from_state_dict({key: tensor for key, tensor in STATE.items() if key != name}, "file")
    with pytest.raises(InputError, match=r"layers.0.attn.lora_a"):
        from_state_dict({**STATE, "image_encoder.blocks.0.attn.lora_a": torch.zeros(2)}, "file")


def test_safetensors_with_the_same_names(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(STATE, tmp_path / "sam.safetensors")
    assert read_state_dict(tmp_path / "sam.safetensors").keys() == STATE.keys()


def test_a_checkpoint_of_another_model(tmp_path: Path) -> None:
    from baselines.model import load_model

    unet = load_model("unet")
    unet.build(unet.preset("smoke").config).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="another model"):
        load_sam(tmp_path)


def test_defaults_are_vit_b() -> None:
    assert ARCHITECTURES["vit_b"] == VIT_B
    assert SMOKE.image_size == 64
