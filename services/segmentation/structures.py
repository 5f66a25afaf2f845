"""What goes into and comes out of the segmenter."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from services.grounding.structures import GroundingOutputs, GroundingTargets
from services.runtime.regions import GroupRegions


@dataclass(frozen=True)
class SegmentationOutputs:
    """Raw outputs of a forward pass: candidates, and what their masks are made of."""

    grounding: GroundingOutputs
    # [layers, batch, queries, mask_width].
    mask_embeddings: Tensor
    # [batch, mask_width, side / 4, side / 4].
    pixel_embeddings: Tensor
    # [batch, queries, regions] in 0..1, the share of every mark that a candidate's mask covers, and the regions; None
    # where no phrase has a region.
    covered: Tensor | None = None
    regions: GroupRegions | None = None


@dataclass(frozen=True)
class SegmentationTargets(GroundingTargets):
    """Ground truth of a batch with masks."""

    # [batch, objects, side, side] bool, in the padded square.
    masks: Tensor
