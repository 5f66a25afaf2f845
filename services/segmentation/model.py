"""The segmenter: an image and link embeddings in, masks out.

Mask queries as in Mask2Former and Mask DINO (VisionLLM v2 section 3.2): the candidates of the grounding network have
mask embeddings, a pixel decoder gives every fourth pixel an embedding, and their products are the masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from services.grounding.boxes import to_corners
from services.grounding.losses import assign, grounding_loss
from services.grounding.network import GroundingDecoder
from services.grounding.structures import GroundingOptions, GroundingResult, Selection
from services.runtime.regions import GroupRegions
from services.segmentation.configuration import SegmenterConfig
from services.segmentation.losses import mask_loss
from services.segmentation.regions import RegionAgreement, RegionPrompt, coverage
from services.segmentation.run_length import encode_mask
from services.segmentation.structures import SegmentationOutputs, SegmentationTargets

# Stride of the masks.
_MASK_STRIDE = 4

# A mask reaches beyond its box by at most this share of the box's sides.
_MARGIN = 0.2
# Logit of pixels that a mask never has.
_NEVER = -30.0


class Segmenter(GroundingDecoder[SegmentationOutputs]):
    """A grounding network that answers with the masks of its candidates."""

    config_class = SegmenterConfig
    config: SegmenterConfig
    backbone_stages = (0, 1, 2, 3)
    takes_regions = True

    def __init__(self, config: SegmenterConfig) -> None:
        super().__init__(config)
        width = config.width
        self.lateral = nn.Sequential(nn.Conv2d(config.backbone_base_channels, width, 1), nn.GroupNorm(16, width))
        self.pixel_decoder = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(16, width),
            nn.ReLU(),
            nn.Conv2d(width, config.mask_width, 1),
        )
        self.mask_head = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, config.mask_width)
        )
        self.region_prompt = RegionPrompt(config.backbone_base_channels + width, width)
        self.region_agreement = RegionAgreement()

    def encode(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """``[batch, 3, side, side]`` to the backbone's map of stride 4 and the three levels of the neck."""
        fine, *levels = self.backbone(pixels.contiguous(memory_format=torch.channels_last))
        return fine, *self.neck(tuple(levels))

    def forward(
        self,
        features: tuple[Tensor, ...],
        links: Tensor,
        link_mask: Tensor,
        targets: SegmentationTargets | None = None,
        regions: GroupRegions | None = None,
    ) -> SegmentationOutputs:
        """See ``Decoder.forward`` and ``GroundingDecoder.ground``."""
        fine, *levels = features
        prompts = None
        if regions is not None:
            owners = regions.owners(links.shape[1])
            prompts = owners.transpose(1, 2) @ self.region_prompt((fine, levels[0]), regions)
        grounding = self.ground(tuple(levels), links, link_mask, targets, prompts)
        rows, columns = levels[0].shape[-2:]
        finest = grounding.memory[:, : rows * columns].transpose(1, 2).unflatten(2, (rows, columns))
        enlarged = functional.interpolate(finest, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        mask_embeddings = self.mask_head(grounding.states)
        pixel_embeddings = self.pixel_decoder(self.lateral(fine) + enlarged)
        covered = None
        if regions is not None:
            covered = coverage(mask_embeddings, pixel_embeddings, regions)
            agreement = self.region_agreement(covered, grounding.boxes, regions)
            grounding = replace(grounding, logits=grounding.logits + agreement @ owners)
            covered = covered[-1]
        return SegmentationOutputs(grounding, mask_embeddings, pixel_embeddings, covered, regions)

    def loss(self, outputs: SegmentationOutputs, targets: SegmentationTargets) -> dict[str, Tensor]:
        """See ``grounding_loss`` and ``mask_loss``."""
        assignment = assign(outputs.grounding, targets)
        return {
            **grounding_loss(outputs.grounding, targets, assignment, self.config.class_target),
            **mask_loss(outputs, targets, assignment, self.config.mask_points),
        }

    @torch.no_grad()
    def decode(
        self,
        outputs: SegmentationOutputs,
        sizes: Sequence[tuple[int, int]],
        group_counts: Sequence[int],
        options: Sequence[GroundingOptions],
    ) -> list[GroundingResult]:
        """One result an image. ``group_counts`` says how many groups of each row are real.

        Only masks that are reported are enlarged, one after the other.
        """
        results = []
        for row, (size, groups, option) in enumerate(zip(sizes, group_counts, options, strict=True)):
            found = self.select(outputs.grounding, row, groups, option)
            if outputs.regions is not None and outputs.covered is not None:
                found = self._one_a_mark(found, outputs, row, option)
            embeddings = outputs.mask_embeddings[-1, row, found.queries].float()
            logits = torch.einsum("fc,chw->fhw", embeddings, outputs.pixel_embeddings[row].float())
            logits = logits.masked_fill(~self._near(found.corners, logits.shape[-1]), _NEVER)
            finds = self._phrases(found, logits, size) if option.semantic else self._instances(found, logits, size)
            # What has no pixel is no find.
            finds = [find for find in finds if find[0].any()]
            results.append(
                GroundingResult(
                    masks=tuple(encode_mask(mask) for mask, _, _ in finds),
                    boxes=np.array([_box(mask) for mask, _, _ in finds], dtype=np.float32).reshape(-1, 4),
                    scores=np.array([score for _, score, _ in finds], dtype=np.float32),
                    groups=np.array([group for _, _, group in finds], dtype=np.int64),
                    presence_scores=found.presence_scores.cpu().numpy(),
                    presence_found=found.presence_found.cpu().numpy(),
                )
            )
        return results

    def _near(self, corners: Tensor, cells: int) -> Tensor:
        """``[finds, cells, cells]`` bool: the cells of the padded square in and around boxes ``[finds, 4]``.

        Mask products know nothing of places, and like things share theirs; a find's own box is the better judge.
        """
        centres = (torch.arange(cells, device=corners.device) + 0.5) / cells
        margins = ((corners[:, 2:] - corners[:, :2]) * _MARGIN).clamp(min=1 / cells)
        first, last = corners[:, :2] - margins, corners[:, 2:] + margins
        columns, rows = ((centres >= first[:, axis, None]) & (centres <= last[:, axis, None]) for axis in (0, 1))
        return rows[:, :, None] & columns[:, None, :]

    def _one_a_mark(
        self, found: Selection, outputs: SegmentationOutputs, row: int, option: GroundingOptions
    ) -> Selection:
        """``found``, with exactly one find for every phrase that has a region: the best candidate under its mark.

        Who marks something means something, so a mark is answered however low the score, unless a threshold was asked
        for.
        """
        calibration = self.config.detection_calibration
        marked = outputs.regions.groups[row]
        real = marked >= 0
        groups = marked[real]
        if not len(groups):
            return found
        logits = outputs.grounding.logits[-1, row][:, groups].float()
        scores = torch.sigmoid(calibration.scale * logits + calibration.bias)
        queries = (scores * outputs.covered[row][:, real]).argmax(dim=0)
        scores = scores[queries, torch.arange(len(groups), device=queries.device)]
        asked = scores >= (option.score_threshold or 0.0)
        others = ~torch.isin(found.groups, groups)
        corners = to_corners(outputs.grounding.boxes[-1, row].float())
        order = torch.cat([found.scores[others], scores[asked]]).argsort(descending=True, stable=True)
        order = order[: option.most_finds]
        queries = torch.cat([found.queries[others], queries[asked]])[order]
        presence_scores, presence_found = found.presence_scores.clone(), found.presence_found.clone()
        presence_scores[groups], presence_found[groups] = scores, True
        return Selection(
            queries=queries,
            corners=corners[queries],
            scores=torch.cat([found.scores[others], scores[asked]])[order],
            groups=torch.cat([found.groups[others], groups[asked]])[order],
            presence_scores=presence_scores,
            presence_found=presence_found,
        )

    def _instances(
        self, found: Selection, logits: Tensor, size: tuple[int, int]
    ) -> list[tuple[NDArray[np.bool_], float, int]]:
        """Mask ``[height, width]``, score and group of every find; ``logits`` is ``[found, h, w]``."""
        return [
            ((self._enlarged(mask[None], size)[0] > 0).cpu().numpy(), score, group)
            for mask, score, group in zip(logits, found.scores.tolist(), found.groups.tolist(), strict=True)
        ]

    def _phrases(
        self, found: Selection, logits: Tensor, size: tuple[int, int]
    ) -> list[tuple[NDArray[np.bool_], float, int]]:
        """Mask, score and group of every phrase that has pixels: a pixel belongs to its likeliest phrase, if to any.

        A phrase's likelihood at a pixel is the sum over its finds of score times mask probability (Mask2Former). What
        no find's mask covers belongs to none, however likely the phrase.
        """
        present = sorted(set(found.groups.tolist()))
        if not present:
            return []
        finds_of = [found.groups == group for group in present]
        likelihoods = [(found.scores[mine, None, None] * logits[mine].sigmoid()).sum(dim=0) for mine in finds_of]
        owner = self._enlarged(torch.stack(likelihoods), size).argmax(dim=0)
        covered = self._enlarged(torch.stack([logits[mine].amax(dim=0) for mine in finds_of]), size) > 0
        owner = owner.masked_fill(~covered.gather(0, owner[None])[0], -1)
        scores = found.presence_scores.tolist()
        finds = [((owner == place).cpu().numpy(), scores[group], group) for place, group in enumerate(present)]
        return sorted(finds, key=lambda find: -find[1])

    def _enlarged(self, maps: Tensor, size: tuple[int, int]) -> Tensor:
        """``[maps, h, w]`` over the padded square to ``[maps, height, width]`` over the original, bilinearly."""
        height, width = size
        cells = self.config.image_side / _MASK_STRIDE / max(height, width)
        rows = (torch.arange(height, device=maps.device) + 0.5) * cells
        columns = (torch.arange(width, device=maps.device) + 0.5) * cells
        places = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1) / maps.shape[-1] * 2 - 1
        enlarged: Tensor = functional.grid_sample(maps[None], places[None], padding_mode="border", align_corners=False)
        return enlarged[0]


def _box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
