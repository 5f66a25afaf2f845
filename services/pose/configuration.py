"""The pose estimator's sizes and the skeletons it knows, as stored in ``config.json`` beside its weights."""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveInt

from services.grounding.configuration import GroundingConfig
from superlink.configuration import Section


class SkeletonConfig(Section):
    """The keypoints of a kind of thing that the estimator was trained on."""

    # What things of this kind are called, the first name first: ("person", "人").
    names: tuple[str, ...]
    # As the estimator is asked for them: ("nose", "left eye", ...).
    keypoints: tuple[str, ...]
    # Pairs of places in ``keypoints`` between which a line is drawn.
    bones: tuple[tuple[int, int], ...]


class PoseConfig(GroundingConfig):
    """A grounding network whose likeliest candidates become groups of keypoint queries."""

    name: str = "pose"
    # Of the things to find; those of their keypoints follow.
    route: str = "[POSE_OBJECT]"
    keypoint_route: str = "[POSE]"
    # The vocabulary's rows below this number mean things, the others keypoints.
    things: NonNegativeInt = 0
    # Candidates whose keypoints are looked for; UniPose takes 50 of 900.
    instances: PositiveInt = 12
    keypoint_layers: PositiveInt = 3
    # Keypoints of one request, at most, as in UniPose.
    max_keypoints: PositiveInt = 68
    skeletons: tuple[SkeletonConfig, ...] = ()
