"""The convolutional trunk of R50-ViT-B/16: three stages of a ResNet with weight standardisation and group norm.

Kolesnikov et al. 2020 (Big Transfer) and Dosovitskiy et al. 2021 (ViT, hybrid). TransUNet calls its unit
pre-activation, but it is not: the last ReLU follows the addition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Padding = Literal["torch", "tf_same"]
NORM_EPS, PROJECTION_EPS, STANDARDISATION_EPS = 1e-6, 1e-5, 1e-5  # as TransUNet has them
EXPANSION = 4  # output channels of a unit, in channels of its 3x3 convolution


class StandardisedConv(nn.Conv2d):
    """Convolution without bias whose kernels have mean 0 and variance 1 for each output channel.

    ``torch`` pads (k - 1) / 2 on each side. ``tf_same`` pads as TensorFlow and JAX do, where Google's weights come
    from: with stride 2 and even sizes one pixel less above and on the left than below and on the right.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: Padding = "torch") -> None:
        symmetric = kernel // 2 if padding == "torch" else 0
        super().__init__(inputs, outputs, kernel, stride=stride, padding=symmetric, bias=False)
        self.same = padding == "tf_same"

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, ceil(H / stride), ceil(W / stride))."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, correction=0)
        weight = (self.weight - mean) * torch.rsqrt(variance + STANDARDISATION_EPS)
        if self.same:
            x = same_padded(x, self.kernel_size[0], self.stride[0])
        return F.conv2d(x, weight, stride=self.stride, padding=self.padding)


def same_padded(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Pad (N, C, H, W) with zeros as ``padding="SAME"`` of TensorFlow does; the odd pixel goes below and right."""
    pads: list[int] = []
    for size in (x.shape[-1], x.shape[-2]):
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads) if any(pads) else x


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=NORM_EPS)


class Unit(nn.Module):
    """Bottleneck: 1x1, 3x3 with the stride, 1x1, each normalised; added to the input or its projection; ReLU."""

    def __init__(self, inputs: int, middle: int, stride: int, padding: Padding, projection_groups: int) -> None:
        super().__init__()
        outputs = EXPANSION * middle
        self.conv1, self.norm1 = StandardisedConv(inputs, middle, 1, 1, padding), _norm(middle)
        self.conv2, self.norm2 = StandardisedConv(middle, middle, 3, stride, padding), _norm(middle)
        self.conv3, self.norm3 = StandardisedConv(middle, outputs, 1, 1, padding), _norm(outputs)
        self.project: nn.Module | None = None
        self.project_norm: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.project = StandardisedConv(inputs, outputs, 1, stride, padding)
            self.project_norm = nn.GroupNorm(projection_groups or outputs, outputs, eps=PROJECTION_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, 4 * middle, H / stride, W / stride)."""
        short = x if self.project is None or self.project_norm is None else self.project_norm(self.project(x))
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(short + self.norm3(self.conv3(y)))


class HybridTrunk(nn.Module):
    """Root and stages; 11.89 M parameters with width 64 and units (3, 4, 9).

    ``projection_groups``: groups of the norm on a unit's projection, 0 for one per channel as in TransUNet; Google's
    weights were trained with 32.
    """

    def __init__(
        self,
        width: int = 64,
        units: Sequence[int] = (3, 4, 9),
        padding: Padding = "torch",
        projection_groups: int = 0,
    ) -> None:
        super().__init__()
        self.padding = padding
        self.root, self.root_norm = StandardisedConv(3, width, 7, 2, padding), _norm(width)
        self.stages = nn.ModuleList()
        inputs = width
        for number, count in enumerate(units):
            middle = width * 2**number
            stage = nn.Sequential()
            for unit in range(count):
                stride = 2 if number > 0 and unit == 0 else 1
                stage.append(Unit(inputs, middle, stride, padding, projection_groups))
                inputs = EXPANSION * middle
            self.stages.append(stage)
        self.out_channels = inputs
        # coarse to fine, as a decoder takes them
        self.skip_channels = [EXPANSION * width * 2**number for number in reversed(range(len(units) - 1))] + [width]

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Map (N, 3, H, W), H and W multiples of 16, to features at 1/16 and skips at 1/8, 1/4 and 1/2.

        With ``torch`` padding the maximum over 3x3 is taken without padding, so the first stage lacks the last row
        and column; they are filled with zeros in its skip only, as TransUNet does.
        """
        x = F.relu(self.root_norm(self.root(image)))
        skips = [x]
        height, width = x.shape[-2:]
        if self.padding == "tf_same":
            x = same_padded(x, 3, 2)  # zeros: after a ReLU as good as minus infinity
        x = F.max_pool2d(x, 3, stride=2)
        for number, stage in enumerate(self.stages):
            x = stage(x)
            if number + 1 < len(self.stages):
                scale = 2 ** (number + 1)
                missing = (width // scale - x.shape[-1], height // scale - x.shape[-2])
                skips.append(F.pad(x, (0, missing[0], 0, missing[1])) if any(missing) else x)
        return x, skips[::-1]
