"""What goes into and comes out of the pose estimator."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from services.grounding.structures import GroundingOutputs, GroundingTargets


@dataclass(frozen=True)
class PoseOutputs:
    """Raw outputs of a forward pass: candidates, and the poses of the likeliest ``instances`` of them.

    Layer 0 is where keypoint queries start from. Coordinates are relative to the padded square.
    """

    grounding: GroundingOutputs
    # [batch, instances, groups]: the logits of the chosen candidates in the grounding network's last layer.
    logits: Tensor
    # [layers + 1, batch, instances, 4] centre x, centre y, width, height.
    boxes: Tensor
    # [layers + 1, batch, instances, keypoints, 2] x, y.
    keypoints: Tensor
    # [layers, batch, instances, keypoints] logits of the keypoint's confidence.
    confidences: Tensor
    # [batch, keypoints] bool: which keypoints are asked for.
    keypoint_mask: Tensor


@dataclass(frozen=True)
class PoseTargets(GroundingTargets):
    """Ground truth of a batch with keypoints, in the order in which they are asked for."""

    # [batch, objects, keypoints, 2] x, y relative to the padded square.
    keypoints: Tensor
    # [batch, objects, keypoints] bool: its place is known, be it seen or hidden.
    labelled: Tensor
    # [batch, objects, keypoints] bool: it is seen.
    visible: Tensor
    # [batch, objects] visible area relative to that of the padded square.
    areas: Tensor
    # [batch, keypoints]: how far annotators scatter around a keypoint, relative to the root of the area. It belongs to
    # what the keypoint is, wherever in the request it stands.
    sigmas: Tensor
