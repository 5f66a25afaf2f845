"""Denoising queries: noisy copies of the ground truth that the decoder learns to repair (DINO; VisionLLM v2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from services.grounding.boxes import to_centres, to_corners
from services.grounding.structures import GroundingTargets

# Share of denoising queries whose phrase is exchanged for a random one of the same prompt.
_FLIP_PROBABILITY = 0.25


@dataclass(frozen=True)
class Noise:
    """Denoising queries, laid out as repeats of (positive objects, negative objects)."""

    # [batch, denoising, width] and [batch, denoising, 4].
    content: Tensor
    boxes: Tensor
    # [denoising + queries, denoising + queries] bool, True where a query must not look.
    attention_mask: Tensor


class DenoisingQueries(nn.Module):
    """Makes denoising queries; holds no weights: their content is the phrase itself."""

    def __init__(self, most_queries: int) -> None:
        super().__init__()
        self.most_queries = most_queries

    def forward(self, targets: GroundingTargets, phrases: Tensor, link_mask: Tensor, queries: int) -> Noise | None:
        """Noise for a batch, or None when no image has a target.

        ``phrases`` ``[batch, groups, width]`` are the projected link embeddings before the encoder; ``queries`` is the
        number of ordinary queries, which never see the noise.
        """
        batch, objects = targets.mask.shape
        if objects == 0 or not bool(targets.mask.any()):
            return None
        repeats = max(1, self.most_queries // (2 * objects))
        count = repeats * 2 * objects
        device = phrases.device
        first_group = targets.groups.float().argmax(dim=-1).repeat(1, 2 * repeats)
        random_group = (torch.rand(batch, count, device=device) * link_mask.sum(dim=1, keepdim=True)).long()
        flipped = torch.rand(batch, count, device=device) < _FLIP_PROBABILITY
        group = torch.where(flipped, random_group, first_group)
        content = phrases.gather(1, group[..., None].expand(-1, -1, phrases.shape[-1]))
        negative = (torch.arange(count, device=device) // objects % 2).float()[None, :, None]
        boxes = targets.boxes.repeat(1, 2 * repeats, 1)
        # Corners move by 0..1 half sides for positives and 1..2 for negatives, with a random sign.
        shift = (torch.rand(batch, count, 4, device=device) + negative) * boxes[..., 2:].repeat(1, 1, 2) / 2
        sign = torch.where(torch.rand(batch, count, 4, device=device) < 0.5, -1.0, 1.0)
        corners = (to_corners(boxes) + sign * shift).clamp(0, 1)
        corners = torch.cat(
            [torch.minimum(corners[..., :2], corners[..., 2:]), torch.maximum(corners[..., :2], corners[..., 2:])], -1
        )
        noisy = to_centres(corners).clamp(min=1e-3, max=1 - 1e-3)
        return Noise(
            content=content, boxes=noisy, attention_mask=_attention_mask(repeats, 2 * objects, queries, device)
        )


def _attention_mask(repeats: int, size: int, queries: int, device: torch.device) -> Tensor:
    """Each repeat sees itself and the ordinary queries; ordinary queries see no noise."""
    owner = torch.cat(
        [torch.arange(repeats, device=device).repeat_interleave(size), torch.full((queries,), -1, device=device)]
    )
    blocked = owner[:, None] != owner[None, :]
    blocked[: repeats * size, repeats * size :] = False
    return blocked
