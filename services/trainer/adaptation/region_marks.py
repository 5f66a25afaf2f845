"""Marking a region on the pixels, as GMAI-MMBench shows what a question is about: its box, its mask or its contour."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Mark = Literal["box", "mask", "contour"]

_COLOUR = (255, 0, 0)
# How much of the colour covers a mask.
_COVER = 0.4


def mark_region(image: Image.Image, mask: NDArray[np.bool_], mark: Mark) -> Image.Image:
    """A copy of ``image`` with the region ``mask`` ``[height, width]`` marked in red.

    Lines are drawn inside the region and grow with the image. Raises ValueError for an empty mask or one of another
    size than the image.
    """
    if mask.shape != (image.height, image.width):
        raise ValueError(f"The mask is {mask.shape[1]} x {mask.shape[0]}, the image {image.width} x {image.height}.")
    if not mask.any():
        raise ValueError("The region is empty.")
    pixels = np.asarray(image.convert("RGB")).copy()
    if mark == "mask":
        pixels[mask] = np.rint((1 - _COVER) * pixels[mask] + _COVER * np.array(_COLOUR)).astype(np.uint8)
    else:
        region = _filled_box(mask) if mark == "box" else mask
        pixels[region & ~_shrunk(region, max(2, round(min(mask.shape) / 150)))] = _COLOUR
    return Image.fromarray(pixels)


def _filled_box(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = np.zeros_like(mask)
    box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return box


def _shrunk(region: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """``region`` without what lies within ``pixels`` of its edge; outside the image counts as outside."""
    inner = np.pad(region, 1)
    for _ in range(pixels):
        neighbours = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
        inner[1:-1, 1:-1] &= neighbours
    return inner[1:-1, 1:-1]
