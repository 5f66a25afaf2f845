"""ViTDet's simple feature pyramid (Li et al. 2022): maps at four strides made from one."""

from __future__ import annotations

from torch import Tensor, nn

_GROUPS = 32


class SimpleFeaturePyramid(nn.Module):
    """Twice and four times as large by transposed convolutions, the same, and half as large by pooling."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.twice = nn.ConvTranspose2d(width, width, 2, 2)
        self.four_times = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, 2),
            nn.GroupNorm(_GROUPS, width),
            nn.GELU(),
            nn.ConvTranspose2d(width, width, 2, 2),
        )
        self.halve = nn.MaxPool2d(2, 2)

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """``[batch, width, height, width of the map]`` to four maps, the largest first."""
        return self.four_times(features), self.twice(features), features, self.halve(features)
