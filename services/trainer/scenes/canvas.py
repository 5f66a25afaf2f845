"""A figure as parts in drawing order, and the canvas that paints them and remembers which part each pixel shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Point = tuple[float, float]
Colour = tuple[int, int, int]

# Owner of pixels that show nothing.
NOBODY = ""
# Painted this much larger and scaled down, for smooth edges.
_SUPERSAMPLING = 3


def along(start: Point, direction: Point, distance: float) -> Point:
    """``start`` moved by ``distance`` times ``direction``."""
    return start[0] + direction[0] * distance, start[1] + direction[1] * distance


def shaded(colour: Colour, factor: float) -> Colour:
    """A darker (below 1) or lighter colour."""
    red, green, blue = (min(255, round(value * factor)) for value in colour)
    return red, green, blue


@dataclass(frozen=True)
class Part:
    """A filled shape in the figure's own coordinates: y points down, the figure is about 1 tall.

    One point with a radius is a disc, two are a limb with round ends, more are a polygon with round corners.
    """

    # What it belongs to: "left_forearm", "head".
    owner: str
    points: tuple[Point, ...]
    radius: float
    colour: Colour


@dataclass(frozen=True)
class Pose:
    """A figure before it is drawn."""

    # Back to front.
    parts: tuple[Part, ...]
    keypoints: Mapping[str, Point]
    # For every keypoint the owners on which it counts as seen.
    bearers: Mapping[str, frozenset[str]]
    # Keypoints on the side that the viewer does not see.
    turned_away: frozenset[str] = frozenset()


class PartCanvas:
    """Paints parts, turned by an angle and scaled so that the longer side of all is ``size`` pixels."""

    def __init__(self, parts: Sequence[Part], turn: float, size: float) -> None:
        """``turn`` is in radians."""
        self._parts = parts
        self._rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]], dtype=np.float32)
        corners = [
            np.concatenate([self._turned(part.points) - part.radius, self._turned(part.points) + part.radius])
            for part in parts
        ]
        reached = np.concatenate(corners)
        self._origin = reached.min(axis=0)
        extent = reached.max(axis=0) - self._origin
        self._scale = size / float(extent.max())
        width, height = (max(1, round(side * self._scale)) for side in extent.tolist())
        picture = Image.new("RGBA", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
        numbers = Image.new("L", picture.size)
        owners = [NOBODY, *dict.fromkeys(part.owner for part in parts)]
        brushes = ImageDraw.Draw(picture), ImageDraw.Draw(numbers)
        for part in parts:
            points = [(x, y) for x, y in (self.places(part.points) * _SUPERSAMPLING).tolist()]
            radius = part.radius * self._scale * _SUPERSAMPLING
            for brush, fill in zip(brushes, ((*part.colour, 255), owners.index(part.owner)), strict=True):
                _paint(brush, points, radius, fill)
        # [height, width, 4] uint8 RGBA.
        self.pixels = np.asarray(picture.reduce(_SUPERSAMPLING))
        self._owners = np.array(owners)[np.asarray(numbers)]

    def places(self, points: Sequence[Point]) -> NDArray[np.float32]:
        """Where points of the figure's own coordinates are: ``[points, 2]``, x and y in pixels."""
        return (self._turned(points) - self._origin) * np.float32(self._scale)

    def owners_at(self, places: NDArray[np.float32]) -> list[str]:
        """The owner of the pixel at each of ``places``."""
        height, width = self._owners.shape
        columns, rows = (places * _SUPERSAMPLING).astype(int).clip(0, (width - 1, height - 1)).T
        owners: list[str] = self._owners[rows, columns].tolist()
        return owners

    def _turned(self, points: Sequence[Point]) -> NDArray[np.float32]:
        return np.asarray(points, dtype=np.float32) @ self._rotation


def _paint(brush: ImageDraw.ImageDraw, points: list[Point], radius: float, fill: int | tuple[int, ...]) -> None:
    if len(points) > 2:
        brush.polygon(points, fill=fill)
    if radius <= 0:
        return
    for first, second in zip(points, points[1:] + points[:1], strict=True):
        brush.line([first, second], fill=fill, width=max(1, round(2 * radius)))
    for x, y in points:
        brush.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill)
