"""Windowed attention over a grid that need not be a multiple of the window.

The released code pads such grids with zeros that take part in the softmax, so that results depend on the padding. Here
windows at the right and lower edge hold the cells that are there and no others, which is what masked padding computes,
without its work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# Queries, keys and values ``[groups, heads, cells, head width]`` of windows of a shape, to the same.
Attend = Callable[[Tensor, Tensor, Tensor, tuple[int, int]], Tensor]


def attend_in_windows(query_key_value: Tensor, grid: tuple[int, int], side: int, attend: Attend) -> Tensor:
    """Attention inside windows of at most ``side`` x ``side`` cells.

    ``query_key_value`` is ``[3, batch, heads, height · width, head width]``; returns ``[batch, heads, height · width,
    head width]``.
    """
    height, width = grid
    if height <= side and width <= side:
        query, key, value = query_key_value.unbind(0)
        return attend(query, key, value, grid)
    parts = query_key_value.unflatten(3, grid)
    rows = []
    for top, bottom, window_height in _strips(height, side):
        row = []
        for left, right, window_width in _strips(width, side):
            part = parts[..., top:bottom, left:right, :]
            down, across = (bottom - top) // window_height, (right - left) // window_width
            split = part.unflatten(4, (across, window_width)).unflatten(3, (down, window_height))
            # [3, batch, heads, down, window height, across, window width, head width]
            windows = split.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(5, 6).flatten(1, 3)
            query, key, value = windows.unbind(0)
            attended = attend(query, key, value, (window_height, window_width))
            back = attended.unflatten(2, (window_height, window_width)).unflatten(0, (-1, down, across))
            # [batch, heads, down, window height, across, window width, head width]
            row.append(back.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3))
        rows.append(row[0] if len(row) == 1 else torch.cat(row, dim=3))
    whole = rows[0] if len(rows) == 1 else torch.cat(rows, dim=2)
    return whole.flatten(2, 3)


def _strips(extent: int, side: int) -> Iterator[tuple[int, int, int]]:
    """Where the whole windows along one axis begin and end and how long they are; then the same of the rest."""
    whole = extent // side * side
    if whole:
        yield 0, whole, side
    if whole < extent:
        yield whole, extent, extent - whole
