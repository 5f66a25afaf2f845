"""Pictures of many tiles with one shape, large, medium or small: what is lost of it when a picture is shrunk.

Drawn without emoji art, so that nothing has to be fetched first.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SizeName = Literal["small", "medium", "large", "close"]


@dataclass(frozen=True)
class View:
    """How pictures of one size of shape look."""

    # Side of the shape in pixels, at least and at most.
    sides: tuple[int, int]
    # Width and height of pictures.
    pictures: tuple[tuple[int, int], ...]


# At most 40 tiles are 6 x 6, 8 x 5 and 5 x 8 of them.
_WIDE = ((400, 400), (480, 300), (300, 480))
# Shrunk into one tile of 64 pixels small shapes are two to four pixels wide and large ones ten or more; cut into 36 or
# 40 tiles the small ones are more than twelve.
VIEWS: dict[SizeName, View] = {
    "small": View((15, 18), _WIDE),
    "medium": View((32, 40), _WIDE),
    "large": View((78, 94), _WIDE),
    # Seen from near, in one tile: what a model learns shapes and words from.
    "close": View((32, 66), ((100, 100), (120, 75), (75, 120))),
}

# Drawn this much larger and scaled down, for smooth edges.
_SUPERSAMPLING = 3


@dataclass(frozen=True)
class Shape:
    """A silhouette and its names."""

    english: str
    chinese: str
    # In a square from 0 to 1.
    polygon: tuple[tuple[float, float], ...]


def _around(count: int, radii: tuple[float, ...], turn: float = -0.25) -> tuple[tuple[float, float], ...]:
    """``count`` points around the middle of the square, at these radii by turns, the first one on top."""
    angles = 2 * np.pi * (np.arange(count) / count + turn)
    lengths = np.resize(np.array(radii), count)
    return tuple(zip((0.5 + lengths * np.cos(angles)).tolist(), (0.5 + lengths * np.sin(angles)).tolist(), strict=True))


_CROSS = ((0.33, 0.0), (0.67, 0.0), (0.67, 0.33), (1.0, 0.33), (1.0, 0.67), (0.67, 0.67))
SHAPES = (
    Shape("circle", "圆形", _around(40, (0.5,))),
    Shape("square", "方形", ((0.06, 0.06), (0.94, 0.06), (0.94, 0.94), (0.06, 0.94))),
    Shape("triangle", "三角形", ((0.5, 0.02), (1.0, 0.94), (0.0, 0.94))),
    Shape("cross", "十字", (*_CROSS, *((1 - x, 1 - y) for x, y in _CROSS))),
    Shape("star", "星形", _around(8, (0.54, 0.2))),
    Shape("arrow", "箭头", ((0.0, 0.32), (0.5, 0.32), (0.5, 0.02), (1.0, 0.5), (0.5, 0.98), (0.5, 0.68), (0.0, 0.68))),
)
_COLOUR = (20, 20, 20)


@dataclass(frozen=True)
class SizedShape:
    """A picture and what is on it."""

    image: Image.Image
    size: SizeName
    shape: Shape
    # Left, top, right, bottom in pixels.
    box: tuple[int, int, int, int]


def draw_sized_shape(seed: int, size: SizeName) -> SizedShape:
    """The picture of a seed: a pale ground with one dark shape of ``size`` anywhere."""
    rng = np.random.default_rng((seed, 11))
    view = VIEWS[size]
    width, height = view.pictures[rng.integers(len(view.pictures))]
    shape = SHAPES[rng.integers(len(SHAPES))]
    side = int(rng.integers(view.sides[0], view.sides[1] + 1))
    left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
    box = (left, top, left + side, top + side)
    image = _ground(width, height, rng)
    fine = side * _SUPERSAMPLING
    mask = Image.new("L", (fine, fine))
    ImageDraw.Draw(mask).polygon([(x * fine, y * fine) for x, y in shape.polygon], fill=255)
    image.paste(_COLOUR, box, mask.resize((side, side), Image.Resampling.LANCZOS))
    return SizedShape(image, size, shape, box)


def _ground(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Two pale colours, blended from one side to the other, with a little grain."""
    first, second = (_pale(rng) for _ in range(2))
    angle = rng.uniform(0, 2 * np.pi)
    across = np.linspace(0, 1, width, dtype=np.float32)[None, :, None] * np.float32(abs(np.cos(angle)))
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None, None] * np.float32(abs(np.sin(angle)))
    grain = 3 * rng.standard_normal((height, width, 1), dtype=np.float32)
    pixels = 255 * (first + (second - first) * (across + down) / 1.5) + grain
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _pale(rng: np.random.Generator) -> NDArray[np.float32]:
    return np.array(colorsys.hsv_to_rgb(rng.random(), 0.12, rng.uniform(0.82, 0.98)), dtype=np.float32)
