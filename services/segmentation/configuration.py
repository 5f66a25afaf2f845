"""The segmenter's sizes, as stored in ``config.json`` beside its weights."""

from __future__ import annotations

from pydantic import PositiveInt

from services.grounding.configuration import GroundingConfig


class SegmenterConfig(GroundingConfig):
    """A grounding network whose candidates have masks."""

    name: str = "segmentation"
    route: str = "[SEG]"
    # Width of the pixel embeddings, whose products with a candidate's mask embedding are its mask.
    mask_width: PositiveInt = 64
    # Points at which a mask is compared with the truth in training; the paper takes 12 544 of images of 1 333 px.
    mask_points: PositiveInt = 784
