"""A residual network (He et al. 2016) whose parameters have the names that OpenMMLab's models give them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class _Block(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, features: Tensor) -> Tensor:
        residual = torch.relu(self.bn1(self.conv1(features)))
        return torch.relu(self.bn2(self.conv2(residual)) + self.downsample(features))


class ResNet(nn.Module):
    """The stem (stride 4) and stages of two blocks at strides 4, 8, 16 and so on.

    The weights of a ResNet-18 of mmdet fit as they are, less the stages that this one does not have.
    """

    def __init__(self, base_channels: int, stages: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, base_channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(base_channels)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.stage_names: Sequence[str] = [f"layer{number}" for number in range(1, stages + 1)]
        # Channels of each stage's output.
        self.channels = [base_channels * 2**number for number in range(stages)]
        width = base_channels
        for number, (name, channels) in enumerate(zip(self.stage_names, self.channels, strict=True)):
            blocks = nn.Sequential(_Block(width, channels, 1 if number == 0 else 2), _Block(channels, channels, 1))
            self.add_module(name, blocks)
            width = channels

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """``[batch, 3, height, width]`` to one map a stage, at strides 4, 8, 16 ..."""
        features = self.pool(torch.relu(self.bn1(self.conv1(pixels))))
        maps = []
        for name in self.stage_names:
            features = self.get_submodule(name)(features)
            maps.append(features)
        return tuple(maps)
