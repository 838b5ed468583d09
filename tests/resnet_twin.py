"""A ResNet with bottlenecks under torchvision's names, from the architecture: He et al. 2016, stride in conv2."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * inner
        self.conv1, self.bn1 = nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class TwinResNet(nn.Module):
    """ResNet-50 with 64 channels in the stem; ``width=8`` is an eighth of it in every layer."""

    def __init__(self, channels: int, width: int = 64, depths: tuple[int, ...] = (3, 4, 6, 3)) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 7, 2, padding=3, bias=False), nn.BatchNorm2d(width)
        inputs = width
        for stage, depth in enumerate(depths):
            inner = width * 2**stage
            blocks = [
                Bottleneck(inputs if i == 0 else 4 * inner, inner, 2 if stage and not i else 1) for i in range(depth)
            ]
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            inputs = 4 * inner
        self.fc = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = torch.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, padding=1)
        stages = []
        for number in (1, 2, 3, 4):
            x = getattr(self, f"layer{number}")(x)
            stages.append(x)
        return stages


def random_twin(channels: int, width: int = 64, depths: tuple[int, ...] = (3, 4, 6, 3), seed: int = 0) -> TwinResNet:
    """A twin in evaluation mode whose normalisation has random statistics, scales and shifts too."""
    torch.manual_seed(seed)
    twin = TwinResNet(channels, width, depths).eval()
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0.0, 0.2)
    return twin
