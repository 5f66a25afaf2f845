"""The detector: an image and link embeddings in, boxes out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from services.detection.configuration import DetectorConfig
from services.grounding.losses import assign, grounding_loss
from services.grounding.network import GroundingDecoder
from services.grounding.structures import GroundingOptions, GroundingOutputs, GroundingResult, GroundingTargets


class Detector(GroundingDecoder[GroundingOutputs]):
    """A grounding network that answers with the boxes of its candidates."""

    config_class = DetectorConfig

    def forward(
        self,
        features: tuple[Tensor, ...],
        links: Tensor,
        link_mask: Tensor,
        targets: GroundingTargets | None = None,
    ) -> GroundingOutputs:
        """See ``GroundingDecoder.ground``."""
        return self.ground(features, links, link_mask, targets)

    def loss(self, outputs: GroundingOutputs, targets: GroundingTargets) -> dict[str, Tensor]:
        """See ``grounding_loss``."""
        return grounding_loss(outputs, targets, assign(outputs, targets), self.config.class_target)

    @torch.no_grad()
    def decode(
        self,
        outputs: GroundingOutputs,
        sizes: Sequence[tuple[int, int]],
        group_counts: Sequence[int],
        options: Sequence[GroundingOptions],
    ) -> list[GroundingResult]:
        """One result an image. ``group_counts`` says how many groups of each row are real."""
        results = []
        for row, ((height, width), groups, option) in enumerate(zip(sizes, group_counts, options, strict=True)):
            found = self.select(outputs, row, groups, option)
            boxes = found.corners * max(height, width)
            limits = torch.tensor([width, height, width, height], dtype=torch.float32, device=boxes.device)
            results.append(
                GroundingResult(
                    boxes=torch.minimum(boxes.clamp(min=0), limits).cpu().numpy(),
                    scores=found.scores.cpu().numpy(),
                    groups=found.groups.cpu().numpy(),
                    presence_scores=found.presence_scores.cpu().numpy(),
                    presence_found=found.presence_found.cpu().numpy(),
                )
            )
        return results
