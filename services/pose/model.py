"""The pose estimator: an image, links of things and links of keypoints in, things with their keypoints out.

UniPose's two stages (Yang et al. 2023; VisionLLM v2 section 3.2): the grounding network finds things, and its likeliest
candidates become instances, each with one box query and one query for every keypoint that is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from services.grounding.losses import assign, grounding_loss
from services.grounding.network import GroundingDecoder
from services.grounding.structures import GroundingOptions, GroundingResult
from services.pose.configuration import PoseConfig
from services.pose.keypoint_decoder import KeypointDecoder
from services.pose.losses import pose_loss
from services.pose.structures import PoseOutputs, PoseTargets
from services.runtime.decoder import Skeleton, pad_links


class PoseEstimator(GroundingDecoder[PoseOutputs]):
    """A grounding network that says where the keypoints of its candidates are."""

    config_class = PoseConfig
    config: PoseConfig

    def __init__(self, config: PoseConfig) -> None:
        super().__init__(config)
        self.spec = replace(
            self.spec,
            routes=(config.route, config.keypoint_route),
            keypoint_route=config.keypoint_route,
            skeletons=tuple(Skeleton(each.names, each.keypoints, each.bones) for each in config.skeletons),
        )
        self.keypoint_decoder = KeypointDecoder(config, levels=self.level_embedding.shape[0])

    def forward(
        self,
        features: tuple[Tensor, ...],
        links: Tensor,
        link_mask: Tensor,
        names_keypoint: Tensor,
        targets: PoseTargets | None = None,
    ) -> PoseOutputs:
        """See ``Decoder.forward`` and ``GroundingDecoder.ground``.

        Every keypoint of ``names_keypoint`` is looked for on every thing. Outputs have the things among the groups and
        the keypoints apart, each in their order.
        """
        things, thing_mask = _pick(links, link_mask & ~names_keypoint)
        keypoint_links, keypoint_mask = _pick(links, link_mask & names_keypoint)
        grounding = self.ground(features, things, thing_mask, targets)
        logits, boxes, states = (
            part[-1, :, grounding.denoising_count :] for part in (grounding.logits, grounding.boxes, grounding.states)
        )
        count = min(self.config.instances, logits.shape[1])
        chosen = logits.detach().amax(dim=-1).topk(count, dim=1).indices[..., None]
        shapes = torch.tensor([feature.shape[-2:] for feature in features], device=logits.device)
        all_boxes, keypoints, confidences = self.keypoint_decoder(
            states.gather(1, chosen.expand(-1, -1, states.shape[-1])),
            boxes.gather(1, chosen.expand(-1, -1, 4)),
            keypoint_links,
            keypoint_mask,
            grounding.memory,
            shapes,
        )
        return PoseOutputs(
            grounding=grounding,
            logits=logits.gather(1, chosen.expand(-1, -1, logits.shape[-1])),
            boxes=all_boxes,
            keypoints=keypoints,
            confidences=confidences,
            keypoint_mask=keypoint_mask,
        )

    def loss(self, outputs: PoseOutputs, targets: PoseTargets) -> dict[str, Tensor]:
        """See ``grounding_loss`` and ``pose_loss``."""
        assignment = assign(outputs.grounding, targets)
        return {
            **grounding_loss(outputs.grounding, targets, assignment, self.config.class_target),
            **pose_loss(outputs, targets),
        }

    @torch.no_grad()
    def decode(
        self,
        outputs: PoseOutputs,
        sizes: Sequence[tuple[int, int]],
        group_counts: Sequence[int],
        options: Sequence[GroundingOptions],
    ) -> list[GroundingResult]:
        """One result an image; ``group_counts`` says how many groups of each row are real.

        Groups and presence are those of things, which come before the keypoints.
        """
        instances = replace(outputs.grounding, logits=outputs.logits[None], boxes=outputs.boxes[-1:])
        results = []
        for row, (size, groups, option) in enumerate(zip(sizes, group_counts, options, strict=True)):
            asked = outputs.keypoint_mask[row]
            found = self.select(instances, row, groups - int(asked.sum()), option)
            longer = max(size)
            bounds = found.corners.new_tensor([size[1], size[0]])
            places = (outputs.keypoints[-1, row, found.queries][:, asked].float() * longer).clamp(min=0)
            confidences = outputs.confidences[-1, row, found.queries][:, asked].float().sigmoid()
            keypoints = torch.cat([torch.minimum(places, bounds), confidences[..., None]], dim=-1)
            boxes = torch.minimum((found.corners * longer).clamp(min=0), bounds.repeat(2))
            results.append(
                GroundingResult(
                    boxes=boxes.cpu().numpy().astype(np.float32),
                    scores=found.scores.cpu().numpy().astype(np.float32),
                    groups=found.groups.cpu().numpy(),
                    presence_scores=found.presence_scores.cpu().numpy(),
                    presence_found=found.presence_found.cpu().numpy(),
                    keypoints=keypoints.cpu().numpy().astype(np.float32),
                )
            )
        return results


def _pick(links: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The links of ``wanted`` ``[batch, groups]`` bool, closed up, and their mask; see ``pad_links``."""
    return pad_links([row[mask] for row, mask in zip(links, wanted, strict=True)])
