"""Visual prompts of the MLLM: one embedding of the language model's width for every marked region.

VisionLLM v2 section 3.1: convolutions bring the image and the mask to the vision tower's grid, the tower's features are
added, and what lies at points inside the mask is averaged. Unlike the published code, which draws points at random,
the points are those of ``services.runtime.regions``: the same region always has the same embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from services.mllm.tiling import Grid
from services.runtime.regions import region_points

# Channels between the two convolutions.
_INNER_CHANNELS = 64


@dataclass(frozen=True)
class RegionView:
    """A region as the model looks at it: on the tile that holds all of it, or else on the thumbnail."""

    # Which of the image's tiles.
    tile: int
    # [tile size, tile size] float32: the share of each pixel that is marked.
    mask: Tensor
    # [points, 2] and [points] float32; see ``RegionPoints``. Places are relative to the tile.
    places: Tensor
    weights: Tensor


@dataclass(frozen=True)
class RegionBatch:
    """Regions to be encoded together, each on a tile of a stack of tiles."""

    # [regions] int64.
    tiles: Tensor
    # [regions, tile size, tile size].
    masks: Tensor
    # [regions, points, 2] and [regions, points].
    places: Tensor
    weights: Tensor

    @classmethod
    def of(cls, views: Sequence[RegionView], tiles: Sequence[int]) -> RegionBatch:
        """``views`` in order; ``tiles`` says where in the stack the tile of each is."""
        return cls(
            tiles=torch.tensor(tiles),
            masks=torch.stack([view.mask for view in views]),
            places=torch.stack([view.places for view in views]),
            weights=torch.stack([view.weights for view in views]),
        )

    def to(self, device: torch.device) -> RegionBatch:
        """The same regions on ``device``."""
        return RegionBatch(
            self.tiles.to(device), self.masks.to(device), self.places.to(device), self.weights.to(device)
        )


def view_region(mask: NDArray[np.bool_], grid: Grid, tile_size: int) -> RegionView:
    """How the model looks at the region ``mask`` ``[height, width]`` of an image that is cut by ``grid``."""
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    # First and last tile that the region touches, by column and row; tiles stretch over the whole image.
    across = [int((edge + 0.5) * grid.columns / width) for edge in (columns[0], columns[-1])]
    down = [int((edge + 0.5) * grid.rows / height) for edge in (rows[0], rows[-1])]
    left, top, tile_width, tile_height = 0.0, 0.0, float(width), float(height)
    tile = grid.tiles - 1
    if across[0] == across[1] and down[0] == down[1]:
        tile = down[0] * grid.columns + across[0]
        tile_width, tile_height = width / grid.columns, height / grid.rows
        left, top = across[0] * tile_width, down[0] * tile_height
    # Boxes of pixels are averaged, so that what is smaller than a pixel of the tile does not vanish.
    scaled = Image.fromarray(mask.astype(np.uint8) * 255).resize(
        (tile_size, tile_size),
        Image.Resampling.BOX if tile_width > tile_size else Image.Resampling.BILINEAR,
        box=(left, top, left + tile_width, top + tile_height),
    )
    points = region_points(mask)
    places = (points.places - torch.tensor([left, top])) / torch.tensor([tile_width, tile_height])
    return RegionView(
        tile=tile,
        mask=torch.from_numpy(np.asarray(scaled, dtype=np.float32) / 255),
        places=places,
        weights=points.weights,
    )


class RegionEncoder(nn.Module):
    """Makes the embeddings that stand at ``<region>``."""

    def __init__(self, tower_width: int, patch_size: int, hidden_size: int) -> None:
        """``tower_width`` channels of the tower's grid, whose cells are ``patch_size`` pixels wide."""
        super().__init__()
        # Two steps to the tower's grid, the first the larger one: 4 and 4 of 16 pixels, 7 and 2 of 14.
        first = next(step for step in range(1, patch_size + 1) if step * step >= patch_size and patch_size % step == 0)
        second = patch_size // first
        self.mask_embedding = nn.Sequential(
            nn.Conv2d(4, _INNER_CHANNELS, first, stride=first),
            _ChannelNorm(_INNER_CHANNELS),
            nn.GELU(),
            nn.Conv2d(_INNER_CHANNELS, tower_width, second, stride=second),
            _ChannelNorm(tower_width),
            nn.GELU(),
            nn.Conv2d(tower_width, tower_width, 1),
            _ChannelNorm(tower_width),
            nn.GELU(),
        )
        self.projection = nn.Linear(tower_width, hidden_size)

    def forward(self, pixels: Tensor, grid: Tensor, regions: RegionBatch) -> Tensor:
        """Embeddings ``[regions, hidden]``.

        ``pixels`` is ``[tiles, 3, size, size]`` and ``grid`` the tower's output on these tiles
        ``[tiles, tower width, rows, columns]``.
        """
        marked = torch.cat([pixels[regions.tiles], regions.masks[:, None].to(pixels.dtype)], dim=1)
        seen = self.mask_embedding(marked) + grid[regions.tiles]
        places = (regions.places * 2 - 1)[:, None].to(seen.dtype)
        # (regions, tower width, 1, points)
        sampled = functional.grid_sample(seen, places, padding_mode="border", align_corners=False)
        averaged = torch.einsum("rcp,rp->rc", sampled[:, :, 0], regions.weights.to(seen.dtype))
        embedded: Tensor = self.projection(averaged)
        return embedded


class _ChannelNorm(nn.LayerNorm):
    """Layer normalisation over the channels of ``[batch, channels, rows, columns]``."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
