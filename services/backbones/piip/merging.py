"""Branch merging (PIIP section 3.3): each map to the width of the widest, enlarged to the finest grid, and added up.

Published costs and sizes count the light merge; the same paper's detectors were trained with the convolutional one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from services.backbones.piip.pyramid import to_finest

_GROUPS = 32


class BranchMerge(nn.Module):
    """A projection for each branch, at its own resolution, and a learnt weight for each."""

    def __init__(self, projections: Sequence[nn.Module]) -> None:
        super().__init__()
        self.projections = nn.ModuleList(projections)
        self.weights = nn.Parameter(torch.ones(len(projections)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """One map a branch, ``[batch, width_j, height_j, width of the map]``, to one of the widest's width.

        ``[batch, widest, height_M, width of the last map]``, in the dtype of the maps.
        """
        projected = [project(own) for project, own in zip(self.projections, maps, strict=True)]
        weighted = [weight * own for weight, own in zip(self.weights, to_finest(projected), strict=True)]
        return torch.stack(weighted).sum(dim=0).to(maps[0].dtype)


def light_merge(widths: Sequence[int]) -> BranchMerge:
    """Linear projections between group norms to the widest branch's width; that one, as the first, is only normed."""
    widest = max(widths)

    def project(number: int, width: int) -> nn.Module:
        if number == 0 and width == widest:
            return nn.GroupNorm(_GROUPS, width)
        return nn.Sequential(nn.GroupNorm(_GROUPS, width), nn.Conv2d(width, widest, 1), nn.GroupNorm(_GROUPS, widest))

    return BranchMerge([project(number, width) for number, width in enumerate(widths)])


def convolutional_merge(widths: Sequence[int]) -> BranchMerge:
    """Two 3x3 convolutions a branch to the widest branch's width, for that one too."""
    widest = max(widths)
    return BranchMerge([nn.Sequential(*_convolve(width, widest), *_convolve(widest, widest)) for width in widths])


def staged_merge(widths: Sequence[int]) -> BranchMerge:
    """What stands after chosen stages of pyramids with convolutional branches; the first branch is only normed."""
    first = nn.Sequential(nn.GroupNorm(_GROUPS, widths[0]), nn.ReLU())
    return BranchMerge([first, *(nn.Sequential(*_convolve(width, widths[0])) for width in widths[1:])])


def _convolve(width: int, into: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(width, into, 3, padding=1, bias=False), nn.GroupNorm(_GROUPS, into), nn.ReLU()
