"""Bilinear sampling of a value map at a few points for every query: the heart of deformable attention.

Two forms of the same sum. ``sample_by_bags`` is for inference: a query's points become one bag of weighted rows of the
map, so that nothing as large as queries x points x width is ever stored. ``sample_by_grid`` is for training, where the
gradient of the first form would cost more than it saves. Points outside the map count as zeros.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def sample_by_grid(values: Tensor, grid: tuple[int, int], places: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of ``values`` at ``places``.

    ``values`` ``[batch, height · width, heads, head width]`` on ``grid`` (height, width); ``places`` ``[batch, queries,
    heads, points, 2]``: x and y in cells, the centre of the first cell at 0; ``weights`` ``[batch, queries, heads,
    points]``. Returns ``[batch, queries, heads · head width]``.
    """
    batch, queries, heads, _, _ = places.shape
    height, width = grid
    maps = values.permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, grid)
    extent = places.new_tensor((width, height))
    relative = ((2 * places + 1) / extent - 1).transpose(1, 2).flatten(0, 1)
    # [batch · heads, head width, queries, points]
    sampled = functional.grid_sample(maps, relative, mode="bilinear", padding_mode="zeros", align_corners=False)
    mixed = (sampled * weights.transpose(1, 2).flatten(0, 1)[:, None]).sum(dim=-1)
    summed: Tensor = mixed.unflatten(0, (batch, heads)).permute(0, 3, 1, 2).reshape(batch, queries, -1)
    return summed


def sample_by_bags(values: Tensor, grid: tuple[int, int], places: Tensor, weights: Tensor) -> Tensor:
    """The same as ``sample_by_grid``, without gradients."""
    batch, queries, heads, points, _ = places.shape
    height, width = grid
    # A rim of zeros, so that corners outside need no test.
    rimmed = functional.pad(values.unflatten(1, grid), (0, 0, 0, 0, 1, 1, 1, 1))
    rows = rimmed.reshape(batch * (height + 2) * (width + 2) * heads, -1)
    x, y = places[..., 0].clamp(-1, width), places[..., 1].clamp(-1, height)
    left, top = x.floor().clamp_(max=width - 1), y.floor().clamp_(max=height - 1)
    right_share, lower_share = x - left, y - top
    images = torch.arange(batch, device=places.device, dtype=torch.int32)[:, None, None, None] * (height + 2)
    corner = (images + (top.int() + 1)) * (width + 2) + (left.int() + 1)
    corner = corner * heads + torch.arange(heads, device=places.device, dtype=torch.int32)[:, None]
    below = (width + 2) * heads
    steps = torch.tensor((0, heads, below, below + heads), device=places.device, dtype=torch.int32)
    lower = lower_share * weights
    upper = weights - lower
    lower_right, upper_right = lower * right_share, upper * right_share
    shares = torch.stack([upper - upper_right, upper_right, lower - lower_right, lower_right], dim=-1)
    bags = (corner[..., None] + steps).view(batch * queries * heads, points * 4)
    summed = functional.embedding_bag(bags, rows, mode="sum", per_sample_weights=shares.view_as(bags))
    return summed.view(batch, queries, -1)
