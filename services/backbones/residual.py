"""A small residual convolutional stem: pixels to a map at one sixteenth of the resolution."""

from __future__ import annotations

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.activation = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, features: Tensor) -> Tensor:
        """``[batch, in, height, width]`` to ``[batch, out, height / stride, width / stride]``."""
        residual = self.activation(self.norm1(self.conv1(features)))
        residual = self.norm2(self.conv2(residual))
        activated: Tensor = self.activation(residual + self.shortcut(features))
        return activated


class ResidualStem(nn.Module):
    """A convolution and a pooling (stride 4), then three stages of two blocks at strides 4, 8 and 16."""

    def __init__(self, base_channels: int = 32, in_channels: int = 3) -> None:
        super().__init__()
        self.out_channels = base_channels * 4
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, base_channels, 7, 2, 3, bias=False),
            nn.BatchNorm2d(base_channels),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        self.stages = nn.Sequential(
            self._stage(base_channels, base_channels, 1),
            self._stage(base_channels, base_channels * 2, 2),
            self._stage(base_channels * 2, base_channels * 4, 2),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def _stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(in_channels, out_channels, stride), BasicBlock(out_channels, out_channels, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """``[batch, 3, height, width]`` to ``[batch, out_channels, height / 16, width / 16]``."""
        features: Tensor = self.stages(self.stem(pixels))
        return features
