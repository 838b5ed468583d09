"""Segment Anything as plain functions of a state dict with segment-anything's names, written from the papers' and the
package's description of the architecture: what the conversion to transformers is tested against."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
IMAGE, PATCH, WIDTH, DEPTH, HEADS, WINDOW, GLOBAL = 64, 8, 32, 3, 2, 4, (1,)
EMBED, MLP, DECODER_HEADS, MASK = 16, 24, 2, 4


def random_state(seed: int = 0) -> State:
    """Every tensor of a small SAM, by segment-anything's names, all of them random."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, outputs: int, inputs: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (outputs, inputs), (outputs,)

    def norm(name: str, size: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (size,), (size,)

    grid = IMAGE // PATCH
    shapes["image_encoder.pos_embed"] = (1, grid, grid, WIDTH)
    shapes["image_encoder.patch_embed.proj.weight"] = (WIDTH, 3, PATCH, PATCH)
    shapes["image_encoder.patch_embed.proj.bias"] = (WIDTH,)
    for layer in range(DEPTH):
        block = f"image_encoder.blocks.{layer}"
        reach = 2 * (grid if layer in GLOBAL else WINDOW) - 1
        shapes[f"{block}.attn.rel_pos_h"] = shapes[f"{block}.attn.rel_pos_w"] = (reach, WIDTH // HEADS)
        norm(f"{block}.norm1", WIDTH)
        norm(f"{block}.norm2", WIDTH)
        linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
        linear(f"{block}.attn.proj", WIDTH, WIDTH)
        linear(f"{block}.mlp.lin1", 4 * WIDTH, WIDTH)
        linear(f"{block}.mlp.lin2", WIDTH, 4 * WIDTH)
    shapes["image_encoder.neck.0.weight"] = (EMBED, WIDTH, 1, 1)
    norm("image_encoder.neck.1", EMBED)
    shapes["image_encoder.neck.2.weight"] = (EMBED, EMBED, 3, 3)
    norm("image_encoder.neck.3", EMBED)
    shapes["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"] = (2, EMBED // 2)
    for name in (*(f"point_embeddings.{k}" for k in range(4)), "not_a_point_embed", "no_mask_embed"):
        shapes[f"prompt_encoder.{name}.weight"] = (1, EMBED)
    for name, shape in {"0": (MASK // 4, 1, 2, 2), "3": (MASK, MASK // 4, 2, 2), "6": (EMBED, MASK, 1, 1)}.items():
        shapes[f"prompt_encoder.mask_downscaling.{name}.weight"] = shape
        shapes[f"prompt_encoder.mask_downscaling.{name}.bias"] = shape[:1]
    norm("prompt_encoder.mask_downscaling.1", MASK // 4)
    norm("prompt_encoder.mask_downscaling.4", MASK)
    shapes["mask_decoder.iou_token.weight"], shapes["mask_decoder.mask_tokens.weight"] = (1, EMBED), (4, EMBED)
    attentions = [("mask_decoder.transformer.final_attn_token_to_image", 2)]
    for layer in range(2):
        block = f"mask_decoder.transformer.layers.{layer}"
        attentions += [(f"{block}.self_attn", 1)]
        attentions += [(f"{block}.cross_attn_{way}", 2) for way in ("token_to_image", "image_to_token")]
        for number in range(1, 5):
            norm(f"{block}.norm{number}", EMBED)
        linear(f"{block}.mlp.lin1", MLP, EMBED)
        linear(f"{block}.mlp.lin2", EMBED, MLP)
    norm("mask_decoder.transformer.norm_final_attn", EMBED)
    for name, less in attentions:
        for part in "qkv":
            linear(f"{name}.{part}_proj", EMBED // less, EMBED)
        linear(f"{name}.out_proj", EMBED, EMBED // less)
    for name, inputs, outputs in (("0", EMBED, EMBED // 4), ("3", EMBED // 4, EMBED // 8)):
        shapes[f"mask_decoder.output_upscaling.{name}.weight"] = (inputs, outputs, 2, 2)
        shapes[f"mask_decoder.output_upscaling.{name}.bias"] = (outputs,)
    norm("mask_decoder.output_upscaling.1", EMBED // 4)
    for name, outputs in (
        *((f"output_hypernetworks_mlps.{k}", EMBED // 8) for k in range(4)),
        ("iou_prediction_head", 4),
    ):
        linear(f"mask_decoder.{name}.layers.0", EMBED, EMBED)
        linear(f"mask_decoder.{name}.layers.1", EMBED, EMBED)
        linear(f"mask_decoder.{name}.layers.2", outputs, EMBED)
    return {name: 0.5 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def _linear(t: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, t[f"{name}.weight"], t[f"{name}.bias"])


def _norm(t: State, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], t[f"{name}.weight"], t[f"{name}.bias"], eps)


def _norm2d(t: State, name: str, x: Tensor) -> Tensor:
    return _norm(t, name, x.permute(0, 2, 3, 1), 1e-6).permute(0, 3, 1, 2)


def encode(t: State, pixels: Tensor) -> Tensor:
    """(1, 3, IMAGE, IMAGE) to (1, EMBED, grid, grid)."""
    e = "image_encoder"
    x = F.conv2d(pixels, t[f"{e}.patch_embed.proj.weight"], t[f"{e}.patch_embed.proj.bias"], stride=PATCH)
    x = x.permute(0, 2, 3, 1) + t[f"{e}.pos_embed"]
    for layer in range(DEPTH):
        block = f"{e}.blocks.{layer}"
        y = _norm(t, f"{block}.norm1", x, 1e-6)
        size = y.shape[1] if layer in GLOBAL else WINDOW
        out = torch.zeros_like(y)
        for row in range(0, y.shape[1], size):  # windows one by one; they fit exactly
            for column in range(0, y.shape[2], size):
                window = y[:, row : row + size, column : column + size]
                out[:, row : row + size, column : column + size] = _attend_window(t, f"{block}.attn", window)
        x = x + out
        hidden = F.gelu(_linear(t, f"{block}.mlp.lin1", _norm(t, f"{block}.norm2", x, 1e-6)))
        x = x + _linear(t, f"{block}.mlp.lin2", hidden)
    x = F.conv2d(x.permute(0, 3, 1, 2), t[f"{e}.neck.0.weight"])
    x = F.conv2d(_norm2d(t, f"{e}.neck.1", x), t[f"{e}.neck.2.weight"], padding=1)
    return _norm2d(t, f"{e}.neck.3", x)


def _attend_window(t: State, name: str, x: Tensor) -> Tensor:
    size, channels = x.shape[1], WIDTH // HEADS
    tokens = _linear(t, f"{name}.qkv", x).reshape(size * size, 3, HEADS, channels)
    place = torch.arange(size)
    apart = place[:, None] - place[None, :] + size - 1
    along_y, along_x = t[f"{name}.rel_pos_h"][apart], t[f"{name}.rel_pos_w"][apart]  # (size, size, channels)
    heads = []
    for head in range(HEADS):
        q, k, v = (tokens[:, part, head] for part in range(3))
        scores = (q @ k.T / math.sqrt(channels)).reshape(size, size, size, size)
        square = q.reshape(size, size, channels)
        scores = scores + torch.einsum("yxc,ykc->yxk", square, along_y)[..., None]
        scores = scores + torch.einsum("yxc,xkc->yxk", square, along_x)[..., None, :]
        heads.append(scores.reshape(size * size, size * size).softmax(-1) @ v)
    return _linear(t, f"{name}.proj", torch.cat(heads, dim=-1)).reshape(x.shape)


def _positions(t: State, xy: Tensor) -> Tensor:
    """Encode positions in 0..1."""
    angles = 2 * math.pi * ((2 * xy - 1) @ t["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"])
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def decode(
    t: State, features: Tensor, points: Tensor | None, labels: Tensor | None, box: Tensor | None, *, several: bool
) -> tuple[Tensor, Tensor]:
    """One prompt: points (k, 2) and box (4,) in pixels of the square; masks (m, 4 grid, 4 grid) and IoU (m,)."""
    p = "prompt_encoder"
    prompts = []
    if points is not None and labels is not None:
        for xy, label in zip(points, labels.tolist(), strict=True):
            prompts.append(_positions(t, (xy + 0.5) / IMAGE) + t[f"{p}.point_embeddings.{label}.weight"][0])
        if box is None:
            prompts.append(t[f"{p}.not_a_point_embed.weight"][0])
    if box is not None:
        for corner, xy in enumerate(box.reshape(2, 2)):
            prompts.append(_positions(t, (xy + 0.5) / IMAGE) + t[f"{p}.point_embeddings.{2 + corner}.weight"][0])
    d = "mask_decoder"
    tokens = torch.cat([t[f"{d}.iou_token.weight"], t[f"{d}.mask_tokens.weight"], torch.stack(prompts)])
    grid = features.shape[-1]
    line = (torch.arange(grid) + 0.5) / grid
    y, x = torch.meshgrid(line, line, indexing="ij")
    where = _positions(t, torch.stack([x, y], -1)).reshape(-1, EMBED)
    keys = (features[0] + t[f"{p}.no_mask_embed.weight"][0][:, None, None]).reshape(EMBED, -1).T
    queries = tokens
    for layer in range(2):
        block = f"{d}.transformer.layers.{layer}"
        if layer == 0:
            queries = _attend(t, f"{block}.self_attn", queries, queries, queries)
        else:
            queries = queries + _attend(t, f"{block}.self_attn", queries + tokens, queries + tokens, queries)
        queries = _norm(t, f"{block}.norm1", queries, 1e-5)
        queries = queries + _attend(t, f"{block}.cross_attn_token_to_image", queries + tokens, keys + where, keys)
        queries = _norm(t, f"{block}.norm2", queries, 1e-5)
        queries = queries + _linear(t, f"{block}.mlp.lin2", F.relu(_linear(t, f"{block}.mlp.lin1", queries)))
        queries = _norm(t, f"{block}.norm3", queries, 1e-5)
        keys = keys + _attend(t, f"{block}.cross_attn_image_to_token", keys + where, queries + tokens, queries)
        keys = _norm(t, f"{block}.norm4", keys, 1e-5)
    final = f"{d}.transformer.final_attn_token_to_image"
    queries = queries + _attend(t, final, queries + tokens, keys + where, keys)
    queries = _norm(t, f"{d}.transformer.norm_final_attn", queries, 1e-5)
    up = keys.T.reshape(1, EMBED, grid, grid)
    names = [f"{d}.output_upscaling.{k}" for k in (0, 1, 3)]
    up = F.conv_transpose2d(up, t[f"{names[0]}.weight"], t[f"{names[0]}.bias"], stride=2)
    up = F.conv_transpose2d(F.gelu(_norm2d(t, names[1], up)), t[f"{names[2]}.weight"], t[f"{names[2]}.bias"], stride=2)
    up = F.gelu(up)[0]
    masks = [
        torch.einsum("c,cyx->yx", _mlp(t, f"{d}.output_hypernetworks_mlps.{k}", queries[1 + k]), up) for k in range(4)
    ]
    quality = _mlp(t, f"{d}.iou_prediction_head", queries[0])
    chosen = slice(1, 4) if several else slice(0, 1)
    return torch.stack(masks)[chosen], quality[chosen]


def _mlp(t: State, name: str, x: Tensor) -> Tensor:
    for layer in range(2):
        x = F.relu(_linear(t, f"{name}.layers.{layer}", x))
    return _linear(t, f"{name}.layers.2", x)


def _attend(t: State, name: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (_linear(t, f"{name}.{part}_proj", x) for part, x in (("q", q), ("k", k), ("v", v)))
    channels = q.shape[-1] // DECODER_HEADS
    heads = []
    for head in range(DECODER_HEADS):
        part = slice(head * channels, (head + 1) * channels)
        heads.append((q[:, part] @ k[:, part].T / math.sqrt(channels)).softmax(-1) @ v[:, part])
    return _linear(t, f"{name}.out_proj", torch.cat(heads, dim=-1))
