"""Mask losses: binary cross-entropy and Dice at points where the mask is uncertain.

VisionLLM v2 takes them from Mask2Former, which takes the points from PointRend.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from services.grounding import compiled_operations  # noqa: F401  (must come before mmdet)
from services.grounding.losses import Assignment
from services.segmentation.structures import SegmentationOutputs, SegmentationTargets

from mmcv.ops import point_sample  # isort: skip
from mmdet.models.utils import get_uncertain_point_coords_with_randomness  # isort: skip

MASK_WEIGHT = 5.0
DICE_WEIGHT = 5.0
# Of all points three times as many are drawn as are used; three quarters of those used are the most uncertain ones.
_OVERSAMPLE_RATIO = 3.0
_IMPORTANCE_RATIO = 0.75


def mask_loss(
    outputs: SegmentationOutputs, targets: SegmentationTargets, assignment: Assignment, points: int
) -> dict[str, Tensor]:
    """Weighted terms "mask" and "dice", summed over decoder layers, and those of the denoising queries.

    Both are means over ``points`` points, summed over masks and divided by ``targets.normaliser``.
    """
    count = outputs.grounding.denoising_count
    embeddings = outputs.mask_embeddings
    layers = embeddings.shape[0]
    parts = {"": (embeddings[:, :, count:], assignment.candidates[:layers], targets.normaliser)}
    if count:
        everywhere = assignment.denoising.expand(layers, -1, -1)
        parts["denoising_"] = (embeddings[:, :, :count], everywhere, targets.normaliser * assignment.repeats)
    terms: dict[str, Tensor] = {}
    for name, (candidates, matches, normaliser) in parts.items():
        layer, image, query = (matches >= 0).nonzero(as_tuple=True)
        found = torch.einsum("nc,nchw->nhw", candidates[layer, image, query], outputs.pixel_embeddings[image])
        wanted = targets.masks[image, matches[layer, image, query]]
        cross_entropy, dice = _compare(found, wanted, points)
        terms[f"{name}mask"] = MASK_WEIGHT * cross_entropy / normaliser
        terms[f"{name}dice"] = DICE_WEIGHT * dice / normaliser
    return terms


def dice_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """1 - (2 p t + 1) / (p + t + 1), summed over the last dimension: ``[masks]`` of two ``[masks, points]``."""
    found = logits.sigmoid()
    shared, total = (found * wanted).sum(dim=-1), found.sum(dim=-1) + wanted.sum(dim=-1)
    return 1 - (2 * shared + 1) / (total + 1)


def _compare(found: Tensor, wanted: Tensor, points: int) -> tuple[Tensor, Tensor]:
    """Both losses, summed over masks: of ``[masks, h, w]`` logits against ``[masks, side, side]`` bool."""
    if not len(found):
        # Keeps the mask's parameters in the graph of an image without objects.
        nothing = found.sum()
        return nothing, nothing
    with torch.no_grad():
        places = get_uncertain_point_coords_with_randomness(
            found[:, None], None, points, _OVERSAMPLE_RATIO, _IMPORTANCE_RATIO
        )
        truth = point_sample(wanted[:, None].float(), places).squeeze(1)
    logits = point_sample(found[:, None], places).squeeze(1)
    entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(dim=-1)
    return entropy.sum(), dice_loss(logits, truth).sum()
