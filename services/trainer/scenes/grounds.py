"""Textured grounds: what scenes are composed on."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@dataclass(frozen=True)
class NamedGround:
    """A ground that people have a word for."""

    # "grass"
    key: str
    english: str
    chinese: str


NAMED_GROUNDS = (
    NamedGround("grass", "grass", "草地"),
    NamedGround("sand", "sand", "沙地"),
    NamedGround("water", "water", "水面"),
    NamedGround("snow", "snow", "雪地"),
    NamedGround("road", "road", "马路"),
    NamedGround("soil", "soil", "泥土"),
    NamedGround("brick", "brick", "砖墙"),
    NamedGround("sky", "sky", "天空"),
)
GROUNDS = ("plain", "gradient", "clouds", "grain", "stripes", "checks", "patches")


def paint_ground(height: int, width: int, rng: np.random.Generator, hue: float | None = None) -> NDArray[np.float32]:
    """A ground of a random kind and colours, or of colours of one ``hue`` in 0..1.

    Returns ``[height, width, 3]`` float32 in 0..255.
    """
    kind = GROUNDS[rng.integers(len(GROUNDS))]
    first, second = _colour(rng, hue), _colour(rng, hue)
    if kind == "plain":
        blend = np.zeros((height, width), dtype=np.float32)
    elif kind == "gradient":
        blend = _ramp(height, width, rng)
    elif kind == "clouds":
        blend = 0.6 * _noise(height, width, 4, rng) + 0.4 * _noise(height, width, 10, rng)
    elif kind == "grain":
        blend = _noise(height, width, min(height, width) // 2, rng) * np.float32(rng.uniform(0.2, 0.6))
    elif kind == "stripes":
        blend = _stripes(height, width, rng)
    elif kind == "checks":
        blend = np.abs(_stripes(height, width, rng) - _stripes(height, width, rng))
    else:
        blend = (_noise(height, width, 6, rng) > 0.5).astype(np.float32)
    blend = blend * np.float32(rng.uniform(0.35, 1.0))
    ground = first + (second - first) * blend[..., None]
    return ground + rng.normal(0, 1, (height, width, 1)).astype(np.float32) * np.float32(rng.uniform(0, 6))


def _colour(rng: np.random.Generator, hue: float | None) -> NDArray[np.float32]:
    if hue is None:
        rgb = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.0, 0.6), rng.uniform(0.25, 1.0))
    else:
        # Strong and bright enough to be called by its name.
        rgb = colorsys.hsv_to_rgb(hue, rng.uniform(0.5, 0.9), rng.uniform(0.6, 1.0))
    return np.asarray(rgb, dtype=np.float32) * 255


def _axes(height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return (
        np.linspace(0, 1, height, dtype=np.float32)[:, None],
        np.linspace(0, 1, width, dtype=np.float32)[None, :],
    )


def _ramp(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    vertical, horizontal = _axes(height, width)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = vertical * np.float32(np.sin(angle)) + horizontal * np.float32(np.cos(angle))
    return (ramp - ramp.min()) / (ramp.max() - ramp.min() + 1e-6)


def _stripes(height: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    bands = _ramp(height, width, rng) * np.float32(rng.integers(3, 14))
    return (bands % 1.0 > 0.5).astype(np.float32)


def _noise(height: int, width: int, cells: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Smooth value noise in 0..1 with about ``cells`` bumps a side."""
    coarse = Image.fromarray(rng.integers(0, 256, (cells + 1, cells + 1), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32) / 255
