"""The pose estimator's sizes and the skeletons it knows, as stored in ``config.json`` beside its weights."""

from __future__ import annotations

from pydantic import PositiveInt

from services.grounding.configuration import GroundingConfig
from superlink.configuration import Section


class SkeletonConfig(Section):
    """The keypoints of a kind of thing that the estimator was trained on, in one language; see ``Skeleton``."""

    names: tuple[str, ...]
    keypoints: tuple[str, ...]
    bones: tuple[tuple[int, int], ...]


class PoseConfig(GroundingConfig):
    """A grounding network whose likeliest candidates become groups of keypoint queries."""

    name: str = "pose"
    # Of the things to find; those of their keypoints follow.
    route: str = "[POSE_OBJECT]"
    keypoint_route: str = "[POSE]"
    # Candidates whose keypoints are looked for; UniPose takes 50 of 900.
    instances: PositiveInt = 12
    keypoint_layers: PositiveInt = 3
    skeletons: tuple[SkeletonConfig, ...] = ()
