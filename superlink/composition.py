"""Several pictures in one."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

# Between the pictures, in pixels.
GAP = 16


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """``pictures``, at least one, in a row on white, all as high as the highest of them."""
    height = max(picture.height for picture in pictures)
    scaled = [
        picture.convert("RGB").resize((max(1, round(picture.width * height / picture.height)), height))
        for picture in pictures
    ]
    row = Image.new("RGB", (sum(picture.width for picture in scaled) + GAP * (len(scaled) - 1), height), "white")
    left = 0
    for picture in scaled:
        row.paste(picture, (left, 0))
        left += picture.width + GAP
    return row
