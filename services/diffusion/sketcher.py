"""A first idea of what to draw, straight from the links.

What a request names looks much the same each time: its mean image is a function of the links alone, which a small
network learns long before a denoising network that has to tell it from noise. That one starts from this sketch and
says what differs from it, as residual diffusion does (Liu et al., "Residual Denoising Diffusion Models", 2024).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from services.diffusion.configuration import SketcherConfig


class Sketcher(nn.Module):
    """Links of one request to the latents of its picture; of an edit, of what it puts into the image."""

    def __init__(self, config: SketcherConfig, link_width: int, links: int, channels: int) -> None:
        super().__init__()
        self.shape = (channels, config.side, config.side)
        self.network = nn.Sequential(
            nn.Linear(links * link_width, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, channels * config.side**2),
        )

    def forward(self, links: Tensor) -> Tensor:
        """``[batch, links, link_width]`` to latents ``[batch, channels, side, side]``."""
        sketch: Tensor = self.network(links.flatten(1)).unflatten(1, self.shape)
        return sketch


def resize_sketch(sketch: Tensor, rows: int, columns: int) -> Tensor:
    """``[batch, channels, side, side]`` for an image of another size, ``[batch, channels, rows, columns]``."""
    if sketch.shape[-2:] == (rows, columns):
        return sketch
    return functional.interpolate(sketch, size=(rows, columns), mode="bilinear", align_corners=False)
