"""The detector's losses: Hungarian matching, varifocal, L1 and generalised IoU terms (VisionLLM v2; Grounding DINO).

The papers' class term is the focal loss with a target of 1. Here the target is the overlap that the box reached
(varifocal, Zhang et al. 2021): a score then ranks boxes by how well they fit, which average precision rewards. Or it is
1 for every match: then small and half hidden things weigh as much as others, and fewer scores lie near the limit from
which things are counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from services.grounding.boxes import generalised_iou, plain_iou, to_corners
from services.grounding.configuration import ClassTarget
from services.grounding.structures import GroundingOutputs, GroundingTargets

# Of the matching cost and of the loss: varifocal values are about twice the focal loss's.
CLASS_COST_WEIGHT = 2.0
CLASS_WEIGHT = 1.0
BOX_WEIGHT = 5.0
IOU_WEIGHT = 2.0
_ALPHA = 0.25
_GAMMA = 2.0
_NEGATIVE_WEIGHT = 0.75


@dataclass(frozen=True)
class Assignment:
    """Which object every candidate answers for: its index among the image's objects, -1 for none."""

    # [layers + 1, batch, queries] int64; the encoder's proposals come last.
    candidates: Tensor
    # [batch, denoising] int64, the same in every layer.
    denoising: Tensor
    # How many times the denoising queries repeat the objects; their losses are divided by it.
    repeats: int


def assign(outputs: GroundingOutputs, targets: GroundingTargets) -> Assignment:
    """Match candidates with objects; denoising queries know theirs."""
    denoising = outputs.denoising_count
    matches = match(
        torch.cat([outputs.logits[:, :, denoising:], outputs.proposal_logits[None]]),
        torch.cat([outputs.boxes[:, :, denoising:], outputs.proposal_boxes[None]]),
        targets,
    )
    objects = targets.boxes.shape[1]
    repeats = denoising // (2 * objects)
    assigned = torch.arange(objects, device=matches.device)
    # Layout: groups of (positive objects, negative objects); negatives match nothing.
    layout = torch.cat([assigned, torch.full_like(assigned, -1)]).repeat(repeats)
    per_image = layout[None].expand(targets.mask.shape[0], -1)
    real = targets.mask.gather(1, per_image.clamp(min=0)) & (per_image >= 0)
    return Assignment(matches, torch.where(real, per_image, torch.full_like(per_image, -1)), repeats)


def grounding_loss(
    outputs: GroundingOutputs, targets: GroundingTargets, assignment: Assignment, class_target: ClassTarget
) -> dict[str, Tensor]:
    """Weighted terms summed over decoder layers, the encoder's proposals and the denoising queries.

    Every term is divided by ``targets.normaliser``. Images without any target still teach the class loss.
    """
    terms = {name: outputs.logits.new_zeros(()) for name in ("class", "box", "iou")}
    denoising = outputs.denoising_count
    logits = torch.cat([outputs.logits[:, :, denoising:], outputs.proposal_logits[None]])
    boxes = torch.cat([outputs.boxes[:, :, denoising:], outputs.proposal_boxes[None]])
    for layer_logits, layer_boxes, matches in zip(logits, boxes, assignment.candidates, strict=True):
        layer_terms = _layer_terms(
            layer_logits, layer_boxes, matches, outputs.link_mask, targets, targets.normaliser, class_target
        )
        _add(terms, layer_terms)
    if denoising:
        for layer_logits, layer_boxes in zip(
            outputs.logits[:, :, :denoising], outputs.boxes[:, :, :denoising], strict=True
        ):
            layer_terms = _layer_terms(
                layer_logits,
                layer_boxes,
                assignment.denoising,
                outputs.link_mask,
                targets,
                targets.normaliser * assignment.repeats,
                class_target,
            )
            _add(terms, {f"denoising_{name}": value for name, value in layer_terms.items()})
    return terms


def match(logits: Tensor, boxes: Tensor, targets: GroundingTargets) -> Tensor:
    """Hungarian matching of every layer and image.

    ``logits`` is ``[layers, batch, queries, groups]``, ``boxes`` ``[layers, batch, queries, 4]``. Returns the object
    index of every query, -1 where it matches none: ``[layers, batch, queries]`` int64.
    """
    with torch.no_grad():
        membership = targets.groups.float()
        share = membership / membership.sum(dim=-1, keepdim=True).clamp(min=1)
        class_cost = _class_cost(logits.float()) @ share.transpose(-1, -2)
        box_cost = torch.cdist(boxes.float(), targets.boxes.expand(boxes.shape[0], -1, -1, -1), p=1)
        iou_cost = -generalised_iou(
            to_corners(boxes.float())[..., :, None, :], to_corners(targets.boxes)[:, None, :, :]
        )
        cost = (CLASS_COST_WEIGHT * class_cost + BOX_WEIGHT * box_cost + IOU_WEIGHT * iou_cost).cpu().numpy()
        counts = targets.mask.sum(dim=1).tolist()
        result = torch.full(logits.shape[:3], -1, dtype=torch.long)
        for layer in range(cost.shape[0]):
            for image, count in enumerate(counts):
                if count:
                    queries, objects = linear_sum_assignment(cost[layer, image, :, :count])
                    result[layer, image, queries] = torch.as_tensor(objects)
    return result.to(logits.device)


def varifocal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Varifocal loss, element by element: ``target`` is 0 where nothing matches, else in 0..1.

    Positives are weighted by their target; negatives by 0.75 and the squared probability.
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    negative = _NEGATIVE_WEIGHT * torch.sigmoid(logits.detach()) ** _GAMMA
    return torch.where(target > 0, target, negative) * entropy


def _layer_terms(
    logits: Tensor,
    boxes: Tensor,
    matches: Tensor,
    link_mask: Tensor,
    targets: GroundingTargets,
    normaliser: float,
    class_target: ClassTarget,
) -> dict[str, Tensor]:
    """``matches`` is ``[batch, queries]``: the object of every query or -1."""
    matched = matches >= 0
    objects = matches.clamp(min=0)
    membership = targets.groups.float().gather(1, objects[..., None].expand(-1, -1, targets.groups.shape[-1]))
    wanted = targets.boxes.gather(1, objects[..., None].expand(-1, -1, 4))
    right = matched.to(logits.dtype)
    if class_target == "overlap":
        with torch.no_grad():
            # Never quite 0: a match that misses its object is still a positive, if hardly weighted.
            right = right * plain_iou(to_corners(boxes), to_corners(wanted)).clamp(min=1e-3)
    target = membership * right[..., None]
    class_term = (varifocal_loss(logits, target) * link_mask[:, None, :]).sum()
    found, wanted = boxes[matched], wanted[matched]
    box_term = (found - wanted).abs().sum()
    iou_term = (1 - generalised_iou(to_corners(found), to_corners(wanted))).sum()
    return {
        "class": CLASS_WEIGHT * class_term / normaliser,
        "box": BOX_WEIGHT * box_term / normaliser,
        "iou": IOU_WEIGHT * iou_term / normaliser,
    }


def _class_cost(logits: Tensor) -> Tensor:
    probability = torch.sigmoid(logits)
    positive = _ALPHA * (1 - probability) ** _GAMMA * -functional.logsigmoid(logits)
    negative = (1 - _ALPHA) * probability**_GAMMA * -functional.logsigmoid(-logits)
    return positive - negative


def _add(terms: dict[str, Tensor], more: dict[str, Tensor]) -> None:
    for name, value in more.items():
        terms[name] = terms[name] + value if name in terms else value
