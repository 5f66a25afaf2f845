"""Keypoint maps: every cell of the pose estimator's memory says which keypoints are in it.

An auxiliary objective: keypoint queries sample the memory around them, and find a wrist much sooner where the cells
say that they show one. The head is not served.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.grounding.network import STRIDES
from services.trainer.scenes.pose_names import FIGURE_NAMES, POSE_NAMES, keypoint_rows
from services.trainer.scenes.scene import Scene
from services.trainer.scenes.skeletons import SKELETONS

# Of the memory's levels that are supervised, finest first; in the coarsest a figure is a handful of cells.
_LEVELS = 2
# How far a keypoint's peak reaches, in cells.
_PEAK = 0.8
# A cell shows a keypoint once in a hundred times; the loss wants such chances at the start.
_PRIOR_LOGIT = -4.6
_ROWS = {skeleton.key: [row - FIGURE_NAMES for row in keypoint_rows(skeleton)] for skeleton in SKELETONS}


class KeypointMapHead(nn.Module):
    """A small classifier of cells: ``[..., width]`` to logits ``[..., keypoints]``, one for each name of a keypoint."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, len(POSE_NAMES) - FIGURE_NAMES)
        )
        nn.init.constant_(self.layers[-1].bias, _PRIOR_LOGIT)

    def forward(self, cells: Tensor) -> Tensor:
        """See the class."""
        logits: Tensor = self.layers(cells)
        return logits


def keypoint_maps(scene: Scene, image_side: int) -> Tensor:
    """What the supervised levels should show, ``[cells, keypoints]`` in 0..1: 1 at a keypoint, less around it.

    The estimator scales the longer side to ``image_side`` and pads to a square. Hidden keypoints count: where they
    are is asked for, too.
    """
    longer = max(scene.height, scene.width)
    maps = []
    for stride in STRIDES[:_LEVELS]:
        side = image_side // stride
        shown = torch.zeros(len(POSE_NAMES) - FIGURE_NAMES, side, side)
        centres = torch.arange(side) + 0.5
        for thing in scene.objects:
            if thing.keypoints is None:
                continue
            for row, (x, y) in zip(_ROWS[thing.category.key], (thing.keypoints / longer * side).tolist(), strict=True):
                across = torch.exp(-((centres - x) ** 2) / (2 * _PEAK**2))
                down = torch.exp(-((centres - y) ** 2) / (2 * _PEAK**2))
                peak = down[:, None] * across
                # The best cell is a positive wherever in it the keypoint lies.
                shown[row] = torch.maximum(shown[row], peak / peak.max().clamp(min=0.1))
        maps.append(shown.flatten(1).T)
    return torch.cat(maps)


def keypoint_map_term(head: KeypointMapHead, memory: Tensor, shown: Tensor, normaliser: float) -> Tensor:
    """CenterNet's penalty-reduced focal loss (Zhou et al. 2019), divided by ``normaliser``.

    ``memory`` ``[batch, tokens, width]`` begins with the supervised levels, ``shown`` is ``[batch, cells, keypoints]``.
    """
    logits = head(memory[:, : shown.shape[1]]).float()
    chances = logits.sigmoid()
    is_peak = shown >= 1
    positive = functional.logsigmoid(logits) * (1 - chances) ** 2 * is_peak
    negative = functional.logsigmoid(-logits) * chances**2 * (1 - shown) ** 4 * ~is_peak
    return -(positive.sum() + negative.sum()) / normaliser
