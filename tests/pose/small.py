"""A pose estimator small enough for any test."""

from __future__ import annotations

import torch

from services.pose.configuration import PoseConfig, SkeletonConfig
from services.pose.structures import PoseTargets
from tests.grounding.small import SMALL

# Rows 0 and 1 mean things, the others keypoints.
CONFIG = PoseConfig(
    **SMALL.model_dump(exclude={"name", "route", "rows_beside"}),
    rows_beside=2,
    instances=5,
    keypoint_layers=2,
    skeletons=(SkeletonConfig(names=("cross", "crosses"), keypoints=("top", "left arm"), bones=((0, 1),)),),
)
# A keypoint's place in the first image; the second image is the same, mirrored.
KEYPOINTS = torch.tensor([[0.3, 0.4], [0.6, 0.7], [0.5, 0.3]])


def targets() -> PoseTargets:
    """One thing in each of two images, meant by the first of two phrases, with three keypoints, one of them hidden."""
    mirrored = torch.stack([1 - KEYPOINTS[:, 0], KEYPOINTS[:, 1]], dim=-1)
    visible = torch.tensor([True, True, False]).expand(2, 1, 3)
    return PoseTargets(
        boxes=torch.tensor([0.5, 0.5, 0.5, 0.5]).expand(2, 1, 4),
        groups=torch.tensor([True, False]).expand(2, 1, 2),
        mask=torch.ones(2, 1, dtype=torch.bool),
        normaliser=2.0,
        keypoints=torch.stack([KEYPOINTS, mirrored])[:, None],
        labelled=torch.ones(2, 1, 3, dtype=torch.bool),
        visible=visible,
        areas=torch.full((2, 1), 0.2),
        sigmas=torch.tensor([0.05, 0.1, 0.2]).expand(2, 3),
    )
