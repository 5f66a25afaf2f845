"""Dense supervision: every cell of a feature map says what category it shows.

An auxiliary objective that teaches sight long before matching losses or words do. The head is thrown away at export.
"""

from __future__ import annotations

from collections.abc import Sequence

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
# Of the detector's maps that are supervised, finest first; the coarsest has too few cells.
_DETECTOR_STRIDES = (8, 16)


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


def detector_cells(shown: NDArray[np.int64], image_side: int) -> tuple[Tensor, ...]:
    """What the detector's two finest maps should show, ``[side / stride, side / stride]`` int64 for each stride.

    ``shown`` is a scene's ``category_map``; the detector scales its longer side to ``image_side`` and pads to a square.
    """
    height, width = shown.shape
    extent = (height / max(height, width), width / max(height, width))
    return tuple(
        torch.from_numpy(sample_cells(shown, image_side // stride, image_side // stride, extent))
        for stride in _DETECTOR_STRIDES
    )


def detector_dense_term(head: DenseHead, features: Sequence[Tensor], cells: Sequence[Tensor]) -> Tensor:
    """The head's mean cross-entropy over the maps that ``detector_cells`` describes; ``cells`` are batched."""
    finest = features[: len(cells)]
    terms = [head(level, wanted.to(level.device)) for level, wanted in zip(finest, cells, strict=True)]
    return torch.stack(terms).mean()


def word_term(logits: Tensor, cells: Tensor, words: Tensor) -> Tensor:
    """Mean cross-entropy that makes every image token read like the names of what it shows.

    With tied embeddings an image token then enters the language model as those words would, and naming what is in an
    image becomes copying. ``logits`` ``[batch, tokens, vocabulary]`` are the output layer's on the image tokens,
    ``cells`` ``[batch, rows, columns]`` categories at twice the tokens' resolution, and ``words``
    ``[categories, names]`` the first token of each name of a category. Ground says nothing.
    """
    batch, rows, columns = cells.shape
    by_token = cells.reshape(batch, rows // 2, 2, columns // 2, 2).transpose(2, 3).reshape(batch, -1, 4)
    shown = by_token != GROUND
    wanted = words[by_token.clamp(max=GROUND - 1)].flatten(2)  # (batch, tokens, 4 * names)
    weights = shown.repeat_interleave(words.shape[1], dim=-1).to(logits.dtype)
    chances = logits.float().log_softmax(dim=-1).gather(2, wanted)
    return -(chances * weights).sum() / weights.sum().clamp(min=1)


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
