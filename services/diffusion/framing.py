"""Images of any shape in a square of the model's size, and what is made of them back in their own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def frame(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """``[height, width, 3]`` scaled so that the longer side fits into ``[side, side, 3]``.

    Right and below its border goes on, which disturbs an edit less than a colour of its own would.
    """
    height, width = _framed_size(image.shape[:2], side)
    scaled = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0))
    return np.pad(scaled, ((0, side - height), (0, side - width), (0, 0)), mode="edge")


def restore(square: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """The inverse of ``frame``: the part of ``[side, side, 3]`` that shows an image, at ``size`` (height, width)."""
    height, width = _framed_size(size, square.shape[0])
    content = Image.fromarray(np.ascontiguousarray(square[:height, :width]))
    return np.asarray(content.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def _framed_size(size: tuple[int, ...], side: int) -> tuple[int, int]:
    height, width = size
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))
