"""The sizes of a grounding network, as stored in ``config.json`` beside its weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from superlink.configuration import Section

# What the score of a right candidate learns: how well its box fits, or that it is right; see ``losses``.
ClassTarget = Literal["overlap", "match"]


class Calibration(Section):
    """Maps a logit to a probability: ``sigmoid(scale * logit + bias)``; fitted on scenes after training."""

    scale: float = 1.0
    bias: float = 0.0


class GroundingConfig(Section):
    """A Grounding-DINO-style network whose text features are link embeddings."""

    name: str
    version: str = "0"
    # Must equal the adapter version of the MLLM's projection head for this decoder.
    adapter_version: str = "0"
    route: str
    queries_per_group: PositiveInt = 4
    link_width: PositiveInt = 128
    max_groups: PositiveInt = 128
    # Categories that the detector was trained with; their rows stand beside the links of every request.
    vocabulary: NonNegativeInt = 0
    # How many of the vocabulary's first rows stand there; unset: all.
    rows_beside: NonNegativeInt | None = None
    # A row closer to one of a request's links than this means the same and stays away. Rows are 12 apart or more; the
    # links of category names, also with an attribute, lie within 4 of their row.
    vocabulary_radius: float = Field(default=8.0, ge=0)
    # Images are scaled to this longer side and padded to a square of it.
    image_side: PositiveInt = 192
    backbone_depth: PositiveInt = 18
    backbone_base_channels: PositiveInt = 32
    width: PositiveInt = 128
    heads: PositiveInt = 8
    feed_forward_width: PositiveInt = 256
    encoder_layers: PositiveInt = 2
    decoder_layers: PositiveInt = 3
    sampling_points: PositiveInt = 4
    queries: PositiveInt = 40
    # Queries spent on denoising in training, positive and negative ones together.
    denoising_queries: PositiveInt = 32
    class_target: ClassTarget = "overlap"
    detection_calibration: Calibration = Calibration()
    presence_calibration: Calibration = Calibration()
    # Probability from which a detection is reported when the request names no threshold.
    score_threshold: float = Field(default=0.5, ge=0, le=1)
    # Two boxes of one group that overlap by more than this are one thing found twice.
    duplicate_iou: float = Field(default=0.5, ge=0, le=1)
    # Probability from which a group counts as found.
    presence_threshold: float = Field(default=0.5, ge=0, le=1)
