"""BEiT's position bias: a learnt value for every distance between two cells, for each head."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class RelativePositionBias(nn.Module):
    """Resized to any window shape, as position tables are."""

    def __init__(self, side: int, heads: int) -> None:
        super().__init__()
        # [heads, 2 · side - 1, 2 · side - 1]: distances down and across, from the most negative on.
        self.table = nn.Parameter(torch.zeros(heads, 2 * side - 1, 2 * side - 1))

    def forward(self, window: tuple[int, int]) -> Tensor:
        """``[heads, cells, cells]`` for windows of ``window`` (height, width)."""
        height, width = window
        extents = (2 * height - 1, 2 * width - 1)
        table: Tensor = self.table
        if table.shape[1:] != extents:
            table = functional.interpolate(table[None], extents, mode="bicubic", align_corners=False)[0]
        rows = torch.arange(height, device=table.device)
        columns = torch.arange(width, device=table.device)
        down = (rows[:, None] - rows[None, :] + height - 1)[:, None, :, None]
        across = (columns[:, None] - columns[None, :] + width - 1)[None, :, None, :]
        return table[:, down, across].flatten(3, 4).flatten(1, 2)
