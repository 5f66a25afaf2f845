"""What a recipe says about classification."""

from __future__ import annotations

from pydantic import Field

from services.backbones.defocus.configuration import ClassifierConfig
from superlink.configuration import Section


class DropPathSchedule(Section):
    """Stochastic depth that grows in training: the last layer's rate in the first and in the last epoch."""

    first: float = Field(default=0.1, ge=0, lt=1)
    last: float = Field(default=0.7, ge=0, lt=1)


class Classification(Section):
    """A De-focus network that names what a picture shows; the pictures are handwritten digits, 8 x 8 pixels."""

    network: ClassifierConfig
    # Unset: no layer is ever dropped.
    drop_path: DropPathSchedule | None = None
