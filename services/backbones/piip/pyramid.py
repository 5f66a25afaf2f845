"""The pyramid itself: branches that see one picture in several sizes and meet after every stage (PIIP section 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.backbones.piip.configuration import BranchConfig, PiipConfig, VitBranchConfig
from services.backbones.piip.convnext import ConvNextBranch
from services.backbones.piip.deformable_attention import DeformableAttention
from services.backbones.piip.interaction import InteractionUnit
from services.backbones.piip.state import BranchState
from services.backbones.piip.vit import VitBranch


class ImagePyramid(nn.Module):
    """One to four branches, the largest first, each with the smaller picture."""

    def __init__(self, config: PiipConfig) -> None:
        super().__init__()
        self.config = config
        self.branches = nn.ModuleList(_make_branch(branch, config.stages) for branch in config.branches)
        widths = [branch.widths_after(config.stages) for branch in config.branches]
        # By stage, then by pair of neighbours: unit n ties branch n to branch n + 1.
        self.units = nn.ModuleList(
            nn.ModuleList(
                InteractionUnit(larger[stage], smaller[stage], config.interaction)
                for larger, smaller in zip(widths, widths[1:], strict=False)
            )
            for stage in range(config.interaction.stages)
        )
        self.apply(_initialise)
        # After the general rule, which would wipe out where the heads look.
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.reset_parameters()

    def forward(self, pixels: Tensor) -> tuple[BranchState, ...]:
        """``[batch, 3, height, width]`` at the resolution of the finest branch to the last state of every branch."""
        return self.every_stage(pixels)[-1]

    def every_stage(self, pixels: Tensor) -> list[tuple[BranchState, ...]]:
        """The states of all branches after each stage."""
        branches: Any = self.branches
        units: Any = self.units
        states = [branch.embed(picture) for branch, picture in zip(branches, self.pictures(pixels), strict=True)]
        history = []
        for stage in range(self.config.stages):
            states = [branch.run(state, stage) for branch, state in zip(branches, states, strict=True)]
            if self.config.interaction.stages:
                # The finest pair first: what it says reaches the coarsest branch within the same stage.
                for pair in reversed(range(len(states) - 1)):
                    states[pair : pair + 2] = units[stage][pair](states[pair], states[pair + 1])
            history.append(tuple(states))
        return history

    def pictures(self, pixels: Tensor) -> list[Tensor]:
        """What each branch sees: the same picture, scaled to its share of the finest branch's resolution.

        Sides are whole numbers of cells. Raises ValueError where the finest branch cannot cut ``pixels`` into cells.
        """
        finest = self.config.finest
        if pixels.shape[2] % finest.stride or pixels.shape[3] % finest.stride:
            raise ValueError(
                f"A picture of {pixels.shape[2]} x {pixels.shape[3]} pixels is no whole number of cells of "
                f"{finest.stride} pixels; pad it."
            )
        pictures = []
        for branch in self.config.branches:
            size = tuple(
                branch.stride * max(1, round(side * branch.resolution / (finest.resolution * branch.stride)))
                for side in pixels.shape[2:]
            )
            pictures.append(
                pixels
                if size == tuple(pixels.shape[2:])
                else functional.interpolate(pixels, size, mode="bilinear", align_corners=False)
            )
        return pictures


def _make_branch(config: BranchConfig, stages: int) -> VitBranch | ConvNextBranch:
    return VitBranch(config, stages) if isinstance(config, VitBranchConfig) else ConvNextBranch(config, stages)


@torch.no_grad()
def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            module.bias.zero_()
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2.0 / fan_out) ** 0.5)
        if module.bias is not None:
            module.bias.zero_()


def to_finest(maps: Sequence[Tensor]) -> list[Tensor]:
    """Maps ``[batch, channels, height, width]`` enlarged to the size of the last one, in float32."""
    size = maps[-1].shape[2:]
    return [
        one.float()
        if one.shape[2:] == size
        else functional.interpolate(one.float(), size, mode="bilinear", align_corners=False)
        for one in maps
    ]
