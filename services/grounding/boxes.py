"""Box arithmetic on tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def to_corners(boxes: Tensor) -> Tensor:
    """``[..., 4]`` centre x, centre y, width, height to x1, y1, x2, y2."""
    centre, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def to_centres(boxes: Tensor) -> Tensor:
    """``[..., 4]`` x1, y1, x2, y2 to centre x, centre y, width, height."""
    first, second = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(first + second) / 2, second - first], dim=-1)


def generalised_iou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised intersection over union in -1..1 of corner boxes ``[..., 4]``, broadcast over leading dimensions."""
    top_left = torch.maximum(first[..., :2], second[..., :2])
    bottom_right = torch.minimum(first[..., 2:], second[..., 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(dim=-1)
    areas = (first[..., 2:] - first[..., :2]).prod(dim=-1) + (second[..., 2:] - second[..., :2]).prod(dim=-1)
    union = areas - intersection
    hull_sides = torch.maximum(first[..., 2:], second[..., 2:]) - torch.minimum(first[..., :2], second[..., :2])
    hull = hull_sides.clamp(min=0).prod(dim=-1)
    return intersection / union.clamp(min=1e-9) - (hull - union) / hull.clamp(min=1e-9)


def plain_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union in 0..1 of corner boxes ``[..., 4]``, broadcast over leading dimensions."""
    top_left = torch.maximum(first[..., :2], second[..., :2])
    bottom_right = torch.minimum(first[..., 2:], second[..., 2:])
    shared = (bottom_right - top_left).clamp(min=0).prod(dim=-1)
    areas = (first[..., 2:] - first[..., :2]).prod(dim=-1) + (second[..., 2:] - second[..., :2]).prod(dim=-1)
    return shared / (areas - shared).clamp(min=1e-9)


def suppress_duplicates(boxes: Tensor, scores: Tensor, iou_limit: float) -> Tensor:
    """Which boxes to keep: ``[candidates]`` bool.

    ``boxes`` is ``[candidates, 4]`` corners, ``scores`` ``[candidates]``. Going down the scores, a box that overlaps a
    kept one by more than ``iou_limit`` is dropped.
    """
    overlaps = (plain_iou(boxes[:, None], boxes[None]) > iou_limit).cpu()
    keep = torch.zeros(len(boxes), dtype=torch.bool)
    for candidate in scores.argsort(descending=True).tolist():
        keep[candidate] = not bool((overlaps[candidate] & keep).any())
    return keep.to(boxes.device)
