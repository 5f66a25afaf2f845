"""Dynamic tiling: an image of any shape becomes 1 to n tiles of one size, and a thumbnail (InternVL 1.5, section 3).

A video is a row of images of one tile each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Grid:
    """How an image is cut; ``columns * rows`` tiles and, when there are several, a thumbnail."""

    columns: int
    rows: int

    @property
    def tiles(self) -> int:
        """Tiles including the thumbnail."""
        cells = self.columns * self.rows
        return cells + 1 if cells > 1 else 1


def choose_grid(width: int, height: int, max_tiles: int, tile_size: int, min_tiles: int = 1) -> Grid:
    """The grid whose ratio is nearest to the image's.

    Of grids that are exactly equally near, a larger one is taken only when the image has more than half its pixels.
    """
    ratio = width / height
    best = Grid(1, 1)
    best_difference = float("inf")
    for columns, rows in _candidates(min_tiles, max_tiles):
        difference = abs(ratio - columns / rows)
        fills_half = width * height > 0.5 * tile_size * tile_size * columns * rows
        if difference < best_difference or (difference == best_difference and fills_half):
            best = Grid(columns, rows)
            best_difference = difference
    return best


def share_tiles(max_tiles: int, images: int) -> int:
    """Tiles that each of ``images`` may take when they share one budget."""
    return max(1, max_tiles // max(1, images))


def tile_budgets(max_tiles: int, turns: Sequence[int]) -> list[int]:
    """Tiles that each image of a conversation may take; ``turns`` are the numbers of the turns that show them.

    Those of the newest turn that shows any share ``max_tiles``; older ones get one, so that a long conversation stays
    short.
    """
    newest = max(turns, default=0)
    share = share_tiles(max_tiles, sum(turn == newest for turn in turns))
    return [share if turn == newest else 1 for turn in turns]


def frame_indices(frames: int, samples: int) -> list[int]:
    """Which of a video's ``frames`` to look at: the middles of ``samples`` equal stretches, as InternVL takes them.

    All frames where there are no more than that. Raises ValueError when either is not positive.
    """
    if frames < 1 or samples < 1:
        raise ValueError(f"{samples} of {frames} frames cannot be chosen.")
    if frames <= samples:
        return list(range(frames))
    stretch = (frames - 1) / samples
    return [int(stretch / 2 + round(stretch * number)) for number in range(samples)]


def cut_tiles(image: Image.Image, max_tiles: int, tile_size: int) -> Tensor:
    """Tiles ``[tiles, 3, tile_size, tile_size]`` float32, normalised; row-major, the thumbnail last."""
    grid = choose_grid(image.width, image.height, max_tiles, tile_size)
    rgb = image.convert("RGB")
    resized = rgb.resize((grid.columns * tile_size, grid.rows * tile_size), Image.Resampling.BICUBIC)
    whole = np.asarray(resized, dtype=np.uint8)
    tiles = [
        whole[row * tile_size : (row + 1) * tile_size, column * tile_size : (column + 1) * tile_size]
        for row in range(grid.rows)
        for column in range(grid.columns)
    ]
    if grid.tiles > 1:
        tiles.append(np.asarray(rgb.resize((tile_size, tile_size), Image.Resampling.BICUBIC), dtype=np.uint8))
    return normalise(torch.from_numpy(np.stack(tiles)))


def normalise(pixels: Tensor) -> Tensor:
    """``[n, height, width, 3]`` uint8 to ``[n, 3, height, width]`` float32 by ImageNet's mean and deviation."""
    mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    deviation = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    return ((pixels.permute(0, 3, 1, 2).float() / 255.0 - mean) / deviation).contiguous()


@lru_cache(maxsize=64)
def _candidates(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """Every (columns, rows) with an area in the range, smallest area first."""
    grids = [
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles + 1)
        if min_tiles <= columns * rows <= max_tiles
    ]
    return tuple(sorted(grids, key=lambda grid: (grid[0] * grid[1], grid[0])))
