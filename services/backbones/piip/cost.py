"""What a pyramid costs, in multiply-accumulates (MACs), by the bookkeeping behind the paper's tables.

The paper calls them FLOPs. It counts norms as two a value, the sampling as five a point and channel, and nothing of
the merging but a linear projection; what the convolutional merge really costs is ``convolutional_merge_macs``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from services.backbones.piip.configuration import (
    BranchConfig,
    ConvNextBranchConfig,
    InteractionConfig,
    PiipConfig,
    VitBranchConfig,
)


@dataclass(frozen=True)
class Cells:
    """A branch's map: how many cells, and how wide."""

    count: int
    width: int


@dataclass(frozen=True)
class PyramidCost:
    """MACs of a picture of nominal size."""

    branches: tuple[int, ...]
    interactions: int
    # As published: linear projections of all branches but the first.
    light_merge: int
    convolutional_merge: int

    @property
    def without_merge(self) -> int:
        """Branches and interactions."""
        return sum(self.branches) + self.interactions

    @property
    def published(self) -> int:
        """What the paper's tables of dense tasks count."""
        return self.without_merge + self.light_merge


def vit_macs(branch: VitBranchConfig, pads_projections: bool = False) -> int:
    """A transformer's layers and patches.

    ``pads_projections``: the pre-training code of AugReg and BEiT, unlike DeiT's, counts queries, keys and values of
    the padding of windows too.
    """
    side, width = branch.resolution // branch.patch_size, branch.width
    cells, counted = side * side, side * side + int(branch.class_token)
    total = (branch.patch_size**2 * 3 + 1) * cells * width
    for layer in range(branch.depth):
        window = side if branch.window is None or layer in branch.global_layers else min(branch.window, side)
        projected = (math.ceil(side / window) * window) ** 2 if pads_projections else counted
        total += 3 * projected * width**2 + width**2 * counted * (1 + int(2 * branch.mlp_ratio))
        total += 2 * cells * window**2 * width + 2 * 2 * counted * width
    return total


def convnext_macs(branch: ConvNextBranchConfig) -> int:
    """A ConvNeXt's blocks, its stem and its down-samplings."""
    side = branch.resolution // 4
    total = 48 * side**2 * branch.widths[0] + 2 * side**2 * branch.widths[0]
    for level, (width, depth) in enumerate(zip(branch.widths, branch.depths, strict=True)):
        if level:
            before = branch.widths[level - 1]
            total += 2 * side**2 * before
            side //= 2
            total += 4 * side**2 * before * width
        total += depth * side**2 * (49 * width + 8 * width**2 + 2 * width)
    return total


def injector_macs(
    query: Cells, key: Cells, config: InteractionConfig, attention: Literal["deformable", "regular"] = "deformable"
) -> int:
    """One direction of an interaction unit.

    ``regular`` is the dense attention that the paper compares with, which is not built here.
    """
    value_width = int(query.width * config.value_ratio)
    inner = int(query.width * config.feed_forward_ratio)
    total = query.count * (2 * query.width * inner + 10 * inner)
    source_width = query.width if config.projects_and_norms else key.width
    if config.projects_and_norms:
        total += key.count * key.width * query.width
        total += 4 * query.count * query.width + 2 * key.count * query.width
    if attention == "regular":
        linear = 2 * query.count * query.width**2 + 2 * key.count * source_width * query.width
        return total + linear + 2 * query.count * key.count * query.width
    total += key.count * source_width * value_width
    total += query.count * query.width * config.heads * config.points * 3
    total += query.count * value_width * query.width
    return total + 5 * query.count * config.points * query.width


def interaction_macs(config: PiipConfig, attention: Literal["deformable", "regular"] = "deformable") -> int:
    """All units of all stages."""
    total = 0
    for stage in range(config.interaction.stages):
        maps = [cells_after(branch, stage, config.stages) for branch in config.branches]
        for larger, smaller in zip(maps, maps[1:], strict=False):
            total += injector_macs(larger, smaller, config.interaction, attention)
            total += injector_macs(smaller, larger, config.interaction, attention)
    return total


def cells_after(branch: BranchConfig, stage: int, stages: int) -> Cells:
    """The branch's map after a stage."""
    width = branch.widths_after(stages)[stage]
    if isinstance(branch, VitBranchConfig):
        return Cells((branch.resolution // branch.patch_size) ** 2, width)
    return Cells((branch.resolution // (4 * 2 ** branch.widths.index(width))) ** 2, width)


def light_merge_macs(maps: Sequence[Cells]) -> int:
    """Linear projections and norms of all branches but the first."""
    first = maps[0].width
    return sum(own.count * (own.width * first + 2 * own.width + 2 * first) for own in maps[1:])


def convolutional_merge_macs(maps: Sequence[Cells]) -> int:
    """Two 3x3 convolutions for every branch."""
    first = maps[0].width
    return sum(own.count * 9 * (own.width * first + first**2) for own in maps)


def pyramid_cost(config: PiipConfig, pads_projections: bool = False) -> PyramidCost:
    """The cost of a pyramid at the nominal resolutions of its branches."""
    maps = [cells_after(branch, config.stages - 1, config.stages) for branch in config.branches]
    return PyramidCost(
        branches=tuple(
            vit_macs(branch, pads_projections) if isinstance(branch, VitBranchConfig) else convnext_macs(branch)
            for branch in config.branches
        ),
        interactions=interaction_macs(config),
        light_merge=light_merge_macs(maps),
        convolutional_merge=convolutional_merge_macs(maps),
    )
