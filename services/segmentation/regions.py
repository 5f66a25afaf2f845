"""Visual prompts of the segmenter: what ties a phrase to the place that was marked."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.grounding.boxes import plain_iou, to_corners
from services.runtime.regions import GroupRegions

# Octaves of the sines that encode a region's box.
_OCTAVES = 6
# A phrase with a region starts out meaning whatever candidate lies under the mark: its logit begins at the offset, and
# rises by these with the share of the mark that the candidate's mask and box cover and with the overlap of both boxes.
_COVERED_WEIGHT, _INSIDE_WEIGHT, _OVERLAP_WEIGHT, _OFFSET = 6.0, 3.0, 3.0, -6.0


class RegionPrompt(nn.Module):
    """What the segmenter sees at a region, and where it is, as something to add to the region's phrase."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.projection = nn.Sequential(
            nn.Linear(channels + 8 * _OCTAVES, width), nn.ReLU(), nn.Linear(width, width), nn.LayerNorm(width)
        )

    def forward(self, maps: tuple[Tensor, ...], regions: GroupRegions) -> Tensor:
        """``[batch, regions, width]`` of maps ``[batch, channels_i, rows_i, columns_i]`` over the same square."""
        seen = [torch.einsum("brpc,brp->brc", sample(level, regions), regions.weights) for level in maps]
        octaves = torch.pi * 2.0 ** torch.arange(_OCTAVES, device=regions.places.device)
        angles = (region_boxes(regions)[..., None] * octaves).flatten(-2)
        projected: Tensor = self.projection(torch.cat([*seen, angles.sin(), angles.cos()], dim=-1))
        return projected


class RegionAgreement(nn.Module):
    """How well a candidate lies under a mark, as a logit.

    The layers of Grounding DINO tell no candidate where it is other than by its box, so a phrase alone could never
    mean one of two things that look alike.
    """

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Linear(3, 1)
        with torch.no_grad():
            self.logit.weight.copy_(torch.tensor([[_COVERED_WEIGHT, _INSIDE_WEIGHT, _OVERLAP_WEIGHT]]))
            self.logit.bias.fill_(_OFFSET)

    def forward(self, covered: Tensor, boxes: Tensor, regions: GroupRegions) -> Tensor:
        """``[layers, batch, queries, regions]`` of ``coverage``'s result and boxes ``[layers, batch, queries, 4]``."""
        corners = to_corners(boxes.detach())[..., None, :]
        places = regions.places[:, None]
        inside = (places >= corners[..., None, :2]) & (places <= corners[..., None, 2:])
        share = (inside.all(dim=-1) * regions.weights[:, None]).sum(dim=-1)
        overlap = plain_iou(corners, to_corners(region_boxes(regions))[:, None])
        agreement: Tensor = self.logit(torch.stack([covered, share, overlap], dim=-1)).squeeze(-1)
        return agreement


@torch.no_grad()
def coverage(mask_embeddings: Tensor, pixel_embeddings: Tensor, regions: GroupRegions) -> Tensor:
    """The share of every mark that every candidate's mask covers: ``[layers, batch, queries, regions]`` in 0..1.

    ``mask_embeddings`` is ``[layers, batch, queries, channels]``, ``pixel_embeddings``
    ``[batch, channels, rows, columns]``.
    """
    pixels = sample(pixel_embeddings, regions)
    likely = torch.einsum("lbqc,brpc->lbqrp", mask_embeddings, pixels).sigmoid()
    return torch.einsum("lbqrp,brp->lbqr", likely, regions.weights)


def sample(level: Tensor, regions: GroupRegions) -> Tensor:
    """``[batch, regions, points, channels]`` of a map ``[batch, channels, rows, columns]``, bilinearly."""
    sampled = functional.grid_sample(level, regions.places * 2 - 1, padding_mode="border", align_corners=False)
    return sampled.permute(0, 2, 3, 1)


def region_boxes(regions: GroupRegions) -> Tensor:
    """Centre x, centre y, width and height ``[batch, regions, 4]`` of the points that regions are looked at."""
    unused = (regions.weights == 0)[..., None]
    first = regions.places.masked_fill(unused, torch.inf).amin(dim=-2)
    last = regions.places.masked_fill(unused, -torch.inf).amax(dim=-2)
    boxes = torch.cat([(first + last) / 2, last - first], dim=-1)
    # Of padding, which has no points.
    return boxes.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
