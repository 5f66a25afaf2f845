"""Edits as layers: what was changed lies over the source, and all else is the source itself, pixel by pixel.

Latents lose detail, and an edit is about a part of its source. DiffEdit (Couairon et al. 2023) finds this part before
it edits; here it is where the result, decoded, differs from the source, encoded and decoded alike.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from services.diffusion.framing import restore

# Side in pixels of the square over which differences are averaged: a layer has no holes, and noise makes no specks.
_WINDOW = 9
# Mean difference, of a range of 2, from which a layer begins to show, and where it hides the source.
_FIRST_SEEN, _OPAQUE = 0.05, 0.12


def difference_layer(made: Tensor, seen: Tensor, reach: Tensor) -> Tensor:
    """Opacity ``[batch, 1, side, side]`` in -1..1, as pixels are, where ``made`` differs from ``seen``.

    Both are ``[batch, 3, side, side]`` in -1..1; ``reach`` ``[batch, 1, h, w]`` in 0..1 says where it may at all.
    """
    difference = (made - seen).abs().mean(dim=1, keepdim=True)
    smooth = functional.avg_pool2d(difference, _WINDOW, stride=1, padding=_WINDOW // 2, count_include_pad=False)
    opacity = ((smooth - _FIRST_SEEN) / (_OPAQUE - _FIRST_SEEN)).clamp(0, 1)
    opacity = opacity * functional.interpolate(reach, size=made.shape[-2:], mode="bilinear", align_corners=False)
    return opacity * 2 - 1


def lay_over(source: NDArray[np.uint8], layer: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``source`` ``[height, width, 3]`` under the part of a layer ``[side, side, 4]`` that shows it, enlarged to it."""
    below = Image.fromarray(source)
    above = Image.fromarray(restore(layer, source.shape[:2]), "RGBA")
    return np.asarray(Image.composite(above.convert("RGB"), below, above.getchannel("A")))
