"""A pyramid as the eye of a language model, in the manner of PIIP-LLaVA: no merging, one projector a branch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from services.backbones.piip.configuration import PiipConfig
from services.backbones.piip.pyramid import ImagePyramid, to_finest

_NORM_GROUPS = 32


class PyramidTower(nn.Module):
    """The branches' maps, all on the grid of the finest, side by side in the channels."""

    def __init__(self, config: PiipConfig) -> None:
        super().__init__()
        self.pyramid = ImagePyramid(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """``[batch, 3, height, width]`` to ``[batch, sum of widths, height / stride, width / stride]``."""
        maps = [state.as_map() for state in self.pyramid(pixels)]
        return torch.cat(to_finest(maps), dim=1).to(maps[0].dtype)


class BranchProjectors(nn.Module):
    """A projector for each branch, to the language model's width; their outputs are added up."""

    def __init__(self, widths: Sequence[int], neighbours: int, text_width: int) -> None:
        super().__init__()
        self.widths, self.neighbours = tuple(widths), neighbours
        self.projectors = nn.ModuleList(_Projector(width * neighbours, text_width) for width in widths)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[batch, tokens, neighbours · sum of widths]``, by neighbour, to ``[batch, tokens, text width]``."""
        by_branch = tokens.unflatten(2, (self.neighbours, -1)).split(self.widths, dim=-1)
        projected = [project(own.flatten(2)) for project, own in zip(self.projectors, by_branch, strict=True)]
        return torch.stack(projected).sum(dim=0)


class _Projector(nn.Module):
    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, text_width)
        # Fewer groups where the language model is too narrow for the published 32.
        groups = next(groups for groups in range(min(_NORM_GROUPS, text_width), 0, -1) if text_width % groups == 0)
        self.norm = nn.GroupNorm(groups, text_width)
        self.second = nn.Linear(text_width, text_width)

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm(self.first(tokens).transpose(1, 2)).transpose(1, 2)
        projected: Tensor = self.second(nn.functional.gelu(normed))
        return projected
