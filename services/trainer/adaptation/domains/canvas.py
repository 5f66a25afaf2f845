"""Drawing with smooth edges: everything is drawn larger and scaled down."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

_SUPERSAMPLING = 3

Colour = tuple[int, int, int]
Point = tuple[float, float]


class Canvas:
    """A square picture; all lengths are in its final pixels."""

    def __init__(self, side: int, colour: Colour) -> None:
        self.side = side
        self._image = Image.new("RGB", (side * _SUPERSAMPLING, side * _SUPERSAMPLING), colour)
        self._draw = ImageDraw.Draw(self._image)

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        """Fill the polygon through ``points``."""
        self._draw.polygon([(x * _SUPERSAMPLING, y * _SUPERSAMPLING) for x, y in points], fill=colour)

    def rectangle(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """Fill a rectangle."""
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def ellipse(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """Fill the ellipse in a rectangle."""
        self._draw.ellipse([value * _SUPERSAMPLING for value in (left, top, right, bottom)], fill=colour)

    def picture(self) -> Image.Image:
        """What has been drawn."""
        return self._image.resize((self.side, self.side), Image.Resampling.BOX)
