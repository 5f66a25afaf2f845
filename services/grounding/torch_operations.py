"""The compiled operations that two-stage detectors of mmdet cannot do without, in torch.

They follow the calling convention of ``mmcv._ext`` and stand in where mmcv was installed without it: slower, on any
device, with the same results.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices ``[kept]`` of the ``boxes`` ``[number, 4]`` (corners) that no likelier one overlaps by more.

    The likeliest comes first. ``offset`` is what a box is longer than the distance of its corners.
    """
    order = scores.argsort(descending=True, stable=True)
    corners = boxes[order]
    sides = (corners[:, 2:] - corners[:, :2] + offset).clamp(min=0)
    areas = sides.prod(dim=1)
    kept = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    for place in range(len(order)):
        if not kept[place]:
            continue
        least = torch.maximum(corners[place, :2], corners[place + 1 :, :2])
        most = torch.minimum(corners[place, 2:], corners[place + 1 :, 2:])
        shared = (most - least + offset).clamp(min=0).prod(dim=1)
        kept[place + 1 :] &= shared <= iou_threshold * (areas[place] + areas[place + 1 :] - shared)
    return order[kept]


def roi_align_forward(
    features: Tensor,
    regions: Tensor,
    output: Tensor,
    argmax_y: Tensor,  # noqa: ARG001  (of pooling by maxima, which no detector here uses)
    argmax_x: Tensor,  # noqa: ARG001
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign (He et al. 2017): fill ``output`` ``[regions, channels, aligned_height, aligned_width]``.

    ``features`` ``[batch, channels, height, width]``; ``regions`` ``[regions, 5]``: image and corners in pixels.
    Raises NotImplementedError for pooling by maxima.
    """
    _refuse_maxima(pool_mode)
    bins = (aligned_height, aligned_width)
    output.copy_(_align(features, regions, bins, spatial_scale, sampling_ratio, aligned))


def roi_align_backward(
    gradient: Tensor,
    regions: Tensor,
    argmax_y: Tensor,  # noqa: ARG001
    argmax_x: Tensor,  # noqa: ARG001
    features_gradient: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """The gradient of ``roi_align_forward`` by its features, into ``features_gradient``."""
    _refuse_maxima(pool_mode)
    bins = (aligned_height, aligned_width)
    with torch.enable_grad():
        # The operation is linear, so its gradient is the same wherever it is taken.
        features = torch.zeros_like(features_gradient).requires_grad_()
        pooled = _align(features, regions, bins, spatial_scale, sampling_ratio, aligned)
        features_gradient.copy_(torch.autograd.grad(pooled, features, gradient)[0])


def _refuse_maxima(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError("roi_align with pool_mode='max' needs mmcv's compiled operations.")


def _align(
    features: Tensor, regions: Tensor, bins: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    _, channels, height, width = features.shape
    rows = features.permute(0, 2, 3, 1).reshape(-1, channels)
    corners = regions[:, 1:] * scale - (0.5 if aligned else 0.0)
    extents = corners[:, 2:] - corners[:, :2]
    if not aligned:
        extents = extents.clamp(min=1)
    # [regions, 2]: x and y.
    sides = extents / extents.new_tensor((bins[1], bins[0]))
    counts = sides.ceil().long() if sampling_ratio <= 0 else torch.full_like(sides, sampling_ratio, dtype=torch.long)
    counts = counts.clamp(min=1)
    pooled = features.new_zeros(len(regions), channels, *bins)
    for across, down in counts.unique(dim=0).tolist():
        own = (counts == counts.new_tensor((across, down))).all(dim=1)
        x, x_shares = _samples(corners[own, 0], sides[own, 0], bins[1], across, width)
        y, y_shares = _samples(corners[own, 1], sides[own, 1], bins[0], down, height)
        images = regions[own, 0].long()[:, None, None, None, None]
        # [regions, rows of bins, columns of bins, samples down, samples across]
        places = (images * height + y[:, :, None, :, None]) * width + x[:, None, :, None, :]
        shares = y_shares[:, :, None, :, None] * x_shares[:, None, :, None, :]
        bags = places.flatten(3).flatten(0, 2)
        summed = functional.embedding_bag(bags, rows, mode="sum", per_sample_weights=shares.reshape(bags.shape))
        pooled[own] = summed.unflatten(0, (-1, *bins)).permute(0, 3, 1, 2)
    return pooled


def _samples(first: Tensor, side: Tensor, bins: int, count: int, extent: int) -> tuple[Tensor, Tensor]:
    """Along one axis: the two neighbours of each sample and their shares, ``[regions, bins, 2 · count]`` each."""
    steps = (torch.arange(count, device=first.device) + 0.5) / count + torch.arange(bins, device=first.device)[:, None]
    places = first[:, None, None] + side[:, None, None] * steps
    inside = (places >= -1) & (places <= extent)
    places = places.clamp(0, extent - 1)
    before = places.floor().long()
    after = (before + 1).clamp(max=extent - 1)
    share = places - before
    shares = torch.cat([1 - share, share], dim=-1) * torch.cat([inside, inside], dim=-1) / count
    return torch.cat([before, after], dim=-1), shares
