"""Dense supervision: every cell of a feature map says what category it shows.

An auxiliary objective that teaches sight long before matching losses or words do. The head is thrown away at export.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from services.trainer.scenes.categories import CATEGORIES, CATEGORY_INDEX
from services.trainer.scenes.scene import Scene

# The last class is the ground.
GROUND = len(CATEGORIES)
# The ground fills most cells and is easy.
_GROUND_WEIGHT = 0.2


class DenseHead(nn.Module):
    """A linear classifier over the channels of every cell."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(channels, GROUND + 1, 1)
        weights = torch.ones(GROUND + 1)
        weights[GROUND] = _GROUND_WEIGHT
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, features: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy: features ``[batch, channels, rows, columns]``, targets ``[batch, rows, columns]``."""
        loss: Tensor = functional.cross_entropy(self.classifier(features), targets, weight=self.weights)
        return loss


def category_map(scene: Scene) -> NDArray[np.int64]:
    """``[height, width]``: the category index that each pixel shows, ``GROUND`` elsewhere."""
    shown = np.full((scene.height, scene.width), GROUND, dtype=np.int64)
    for thing in scene.objects:
        shown[thing.mask] = CATEGORY_INDEX[thing.category.key]
    return shown


def sample_cells(shown: NDArray[np.int64], rows: int, columns: int, extent: tuple[float, float]) -> NDArray[np.int64]:
    """The category at each cell's centre: ``[rows, columns]``.

    ``extent`` (height, width) is the part of the grid that the scene fills, 1 meaning all; cells beyond show ground.
    """
    height, width = shown.shape
    vertical = (np.arange(rows) + 0.5) / rows / extent[0]
    horizontal = (np.arange(columns) + 0.5) / columns / extent[1]
    sampled = shown[
        np.minimum((vertical * height).astype(int), height - 1)[:, None],
        np.minimum((horizontal * width).astype(int), width - 1)[None, :],
    ].copy()
    sampled[vertical >= 1, :] = GROUND
    sampled[:, horizontal >= 1] = GROUND
    return sampled
