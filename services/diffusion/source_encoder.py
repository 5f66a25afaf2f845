"""What an edit sees of its source beside the latents: features that tell a cat from a tree."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.backbones.resnet import ResNet
from services.diffusion.configuration import SourceEncoderConfig

_MEAN = (0.485, 0.456, 0.406)
_STANDARD_DEVIATION = (0.229, 0.224, 0.225)


class SourceEncoder(nn.Module):
    """The first three stages of a detector's backbone, frozen, and a learned projection of the last two."""

    def __init__(self, config: SourceEncoderConfig) -> None:
        super().__init__()
        self.backbone = ResNet(config.base_channels, stages=3).requires_grad_(False)
        _, fine, coarse = self.backbone.channels
        self.projection = nn.Conv2d(fine + coarse, config.channels, 1)
        self.backbone.to(memory_format=torch.channels_last)
        self.register_buffer("_mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("_deviation", torch.tensor(_STANDARD_DEVIATION).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> SourceEncoder:
        """The backbone stays as it is: it never trains."""
        super().train(mode)
        self.backbone.eval()
        return self

    def extract(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """What the frozen backbone sees of ``[batch, 3, height, width]`` in -1..1, at strides 8 and 16."""
        normalised = (pixels / 2 + 0.5 - self._mean) / self._deviation
        _, fine, coarse = self.backbone(normalised.contiguous(memory_format=torch.channels_last))
        return fine, coarse

    def forward(self, features: Tensor) -> Tensor:
        """The channels that the denoising network gets, ``[batch, channels, h, w]``, of joined scales."""
        projected: Tensor = self.projection(features)
        return projected


def join_scales(fine: Tensor, coarse: Tensor) -> Tensor:
    """Both scales on channels at the fine one's size, ``[batch, fine + coarse channels, h, w]``."""
    enlarged = functional.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
    return torch.cat([fine, enlarged], dim=1)
