"""The second stage of the pose estimator: groups of one box query and n keypoint queries, refined layer by layer.

As in UniPose (Yang et al. 2023), but that a group's size is the number of keypoints asked for: groups are the batch
dimension of the self-attention, so no query can see another group, and there is no mask that could drift.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from services.grounding import compiled_operations  # noqa: F401  (must come before mmcv's operations)
from services.pose.configuration import PoseConfig

from mmcv.ops import MultiScaleDeformableAttention  # isort: skip

# Keypoint queries look at first around them as far as a quarter of the box's sides; a logarithm.
_START_SIZE = -1.4


class KeypointLayer(nn.Module):
    """Self-attention inside a group, deformable attention to the image, a feed-forward network."""

    def __init__(self, config: PoseConfig, levels: int) -> None:
        super().__init__()
        width = config.width
        self.self_attention = nn.MultiheadAttention(width, config.heads, batch_first=True)
        self.image_attention = MultiScaleDeformableAttention(
            embed_dims=width,
            num_heads=config.heads,
            num_levels=levels,
            num_points=config.sampling_points,
            dropout=0.0,
            batch_first=True,
        )
        self.feed_forward = nn.Sequential(
            nn.Linear(width, config.feed_forward_width), nn.ReLU(), nn.Linear(config.feed_forward_width, width)
        )
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(3)])

    def forward(
        self,
        states: Tensor,
        positions: Tensor,
        masked: Tensor,
        references: Tensor,
        memory: Tensor,
        shapes: Tensor,
        starts: Tensor,
    ) -> Tensor:
        """New states ``[batch, instances, queries, width]``.

        ``positions`` has the shape of ``states``; ``masked`` is ``[batch, queries]`` bool, True where a query must not
        be seen; ``references`` is ``[batch, instances, queries, 4]``; ``memory`` is ``[batch, tokens, width]``.
        """
        batch, instances, queries, width = states.shape
        groups = states.flatten(0, 1)
        placed = groups + positions.flatten(0, 1)
        seen, _ = self.self_attention(
            placed, placed, groups, key_padding_mask=masked.repeat_interleave(instances, dim=0), need_weights=False
        )
        states = self.norms[0](groups + seen).view(batch, instances * queries, width)
        states = self.norms[1](
            # Adds what it is given as query.
            self.image_attention(
                query=states,
                value=memory,
                query_pos=positions.flatten(1, 2),
                reference_points=references.flatten(1, 2)[:, :, None].expand(-1, -1, len(shapes), -1),
                spatial_shapes=shapes,
                level_start_index=starts,
            )
        )
        return self.norms[2](states + self.feed_forward(states)).view(batch, instances, queries, width)


class KeypointDecoder(nn.Module):
    """Places the keypoints of instances, relative to their boxes."""

    def __init__(self, config: PoseConfig, levels: int) -> None:
        super().__init__()
        width = config.width
        self.keypoint_projection = nn.Sequential(nn.Linear(config.link_width, width), nn.LayerNorm(width))
        self.instance_projection = nn.Linear(width, width)
        self.box_projection = nn.Linear(width, width)
        self.start_head = _head(width, 4)
        self.position_head = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, width))
        self.layers = nn.ModuleList([KeypointLayer(config, levels) for _ in range(config.keypoint_layers)])
        # One head for all layers, as in the grounding network.
        self.keypoint_head = _head(width, 2)
        self.box_head = _head(width, 4)
        self.confidence_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(
        self,
        states: Tensor,
        boxes: Tensor,
        links: Tensor,
        link_mask: Tensor,
        memory: Tensor,
        shapes: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, keypoints and confidences of every layer, see ``PoseOutputs``.

        ``states`` ``[batch, instances, width]`` and ``boxes`` ``[batch, instances, 4]`` are the instances; ``links``
        ``[batch, keypoints, link_width]`` with ``link_mask`` says what keypoints are asked for; ``shapes``
        ``[levels, 2]`` int64 are the heights and widths of the levels in ``memory``.
        """
        starts = torch.cat([shapes.new_zeros(1), shapes.prod(dim=1).cumsum(0)[:-1]])
        masked = torch.cat([link_mask.new_zeros(len(link_mask), 1), ~link_mask], dim=1)
        keypoints = self.keypoint_projection(links)[:, None] + self.instance_projection(states)[:, :, None]
        queries = torch.cat([self.box_projection(states)[:, :, None], keypoints], dim=2)
        # Everything is measured in sides of the instance's box, from its centre, so that a small figure's hand is as
        # far off as a large one's.
        frame = boxes.detach()[:, :, None]  # [batch, instances, 1, 4]
        shifts, sizes = self.start_head(keypoints).split(2, dim=-1)
        sizes = sizes + _START_SIZE
        box = torch.zeros_like(frame)
        layers = [(boxes, _place(frame, shifts))]
        confidences = []
        for layer in self.layers:
            # Each layer learns from its own step; the sizes, which have no target, learn from where they make it look.
            box, shifts = box.detach(), shifts.detach()
            places = torch.cat([box, torch.cat([shifts, sizes], dim=-1)], dim=2)
            references = torch.cat([_place(frame, places[..., :2]), _scale(frame, places[..., 2:])], dim=-1)
            queries = layer(queries, self.position_head(places), masked, references, memory, shapes, starts)
            box = box + self.box_head(queries[:, :, :1])
            shifts = shifts + self.keypoint_head(queries[:, :, 1:])
            refined = torch.cat([_place(frame, box[..., :2]), _scale(frame, box[..., 2:])], dim=-1)[:, :, 0]
            layers.append((refined, _place(frame, shifts)))
            confidences.append(self.confidence_head(queries[:, :, 1:]).squeeze(-1))
        all_boxes, all_keypoints = zip(*layers, strict=True)
        return torch.stack(all_boxes), torch.stack(all_keypoints), torch.stack(confidences)


def _place(frame: Tensor, shifts: Tensor) -> Tensor:
    """``[..., 2]`` relative to the padded square, of shifts from the centre of ``frame`` in its sides."""
    return frame[..., :2] + frame[..., 2:] * shifts


def _scale(frame: Tensor, sizes: Tensor) -> Tensor:
    """``[..., 2]`` relative to the padded square, of logarithms of shares of ``frame``'s sides."""
    return frame[..., 2:] * sizes.clamp(-4.0, 1.0).exp()


def _head(width: int, outputs: int) -> nn.Sequential:
    head = nn.Sequential(
        nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )
    nn.init.zeros_(head[-1].bias)
    nn.init.normal_(head[-1].weight, std=1e-3)
    return head
