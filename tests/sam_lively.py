"""What the tests of the extra `sam` share: random weights that answer every prompt differently, and comparisons."""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from baselines.masks import Mask
from baselines.models.sam import PromptBatch, Sam, SamBaselineConfig
from baselines.sam.engines import ENGINES
from baselines.sam.grid import point_grid
from baselines.sam.weights import from_state_dict

State = dict[str, Tensor]
Gray = npt.NDArray[np.uint8]


def broken(engine: str) -> str:
    """Why an engine's packages cannot be imported, or nothing."""
    for package in ENGINES[engine].packages:
        try:
            import_module(package)
        except (ImportError, RuntimeError, OSError) as error:
            return f"no {package}, run scripts/test_sam.sh: {str(error).splitlines()[0]}"
    return ""


needs_sam = pytest.mark.skipif(bool(reason := broken("segment-anything")), reason=reason)
needs_micro_sam = pytest.mark.skipif(bool(reason := broken("micro-sam-ais")), reason=reason)


def small(image_size: int = 128, patch_size: int = 8) -> SamBaselineConfig:
    return SamBaselineConfig(
        image_size=image_size,
        patch_size=patch_size,
        encoder_width=32,
        encoder_depth=3,
        encoder_heads=2,
        global_layers=(1,),
        window=5,  # does not divide the 16 patches: the encoder pads
        width=64,
        decoder_heads=2,
        decoder_mlp=32,
        mask_channels=4,
    )


def lively_state(config: SamBaselineConfig, share: float = 1 / 12) -> State:
    """Random weights, by segment-anything's own names, whose masks differ from point to point.

    With weights that are merely random every point gets the same mask. Here positions vary fast and steer the decoder,
    logits are shifted so that a mask covers about ``share`` of the image, and the predicted IoU is spread around 0.7.
    """
    from baselines.sam.segment_anything_runner import package_network

    generator = torch.Generator().manual_seed(3)
    shapes = {name: tensor.shape for name, tensor in package_network(config).state_dict().items()}
    state = {name: 0.5 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    state["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] *= 10
    for name, tensor in state.items():
        if not name.startswith("mask_decoder."):
            continue
        if "norm" in name or "upscaling.1" in name:
            tensor.fill_(float(name.endswith("weight")))
        elif name.endswith("bias"):
            tensor.zero_()
        elif "iou_token" in name or "mask_tokens" in name:
            tensor *= 0.3
        elif ".transformer." in name:
            tensor *= 1.5
    upscaling, answers = "mask_decoder.output_upscaling.3", "mask_decoder.output_hypernetworks_mlps"
    state[f"{upscaling}.weight"][:, 0] = 0  # one channel is 10 everywhere: the answers' bias there shifts all logits
    state[f"{upscaling}.bias"][0] = 10
    for mask in range(4):
        state[f"{answers}.{mask}.layers.2.weight"][0] = 0
    core = from_state_dict(state, "small")
    embedded, prompts = core.embed(noise((config.image_size,) * 2)), grid_prompts(config)
    (alone, _), (three, predicted) = (core.decode(embedded, prompts, several=several) for several in (False, True))
    for mask, logits in enumerate((alone[:, 0], three[:, 0], three[:, 1], three[:, 2])):
        factor = 4 / logits.std()
        state[f"{answers}.{mask}.layers.2.weight"] *= factor
        high = torch.quantile(logits.flatten()[::7], 1 - share)
        state[f"{answers}.{mask}.layers.2.bias"][0] = -factor * high / 10
    factor = 0.15 / predicted.std()
    state["mask_decoder.iou_prediction_head.layers.2.weight"] *= factor
    state["mask_decoder.iou_prediction_head.layers.2.bias"] += 0.7 - factor * predicted.mean()
    return state


def noise(shape: tuple[int, int], seed: int = 0) -> Gray:
    gray: Gray = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    gray.flat[0], gray.flat[1] = 0, 255  # micro-SAM stretches what does not reach both ends
    return gray


def grid_prompts(config: SamBaselineConfig) -> PromptBatch:
    return PromptBatch(point_grid(8)[:, None] * config.image_size, torch.ones(64, 1, dtype=torch.int64))


def random_decoder(core: Sam) -> State:
    """A random decoder of micro-SAM, by its own names, whose maps go from 0 to 1."""
    from baselines.sam.segment_anything_runner import SegmentAnything

    package = import_module("micro_sam.instance_segmentation")
    torch.manual_seed(0)
    unetr = package.get_unetr(SegmentAnything(core).network.image_encoder, None, "cpu")
    state = {name: tensor for name, tensor in unetr.state_dict().items() if not name.startswith("encoder.")}
    state["out_conv.weight"] *= 20
    state["out_conv.bias"] *= 0
    return state


def large_sam() -> State:
    """A network of 1024 pixels, which is what micro-SAM's prompts are made for."""
    return lively_state(small(1024, 64), share=0.3)


def key(mask: Mask) -> tuple[Any, ...]:
    return mask.corner, mask.mask.shape, mask.mask.tobytes()


def assert_same_masks(found: list[Mask], expected: list[Mask]) -> None:
    """The same masks as often, with the same scores; only equal scores may come in another order."""
    assert Counter(map(key, found)) == Counter(map(key, expected))
    scores = [sorted((key(mask), mask.score) for mask in masks) for masks in (found, expected)]
    np.testing.assert_allclose([s for _, s in scores[0]], [s for _, s in scores[1]], atol=1e-4)
