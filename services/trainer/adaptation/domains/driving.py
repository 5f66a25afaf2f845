"""The road ahead: what should the car do? Lettered options, as behaviour in driving data becomes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from services.trainer.adaptation.converters import Picture, lettered_classification
from services.trainer.adaptation.domains.canvas import Canvas, Colour
from services.trainer.adaptation.rows import ConversationRow

SIDE = 64
_QUESTION = "What should the car do next?"
_SKY: Colour = (150, 176, 204)
_ROAD: Colour = (84, 84, 90)
_HORIZON = 26


def draw_driving(pictures: Path, seeds: range) -> Iterator[ConversationRow]:
    """A row for each of ``seeds``, its picture written into ``pictures``."""
    for seed in seeds:
        rng = np.random.default_rng((seed, 9))
        canvas = Canvas(SIDE, _SKY)
        _road(canvas, rng)
        action = str(rng.choice(list(_CAUSES)))
        _CAUSES[action](canvas, rng)
        file = f"{seed}.png"
        canvas.picture().save(pictures / file)
        yield lettered_classification(str(seed), Picture(file, SIDE, SIDE), _QUESTION, action, list(_CAUSES))


def _road(canvas: Canvas, rng: np.random.Generator) -> None:
    shade = int(rng.integers(-16, 17))
    canvas.rectangle(0, _HORIZON, SIDE, SIDE, (92 + shade, 120 + shade, 76 + shade))
    for left in range(0, SIDE, 8):
        height = int(rng.integers(2, 14))
        wall = int(rng.integers(110, 170))
        canvas.rectangle(left, _HORIZON - height, left + 8, _HORIZON, (wall, wall - 8, wall - 14))
    bend = float(rng.uniform(-8, 8))
    canvas.polygon([(30 + bend, _HORIZON), (34 + bend, _HORIZON), (62, SIDE), (2, SIDE)], _ROAD)
    for near, far in ((0.9, 0.7), (0.5, 0.35)):
        bottom, top = (_HORIZON + share * (SIDE - _HORIZON) for share in (near, far))
        canvas.rectangle(31 + bend * (1 - near), top, 33 + bend * (1 - near), bottom, (230, 230, 230))


def _light(canvas: Canvas, rng: np.random.Generator, lit: int, colour: Colour) -> None:
    left, top = (int(value) for value in (rng.integers(4, 48), rng.integers(2, 12)))
    canvas.rectangle(left, top, left + 10, top + 24, (30, 30, 30))
    for lamp in range(3):
        shown = colour if lamp == lit else (70, 70, 70)
        canvas.ellipse(left + 2, top + 1 + lamp * 8, left + 8, top + 7 + lamp * 8, shown)


def _green(canvas: Canvas, rng: np.random.Generator) -> None:
    _light(canvas, rng, 2, (60, 230, 90))


def _red(canvas: Canvas, rng: np.random.Generator) -> None:
    _light(canvas, rng, 0, (240, 50, 40))


def _arrow(canvas: Canvas, rng: np.random.Generator, points_left: bool) -> None:
    left, top = (float(value) for value in (rng.integers(3, 44), rng.integers(2, 18)))
    canvas.ellipse(left, top, left + 18, top + 18, (30, 80, 190))
    tip, tail = (left + 3, left + 15) if points_left else (left + 15, left + 3)
    middle = left + 9
    canvas.polygon([(tip, top + 9), (middle, top + 3), (middle, top + 15)], (255, 255, 255))
    canvas.rectangle(min(middle, tail), top + 7, max(middle, tail), top + 11, (255, 255, 255))


def _arrow_left(canvas: Canvas, rng: np.random.Generator) -> None:
    _arrow(canvas, rng, points_left=True)


def _arrow_right(canvas: Canvas, rng: np.random.Generator) -> None:
    _arrow(canvas, rng, points_left=False)


def _pedestrian(canvas: Canvas, rng: np.random.Generator) -> None:
    middle, top = float(rng.uniform(20, 44)), float(rng.uniform(26, 34))
    coat = tuple(int(value) for value in rng.integers(120, 240, 3))
    canvas.ellipse(middle - 3, top, middle + 3, top + 6, (226, 180, 150))
    canvas.rectangle(middle - 4, top + 6, middle + 4, top + 17, (coat[0], coat[1], coat[2]))
    canvas.rectangle(middle - 3, top + 17, middle - 1, top + 25, (40, 40, 60))
    canvas.rectangle(middle + 1, top + 17, middle + 3, top + 25, (40, 40, 60))


_CAUSES: dict[str, Callable[[Canvas, np.random.Generator], None]] = {
    "drive on": _green,
    "stop": _red,
    "turn left": _arrow_left,
    "turn right": _arrow_right,
    "let someone cross": _pedestrian,
}
