"""A first idea of what to draw, straight from the links.

What a request names looks much the same each time: its mean image is a function of the links alone, which a small
network learns long before a denoising network that has to tell it from noise. That one starts from this sketch and
says what differs from it, as residual diffusion does (Liu et al., "Residual Denoising Diffusion Models", 2024).

A picture of two kinds is made of pictures of one: what a thing looks like depends on the link that names it alone, and
where it stands on all links (as in Eslami et al., "Attend, Infer, Repeat", 2016). So pairs that training never showed
are drawn as well as any.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from services.diffusion.configuration import SketcherConfig

# Side of the ground's map, in cells: grounds change slowly.
_GROUND_SIDE = 4


class Sketcher(nn.Module):
    """Links of one request to the latents of its picture; of an edit, of what it puts into the image."""

    def __init__(self, config: SketcherConfig, link_width: int, links: int, latent_channels: int) -> None:
        super().__init__()
        self.config = config
        # A thing's square fits at so many places from side to side.
        reach = config.side // 2
        self.places = config.side - reach + 1
        self.things = nn.Sequential(
            nn.Linear(link_width, config.hidden), nn.GELU(), nn.Linear(config.hidden, config.width)
        )
        self.layout = nn.Sequential(
            nn.Linear(links * link_width, config.width),
            nn.GELU(),
            nn.Linear(config.width, len(config.things) * self.places**2),
        )
        self.ground = nn.Sequential(
            nn.Linear(links * link_width, config.width),
            nn.GELU(),
            nn.Linear(config.width, config.channels * _GROUND_SIDE**2),
        )
        self.stamp = nn.ConvTranspose2d(config.width, config.channels, reach)
        self.finish = nn.Sequential(
            nn.Conv2d(2 * config.channels, config.channels, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(config.channels, config.channels, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(config.channels, latent_channels, 3, padding=1),
        )

    def forward(self, links: Tensor) -> Tensor:
        """``[batch, links, link_width]`` to latents ``[batch, channels, side, side]``."""
        config = self.config
        things = self.things(links[:, list(config.things)])
        layout = self.layout(links.flatten(1)).unflatten(1, (len(config.things), self.places, self.places))
        stamped = self.stamp(torch.einsum("btw,btrc->bwrc", things, layout))
        ground = self.ground(links.flatten(1)).unflatten(1, (config.channels, _GROUND_SIDE, _GROUND_SIDE))
        ground = functional.interpolate(ground, size=stamped.shape[-2:], mode="bilinear", align_corners=False)
        sketch: Tensor = self.finish(torch.cat([stamped, ground], dim=1))
        return sketch


def resize_sketch(sketch: Tensor, rows: int, columns: int) -> Tensor:
    """``[batch, channels, side, side]`` for an image of another size, ``[batch, channels, rows, columns]``."""
    if sketch.shape[-2:] == (rows, columns):
        return sketch
    return functional.interpolate(sketch, size=(rows, columns), mode="bilinear", align_corners=False)
