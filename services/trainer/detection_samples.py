"""Detection targets of scenes, as the detector's losses want them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from services.grounding.boxes import to_centres
from services.grounding.structures import GroundingTargets
from services.trainer.scenes.scene import Scene


def image_targets(scene: Scene, groups: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Boxes ``[objects, 4]`` (centres and sizes in the padded square) and memberships ``[objects, groups]`` bool.

    ``groups`` lists the scene's objects that each group means; objects that no group means are left out.
    """
    wanted = meant_objects(groups)
    boxes = torch.tensor([scene.objects[index].box for index in wanted], dtype=torch.float32).reshape(-1, 4)
    membership = torch.tensor([[index in group for group in groups] for index in wanted], dtype=torch.bool)
    return to_centres(boxes / max(scene.height, scene.width)), membership.reshape(len(wanted), len(groups))


def meant_objects(groups: Sequence[Sequence[int]]) -> list[int]:
    """The scene's objects that some group means, in order."""
    return sorted({index for group in groups for index in group})


def pad_targets(targets: Sequence[tuple[Tensor, Tensor]]) -> GroundingTargets:
    """Stack the targets of several images; the normaliser is this rank's count and is replaced by the global one."""
    objects = max(1, *(boxes.shape[0] for boxes, _ in targets))
    groups = max(membership.shape[1] for _, membership in targets)
    boxes = torch.full((len(targets), objects, 4), 0.5)
    memberships = torch.zeros(len(targets), objects, groups, dtype=torch.bool)
    mask = torch.zeros(len(targets), objects, dtype=torch.bool)
    for row, (image_boxes, membership) in enumerate(targets):
        count = image_boxes.shape[0]
        boxes[row, :count] = image_boxes
        memberships[row, :count, : membership.shape[1]] = membership
        mask[row, :count] = True
    return GroundingTargets(boxes, memberships, mask, normaliser=max(1.0, float(mask.sum())))
