"""Articulated figures at a glance: each with its skeleton, hidden keypoints as small dots."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from services.evaluation.contact_sheet import CELL, tile_cells
from services.trainer.scenes.figures import VISIBLE, Figure, draw_figure
from services.trainer.scenes.skeletons import Skeleton

_GROUND = "#c8d2be"
# Of the left side, the right side and the middle of the body.
_COLOURS = ("#d62728", "#1f5fd6", "#157a2c")


def figure_sheet(skeletons: Sequence[Skeleton], count: int, seed: int, columns: int) -> Image.Image:
    """``count`` figures of the ``skeletons`` by turns, ``columns`` in a row."""
    rng = np.random.default_rng(seed)
    figures = [draw_figure(skeletons[number % len(skeletons)], CELL - 20, rng) for number in range(count)]
    return tile_cells([_cell(figure) for figure in figures], columns)


def _cell(figure: Figure) -> Image.Image:
    picture = Image.new("RGB", (CELL, CELL), _GROUND)
    height, width = figure.pixels.shape[:2]
    left, top = (CELL - width) // 2, (CELL - height) // 2
    drawn = Image.fromarray(figure.pixels)
    picture.paste(drawn, (left, top), drawn)
    brush = ImageDraw.Draw(picture)
    places = [(left + x, top + y) for x, y in figure.keypoints.tolist()]
    for first, second in figure.skeleton.bones:
        ends = [places[figure.skeleton.index(key)] for key in (first, second)]
        brush.line(ends, fill=_colour(first if _colour(first) == _colour(second) else "middle"), width=2)
    for name, (x, y), visibility in zip(figure.skeleton.keypoints, places, figure.visibility, strict=True):
        radius = 4 if visibility == VISIBLE else 2
        brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_colour(name.key), outline="white")
    return picture


def _colour(key: str) -> str:
    return _COLOURS[0] if key.startswith("left_") else _COLOURS[1] if key.startswith("right_") else _COLOURS[2]
