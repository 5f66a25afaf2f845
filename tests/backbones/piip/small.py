"""Small pyramids that run in milliseconds, with gates opened where a test wants interactions to say something."""

from __future__ import annotations

import torch
from torch import nn

from services.backbones.piip.configuration import PiipConfig
from services.backbones.piip.interaction import Injector
from services.backbones.piip.pyramid import ImagePyramid

RESOLUTIONS = (32, 48, 64)


def config(
    widths: tuple[int, ...] = (64, 32, 16), stages: int = 2, class_token: bool = False, window: int | None = None
) -> PiipConfig:
    """Branches of decreasing width and increasing resolution, two layers each."""
    branches = [
        {
            "resolution": resolution,
            "width": width,
            "depth": 2,
            "heads": 2,
            "patch_size": 8,
            "class_token": class_token,
            "window": window,
        }
        for width, resolution in zip(widths, RESOLUTIONS[-len(widths) :], strict=True)
    ]
    return PiipConfig.model_validate({"branches": branches, "interaction": {"stages": stages, "heads": 4}})


def pyramid(settings: PiipConfig | None = None, gates: float = 0.0) -> ImagePyramid:
    """In inference, all gates at ``gates``."""
    torch.manual_seed(0)
    made = ImagePyramid(settings or config()).eval()
    open_gates(made, gates)
    return made


def open_gates(module: nn.Module, value: float) -> None:
    for part in module.modules():
        if isinstance(part, Injector):
            nn.init.constant_(part.attention_gate, value)
            nn.init.constant_(part.feed_forward_gate, value)
