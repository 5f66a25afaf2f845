"""Small pictures of a thing in one of their quarters, on a ground of one colour; and questions about them.

A world that a small model learns in minutes: ``docs/distillation.md`` measures in it what a teacher is worth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.trainer.scenes.categories import CATEGORIES, CATEGORY_INDEX
from services.trainer.scenes.composer import Composer

PICTURE_SIDE = 64
# Things that differ in more than colour.
THINGS = (
    "dog",
    "penguin",
    "fish",
    "butterfly",
    "apple",
    "banana",
    "doughnut",
    "car",
    "airplane",
    "sailboat",
    "cactus",
    "sunflower",
)
GROUND_COLOURS = {
    "red": (196, 60, 60),
    "orange": (230, 150, 50),
    "yellow": (235, 220, 100),
    "green": (90, 170, 90),
    "blue": (80, 130, 220),
    "purple": (150, 90, 190),
    "grey": (130, 130, 130),
    "white": (240, 240, 240),
}

_QUARTER_SIDE = PICTURE_SIDE // 2
# Longer side of a thing in pixels.
_SMALLEST, _LARGEST = 20, 29
# How far colours of a ground stray, and how strong its grain is.
_STRAY, _GRAIN = 12.0, 9.0


@dataclass(frozen=True)
class QuarterPicture:
    """A picture, the name of the thing on it, and the colour of the ground."""

    # [64, 64, 3] uint8 RGB.
    image: NDArray[np.uint8]
    name: str
    ground: str


def draw_quarters(composer: Composer, seed: int) -> QuarterPicture:
    """The picture of ``seed``: a thing in one of the composer's styles."""
    rng = np.random.default_rng((seed, 31))
    style = composer.options.styles[rng.integers(len(composer.options.styles))]
    ground = tuple(GROUND_COLOURS)[rng.integers(len(GROUND_COLOURS))]
    colour = np.array(GROUND_COLOURS[ground]) + rng.normal(0, _STRAY, 3)
    canvas = colour + rng.normal(0, _GRAIN, (PICTURE_SIDE, PICTURE_SIDE, 1))
    # In reading order.
    quarter = int(rng.integers(4))
    category = CATEGORY_INDEX[THINGS[rng.integers(len(THINGS))]]
    _paste(canvas, composer.draw_sprite(category, style, rng.uniform(_SMALLEST, _LARGEST), rng), quarter, rng)
    return QuarterPicture(canvas.clip(0, 255).astype(np.uint8), CATEGORIES[category].english, ground)


def ask_quarters(picture: QuarterPicture, seed: int) -> dict[str, tuple[str, str]]:
    """A question and its answer of either kind, in random order: "naming" and "colour"."""
    rng = np.random.default_rng((seed, 32))
    questions = {
        "naming": ("What is in the picture?", picture.name),
        "colour": ("What colour is the ground?", picture.ground),
    }
    kinds = tuple(questions)
    return {kinds[number]: questions[kinds[number]] for number in rng.permutation(len(kinds))}


def _paste(canvas: NDArray[np.float64], sprite: NDArray[np.uint8], quarter: int, rng: np.random.Generator) -> None:
    """Draw ``sprite`` somewhere in a ``quarter``, cut to it."""
    sprite = sprite[:_QUARTER_SIDE, :_QUARTER_SIDE]
    height, width = sprite.shape[:2]
    top = quarter // 2 * _QUARTER_SIDE + int(rng.integers(_QUARTER_SIDE - height + 1))
    left = quarter % 2 * _QUARTER_SIDE + int(rng.integers(_QUARTER_SIDE - width + 1))
    window = canvas[top : top + height, left : left + width]
    window += (sprite[..., :3] - window) * (sprite[..., 3:] / 255)
