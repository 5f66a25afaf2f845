"""Small De-focus networks of every kind."""

from __future__ import annotations

from typing import Any

import torch

from services.backbones.defocus.configuration import Attention, EncoderConfig, Mamba, Retention
from services.backbones.defocus.encoder import Encoder

MIXERS: dict[str, Attention | Retention | Mamba] = {
    "attention": Attention(heads=2),
    "retention": Retention(heads=2),
    "mamba": Mamba(state_size=4, time_step_rank=3),
}


def small_config(kind: str, **fields: Any) -> EncoderConfig:
    """Two layers of width 32; pictures of 4 x 4 patches of two pixels."""
    sizes: dict[str, Any] = {"width": 32, "depth": 2, "image_size": 8, "patch_size": 2, "initial_deviation": 0.2}
    return EncoderConfig(mixer=MIXERS[kind], **(sizes | fields))


def small_encoder(kind: str, **fields: Any) -> Encoder:
    """In float64, with random weights, ready to be asked."""
    torch.manual_seed(0)
    return Encoder(small_config(kind, **fields)).double().eval()


def random_pixels(batch: int, side: int = 8) -> torch.Tensor:
    """``[batch, 3, side, side]`` in float64."""
    return torch.randn(batch, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
