"""Pose losses: keypoint L1 and object keypoint similarity (UniPose; VisionLLM v2), and a learned confidence."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from services.grounding.boxes import generalised_iou, plain_iou, to_corners
from services.grounding.losses import BOX_WEIGHT, IOU_WEIGHT, match
from services.pose.structures import PoseOutputs, PoseTargets

KEYPOINT_WEIGHT = 10.0
# The paper's weight. Its published code multiplies by the keypoint weight instead.
OKS_WEIGHT = 4.0
CONFIDENCE_WEIGHT = 2.0
# An instance whose box overlaps a thing by so much learns its keypoints, be another matched to it or not.
_SAME_THING = 0.6
_LEAST_OKS = 1e-6


def pose_loss(outputs: PoseOutputs, targets: PoseTargets) -> dict[str, Tensor]:
    """Weighted terms "instance_box", "instance_iou", "keypoint", "oks" and "confidence".

    All are summed over layers and divided by ``targets.normaliser``.
    """
    # What the box queries start from is the grounding network's business; what keypoint queries start from is not.
    [matches] = match(outputs.logits[None], outputs.boxes[:1], targets)
    image, instance = (matches >= 0).nonzero(as_tuple=True)
    boxes, wanted_boxes = outputs.boxes[1:, image, instance], targets.boxes[image, matches[image, instance]]
    image, instance, thing = _all_near(matches, outputs.boxes[0], targets).unbind(dim=1)
    found, wanted = outputs.keypoints[:, image, instance], targets.keypoints[image, thing]
    labelled, areas, sigmas = targets.labelled[image, thing], targets.areas[image, thing], targets.sigmas[image]
    similarity = keypoint_similarity(found, wanted, areas, sigmas)
    overlap = generalised_iou(to_corners(boxes), to_corners(wanted_boxes.expand_as(boxes)))
    has_keypoints = labelled.any(dim=-1)
    terms = {
        "instance_box": BOX_WEIGHT * (boxes - wanted_boxes).abs().sum(),
        "instance_iou": IOU_WEIGHT * (1 - overlap).sum(),
        "keypoint": KEYPOINT_WEIGHT * ((found - wanted).abs().sum(dim=-1) * labelled).sum(),
        "oks": OKS_WEIGHT * ((1 - object_similarity(similarity, labelled)) * has_keypoints).sum(),
    }
    # A keypoint that is hidden, or that things of this kind have not, is not to be relied on.
    goal = similarity[1:].detach() * targets.visible[image, thing]
    entropy = functional.binary_cross_entropy_with_logits(
        outputs.confidences[:, image, instance], goal, reduction="none"
    )
    asked = outputs.keypoint_mask[image]
    terms["confidence"] = CONFIDENCE_WEIGHT * ((entropy * asked).sum(dim=-1) / asked.sum(dim=-1).clamp(min=1)).sum()
    return {name: term / targets.normaliser for name, term in terms.items()}


def _all_near(matches: Tensor, boxes: Tensor, targets: PoseTargets) -> Tensor:
    """Image, instance and thing of all that learn keypoints, ``[pairs, 3]``: what matches, and near doubles of it.

    One figure an image teaches little; the doubles that every candidate network has see it from nearly the same box.
    ``matches`` is ``[batch, instances]``, -1 where nothing matches; ``boxes`` ``[batch, instances, 4]``.
    """
    overlaps = plain_iou(to_corners(boxes)[:, :, None], to_corners(targets.boxes)[:, None])
    overlap, nearest = overlaps.masked_fill(~targets.mask[:, None], 0.0).max(dim=-1)
    things = torch.where((matches < 0) & (overlap >= _SAME_THING), nearest, matches)
    image, instance = (things >= 0).nonzero(as_tuple=True)
    return torch.stack([image, instance, things[image, instance]], dim=1)


def keypoint_similarity(found: Tensor, wanted: Tensor, areas: Tensor, sigmas: Tensor) -> Tensor:
    """COCO's exp(-d^2 / (2 area (2 sigma)^2)) of every keypoint, in 0..1: ``[..., things, keypoints]``.

    ``found`` ``[..., things, keypoints, 2]`` and ``wanted`` ``[things, keypoints, 2]`` are places; ``areas``
    ``[things]`` are in the square of their unit; ``sigmas`` is ``[things, keypoints]``.
    """
    distance = (found - wanted).square().sum(dim=-1)
    return torch.exp(-distance / (2 * areas[:, None] * (2 * sigmas).square()).clamp(min=1e-12))


def object_similarity(similarity: Tensor, labelled: Tensor) -> Tensor:
    """Object keypoint similarity ``[..., things]``: the mean over labelled keypoints, 1e-6 at least."""
    known = labelled.sum(dim=-1).clamp(min=1)
    return ((similarity * labelled).sum(dim=-1) / known).clamp(min=_LEAST_OKS)
