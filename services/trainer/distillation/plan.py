"""What a recipe says about distillation, and what a distilled tower's folder says about itself."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from services.mllm.towers import VisionSize
from superlink.configuration import Section


class Distillation(Section):
    """A small vision tower that learns from the one under ``start_from.teacher``."""

    student: VisionSize
    # Side in pixels of what both look at. The published one; there are no further tiles.
    tile_size: PositiveInt = 448
    # The last so many layers of both are compared. The paper has K of them and does not say how many.
    layers: PositiveInt = 4
    # What brings the student's states to the teacher's width: a linear map for each layer, or nothing.
    projection: Literal["linear", "none"] = "linear"
    # A folder of images, of which nothing else is known. Unset: composed scenes, as ``data`` says.
    images: Path | None = None


class TowerConfig(Section):
    """``config.json`` of a vision tower by itself."""

    vision: VisionSize
    # Side of a tile in pixels.
    tile_size: PositiveInt
