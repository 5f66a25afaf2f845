"""A branch that is a ConvNeXt (Liu et al. 2022): blocks and down-samplings in one list, cut into stages."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.backbones.drop_path import DropPath
from services.backbones.piip.configuration import ConvNextBranchConfig
from services.backbones.piip.state import BranchState

_EPSILON = 1e-6


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map."""

    def forward(self, features: Tensor) -> Tensor:
        """``[batch, channels, height, width]``."""
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """A depthwise 7x7 convolution, then a feed-forward network in every cell."""

    def __init__(self, width: int, layer_scale: float, drop_path: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=_EPSILON)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, features: Tensor) -> Tensor:
        """``[batch, width, height, width of the map]``, and the same back."""
        cells = self.norm(self.depthwise(features).permute(0, 2, 3, 1))
        cells = self.scale * self.contract(functional.gelu(self.expand(cells)))
        dropped: Tensor = self.drop_path(cells.permute(0, 3, 1, 2))
        return features + dropped


class ConvNextBranch(nn.Module):
    """A ConvNeXt cut into stages. Its grid shrinks on the way: strides 4, 8, 16 and 32."""

    def __init__(self, config: ConvNextBranchConfig, stages: int) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Sequential(nn.Conv2d(3, config.widths[0], 4, 4), ChannelNorm(config.widths[0], eps=_EPSILON))
        blocks: list[nn.Module] = []
        for level, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            if level:
                before = config.widths[level - 1]
                blocks.append(nn.Sequential(ChannelNorm(before, eps=_EPSILON), nn.Conv2d(before, width, 2, 2)))
            blocks.extend(Block(width, config.layer_scale, config.drop_path) for _ in range(depth))
        self.blocks = nn.ModuleList(blocks)
        self.slices = config.slices(stages)

    def embed(self, pixels: Tensor) -> BranchState:
        """``[batch, 3, height, width]``, both multiples of 32, to the state before the first block."""
        return _state(self.stem(pixels))

    def run(self, state: BranchState, stage: int) -> BranchState:
        """The blocks of one stage."""
        first = sum(self.slices[:stage])
        features = state.as_map()
        for block in self.blocks[first : first + self.slices[stage]]:
            features = block(features)
        return _state(features)


def _state(features: Tensor) -> BranchState:
    return BranchState(features.flatten(2).transpose(1, 2), (features.shape[2], features.shape[3]))
