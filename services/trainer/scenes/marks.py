"""Marks as people draw them on things: points, a box, a scribble, or the thing's own mask."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.segmentation.run_length import encode_mask
from services.trainer.scenes.scene import Scene, SceneObject
from superlink.v1 import types_pb2

MARK_KINDS = ("points", "box", "stroke", "mask")
# Things with fewer visible pixels are too small to be marked.
_LEAST_AREA = 16
# How far a box's sides miss the thing's, as a share of its own sides.
_BOX_SLIP = 0.06
_MOST_POINTS = 5
_MOST_TURNS = 5


def markable(scene: Scene) -> list[int]:
    """Indices of the scene's objects that can be marked."""
    return [index for index, thing in enumerate(scene.objects) if thing.area >= _LEAST_AREA]


def draw_mark(thing: SceneObject, kind: str, rng: np.random.Generator) -> types_pb2.Region:
    """A mark of ``kind``, one of ``MARK_KINDS``, that means ``thing``."""
    if kind == "points":
        places = _inside(thing.mask, int(rng.integers(1, _MOST_POINTS + 1)), rng)
        return types_pb2.Region(points=types_pb2.Points(points=_points(places)))
    if kind == "box":
        return types_pb2.Region(box=_box(thing, rng))
    if kind == "stroke":
        return types_pb2.Region(stroke=types_pb2.Stroke(points=_points(_scribble(thing.mask, rng))))
    mask = encode_mask(thing.mask)
    return types_pb2.Region(mask=types_pb2.Mask(height=mask.height, width=mask.width, counts=mask.counts))


def _inside(mask: NDArray[np.bool_], count: int, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Centres of ``count`` pixels of the mask."""
    rows, columns = np.nonzero(mask)
    chosen = rng.integers(0, len(rows), count)
    return [(column + 0.5, row + 0.5) for row, column in zip(rows[chosen], columns[chosen], strict=True)]


def _scribble(mask: NDArray[np.bool_], rng: np.random.Generator) -> list[tuple[float, float]]:
    """A line that never leaves the mask."""
    start, *others = _inside(mask, 4 * _MOST_TURNS, rng)
    line = [start]
    for place in others:
        steps = np.linspace(line[-1], place, num=32).astype(int)
        if len(line) <= _MOST_TURNS and mask[steps[:, 1], steps[:, 0]].all():
            line.append(place)
    return line


def _box(thing: SceneObject, rng: np.random.Generator) -> types_pb2.Box:
    x1, y1, x2, y2 = thing.box
    height, width = thing.mask.shape
    slips = rng.uniform(-_BOX_SLIP, _BOX_SLIP, 4) * np.array([x2 - x1, y2 - y1, x2 - x1, y2 - y1])
    corners = np.clip(np.array(thing.box) + slips, 0, [width, height, width, height])
    return types_pb2.Box(x1=corners[0], y1=corners[1], x2=corners[2], y2=corners[3])


def _points(places: list[tuple[float, float]]) -> list[types_pb2.Point]:
    return [types_pb2.Point(x=x, y=y) for x, y in places]
