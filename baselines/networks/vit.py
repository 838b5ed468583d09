"""A vision transformer without class token: pre-norm blocks and a learned position embedding of any grid.

Dosovitskiy et al. 2021 (An Image is Worth 16x16 Words); dropout and initial values as in TransUNet.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6


class Attention(nn.Module):
    """Multi-head self-attention; ``qkv`` holds query, key and value one after the other, each head by head."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.out = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, tokens, hidden) to the same shape."""
        batch, tokens, hidden = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, hidden // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        mixed: Tensor = self.out(y.transpose(1, 2).reshape(batch, tokens, hidden))
        return mixed


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); dropout inside the perceptron only."""

    def __init__(self, hidden: int, heads: int, mlp: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(hidden, eps=NORM_EPS), Attention(hidden, heads)
        self.norm2 = nn.LayerNorm(hidden, eps=NORM_EPS)
        self.fc1, self.fc2 = nn.Linear(hidden, mlp), nn.Linear(mlp, hidden)
        self.dropout = dropout
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, tokens, hidden) to the same shape."""
        x = x + self.attention(self.norm1(x))
        y = F.dropout(F.gelu(self.fc1(self.norm2(x))), self.dropout, self.training)
        return x + F.dropout(self.fc2(y), self.dropout, self.training)


class Transformer(nn.Module):
    """The blocks and the last norm: what RETINA calls the transformer layers, transfers and freezes."""

    def __init__(self, hidden: int, layers: int, heads: int, mlp: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(hidden, heads, mlp, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(hidden, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, tokens, hidden) to the same shape."""
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.norm(x)
        return normed


class Embedding(nn.Module):
    """One token per pixel of a feature map, and where it is; the embedding of positions starts at zero."""

    def __init__(self, channels: int, hidden: int, grid: int, dropout: float) -> None:
        super().__init__()
        self.patch = nn.Conv2d(channels, hidden, 1)
        self.positions = nn.Parameter(torch.zeros(1, grid * grid, hidden))
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, h, w) to (N, h * w, hidden)."""
        positions = resized_positions(self.positions, (x.shape[-2], x.shape[-1]))
        tokens = self.patch(x).flatten(2).transpose(1, 2) + positions
        return F.dropout(tokens, self.dropout, self.training)


def resized_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Interpolate (1, n * n, hidden) linearly to (1, h * w, hidden), the corners staying where they are.

    So Google's and TransUNet's code resizes the embedding to another size of image, with ``scipy.ndimage.zoom``.
    """
    edge = math.isqrt(positions.shape[1])
    if (edge, edge) == grid:
        return positions
    plane = positions.reshape(1, edge, edge, -1).permute(0, 3, 1, 2)
    plane = F.interpolate(plane.float(), size=grid, mode="bilinear", align_corners=True)
    return plane.flatten(2).transpose(1, 2).to(positions.dtype)
