"""Deformable cross-attention between two grids (PIIP section 3.2; Zhu et al. 2021), one level, in plain torch.

Every query looks at a few points around its own place on the other grid; how far off they lie and how much each counts
is a linear function of the query.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from services.backbones.piip.configuration import InteractionConfig
from services.backbones.piip.sampling import sample_by_bags, sample_by_grid


class DeformableAttention(nn.Module):
    """Queries of one width sample a map of another; always in float32, as bfloat16 cannot tell places apart."""

    def __init__(self, width: int, key_width: int, config: InteractionConfig) -> None:
        super().__init__()
        self.heads, self.points = config.heads, config.points
        value_width = int(width * config.value_ratio)
        self.value = nn.Linear(key_width, value_width)
        self.offsets = nn.Linear(width, self.heads * self.points * 2)
        self.weights = nn.Linear(width, self.heads * self.points)
        self.output = nn.Linear(value_width, width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Head m looks in direction m of a full turn, its point k that many cells away, all with the same weight."""
        angles = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        steps = torch.arange(1, self.points + 1, dtype=torch.float32)
        with torch.no_grad():
            self.offsets.weight.zero_()
            self.offsets.bias.copy_((directions[:, None] * steps[:, None]).flatten())
            self.weights.weight.zero_()
            self.weights.bias.zero_()
            for linear in (self.value, self.output):
                nn.init.xavier_uniform_(linear.weight)
                linear.bias.zero_()

    def forward(self, queries: Tensor, grid: tuple[int, int], keys: Tensor, key_grid: tuple[int, int]) -> Tensor:
        """``queries`` ``[batch, height · width, width]`` on ``grid``, ``keys`` likewise of the other branch.

        Returns ``[batch, height · width, width]`` in the dtype of the queries.
        """
        given = queries.dtype
        with torch.autocast(queries.device.type, enabled=False):
            queries, keys = queries.to(self.offsets.weight.dtype), keys.to(self.value.weight.dtype)
            values = self.value(keys).float().unflatten(2, (self.heads, -1))
            offsets = self.offsets(queries).float().unflatten(2, (self.heads, self.points, 2))
            weights = self.weights(queries).float().unflatten(2, (self.heads, self.points)).softmax(dim=-1)
            places = cell_centres(grid, key_grid, queries.device)[:, None, None] + offsets
            sample = sample_by_grid if torch.is_grad_enabled() else sample_by_bags
            sampled = sample(values, key_grid, places, weights)
            mixed: Tensor = self.output(sampled.to(self.output.weight.dtype))
        return mixed.to(given)


def cell_centres(grid: tuple[int, int], key_grid: tuple[int, int], device: torch.device) -> Tensor:
    """Where the cells of ``grid`` lie on ``key_grid``: ``[height · width, 2]``, x and y in cells of the latter.

    The centre of its first cell is 0.
    """
    rows, columns = (
        (torch.arange(own, device=device) + 0.5) * (other / own) - 0.5
        for own, other in zip(grid, key_grid, strict=True)
    )
    return torch.stack([columns.repeat(grid[0]), rows.repeat_interleave(grid[1])], dim=-1)
