"""Fields, a road and one thing from above: remote sensing's "Detect", answered with a box."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from services.trainer.adaptation.converters import Picture, grounding
from services.trainer.adaptation.domains.canvas import Canvas, Colour
from services.trainer.adaptation.rows import ConversationRow

SIDE = 64
# Fields are cut along lines of this grid; things lie on one twice as coarse, so that a small model can place them.
_GRID = 8
_PLACES = range(0, 33, 16)
_THING_SIDE = 32
_FIELDS: tuple[Colour, ...] = ((96, 128, 58), (140, 150, 74), (176, 152, 100), (120, 96, 66), (74, 104, 60))

Box = tuple[int, int, int, int]


def draw_aerial(pictures: Path, seeds: range) -> Iterator[ConversationRow]:
    """A row for each of ``seeds``, its picture written into ``pictures``."""
    for seed in seeds:
        rng = np.random.default_rng((seed, 8))
        canvas = Canvas(SIDE, _FIELDS[0])
        _fields(canvas, rng)
        name = str(rng.choice(list(_THINGS)))
        left, top = (int(place) for place in rng.choice(_PLACES, 2))
        box = (left, top, left + _THING_SIDE, top + _THING_SIDE)
        _THINGS[name](canvas, box)
        file = f"{seed}.png"
        canvas.picture().save(pictures / file)
        yield grounding(str(seed), Picture(file, SIDE, SIDE), {name: [box]})


def _fields(canvas: Canvas, rng: np.random.Generator) -> None:
    across, down = (np.sort(rng.choice(np.arange(1, SIDE // _GRID), 2, replace=False)) * _GRID for _ in range(2))
    columns, rows = [0, *map(int, across), SIDE], [0, *map(int, down), SIDE]
    for left, right in zip(columns, columns[1:], strict=False):
        for top, bottom in zip(rows, rows[1:], strict=False):
            shade = rng.integers(-12, 13)
            red, green, blue = (int(value + shade) for value in _FIELDS[rng.integers(len(_FIELDS))])
            canvas.rectangle(left, top, right, bottom, (red, green, blue))
    start, end = rng.uniform(0, SIDE, 2)
    canvas.polygon([(start, 0), (start + 4, 0), (end + 4, SIDE), (end, SIDE)], (150, 150, 150))


def _pool(canvas: Canvas, box: Box) -> None:
    canvas.ellipse(*box, (236, 236, 228))
    left, top, right, bottom = box
    canvas.ellipse(left + 2, top + 2, right - 2, bottom - 2, (58, 160, 220))


def _house(canvas: Canvas, box: Box) -> None:
    left, top, right, bottom = box
    canvas.rectangle(left, top, right, (top + bottom) / 2, (206, 84, 60))
    canvas.rectangle(left, (top + bottom) / 2, right, bottom, (150, 52, 38))


def _tank(canvas: Canvas, box: Box) -> None:
    left, top, right, bottom = box
    canvas.ellipse(left, top, right, bottom, (245, 245, 245))
    canvas.ellipse(left + 5, top + 5, right - 5, bottom - 5, (120, 120, 126))


def _plane(canvas: Canvas, box: Box) -> None:
    left, top, right, bottom = box
    middle, wings = (left + right) / 2, top + (bottom - top) * 0.45
    canvas.rectangle(middle - 2, top, middle + 2, bottom, (250, 250, 250))
    canvas.polygon([(left, wings + 4), (middle, wings - 4), (right, wings + 4), (middle, wings + 3)], (250, 250, 250))


_THINGS: dict[str, Callable[[Canvas, Box], None]] = {
    "pool": _pool,
    "house": _house,
    "storage tank": _tank,
    "airplane": _plane,
}
