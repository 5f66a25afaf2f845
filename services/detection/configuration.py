"""The detector's sizes, as stored in ``config.json`` beside its weights."""

from __future__ import annotations

from services.grounding.configuration import GroundingConfig


class DetectorConfig(GroundingConfig):
    """A grounding network that answers with its boxes."""

    name: str = "detection"
    route: str = "[DET]"
