"""What the stage ``image_pyramid`` trains."""

from __future__ import annotations

from typing import Literal

from services.backbones.piip.configuration import PiipConfig
from superlink.configuration import Section


class ImagePyramidPlan(Section):
    """A pyramid that names the cells of pattern fields."""

    piip: PiipConfig
    # "merged": all branches, merged. "finest": the finest branch alone, so that whatever the others know must have
    # come through the interactions.
    readout: Literal["merged", "finest"] = "merged"
