"""Sketches of new things, put where an edit belongs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from services.diffusion.finder import Places

# A sketch's thing fills this share of its side, in the middle.
THING_SHARE = 0.46
# So much around the thing is placed with it, relative to the thing.
_MARGIN = 1.1
# Of what is added where nobody marks a place, relative to the image's side.
_ADDED_SIDE = 0.4
# Most places of one edit that get a sketch.
_MOST_SQUARES = 4
# How sure the tool must be of a place: from the first on the result begins to show there, from the second on alone.
_FIRST_SHOWN, _SHOWN = 0.2, 0.5


@dataclass(frozen=True)
class Square:
    """A part of an image, in shares 0..1 of its width and height."""

    middle_x: float
    middle_y: float
    # Half the side, as a share of the width and of the height.
    reach_x: float
    reach_y: float


@dataclass(frozen=True)
class Layout:
    """Where edits belong."""

    # [batch, 1, h, w] in 0..1.
    region: Tensor
    # [batch, 1, h, w] in 0..1: where the result may differ from the source.
    reach: Tensor
    # Of each edit: where its new things are put.
    squares: list[list[Square]]


def lay_out(places: Places, marks: Tensor) -> Layout:
    """Where the user marked it, ``marks`` ``[batch, 1, h, w]`` in 0..1, or else where ``places`` say.

    What the user marks, and what nobody finds, may reach further than it says.
    """
    named, things = places.named.sigmoid(), places.things.sigmoid()
    regions, reaches, squares = [], [], []
    for number, mark in enumerate(marks[:, 0]):
        region = mark
        if not mark.any():
            region = named[number]
            if places.added[number] > 0:
                region = region_of([free_square(things[number])], *mark.shape).to(mark)
        found = bool((region > _SHOWN).any()) and not mark.any()
        near = functional.max_pool2d(region[None], 3, stride=1, padding=1)[0]
        reach = ((near - _FIRST_SHOWN) / (_SHOWN - _FIRST_SHOWN)).clamp(0, 1)
        regions.append(region)
        reaches.append(reach if found else torch.ones_like(reach))
        squares.append(marked_squares(region) if places.new[number] > 0 else [])
    return Layout(torch.stack(regions)[:, None], torch.stack(reaches)[:, None], squares)


def square_around(x1: float, y1: float, x2: float, y2: float) -> Square:
    """The square around a box in shares of a square image."""
    reach = max(x2 - x1, y2 - y1) / 2
    return Square((x1 + x2) / 2, (y1 + y2) / 2, reach, reach)


def marked_squares(region: Tensor) -> list[Square]:
    """The squares around the connected parts of ``region`` ``[h, w]`` in 0..1 above one half, the largest first."""
    rows, columns = region.shape
    labels, _ = ndimage.label((region > 0.5).cpu().numpy())
    parts = [part for part in ndimage.find_objects(labels) if part is not None]
    parts.sort(key=lambda part: -(part[0].stop - part[0].start) * (part[1].stop - part[1].start))
    return [
        square_around(across.start / columns, down.start / rows, across.stop / columns, down.stop / rows)
        for down, across in parts[:_MOST_SQUARES]
    ]


def free_square(things: Tensor) -> Square:
    """Where least is, given how sure each place of ``things`` ``[h, w]`` in 0..1 shows something."""
    rows, columns = things.shape
    window = max(1, round(_ADDED_SIDE * rows)), max(1, round(_ADDED_SIDE * columns))
    taken = functional.avg_pool2d(things[None, None], window, stride=1)[0, 0].detach().cpu().numpy()
    top, left = (int(place) for place in np.unravel_index(int(taken.argmin()), taken.shape))
    return Square(
        (left + window[1] / 2) / columns,
        (top + window[0] / 2) / rows,
        window[1] / 2 / columns,
        window[0] / 2 / rows,
    )


def region_of(squares: Sequence[Square], rows: int, columns: int) -> Tensor:
    """``[rows, columns]``, 1 inside the squares."""
    region = torch.zeros(rows, columns)
    for square in squares:
        top, bottom = (round((square.middle_y + way * square.reach_y) * rows) for way in (-1, 1))
        left, right = (round((square.middle_x + way * square.reach_x) * columns) for way in (-1, 1))
        region[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = 1
    return region


def place_sketches(
    sketches: Tensor, squares: Sequence[Sequence[Square]], rows: int, columns: int
) -> tuple[Tensor, Tensor]:
    """``sketches`` ``[batch, channels, side, side]``, each in its squares, ``[batch, channels, rows, columns]``.

    The thing in the middle of a sketch fills the square; elsewhere is zero. Also returns where sketches are,
    ``[batch, 1, rows, columns]``.
    """
    canvas = sketches.new_zeros(len(sketches), sketches.shape[1] + 1, rows, columns)
    rows_of = [number for number, places in enumerate(squares) for _ in places]
    if not rows_of:
        return canvas[:, :-1], canvas[:, -1:]
    index = torch.tensor(rows_of, device=sketches.device)
    # From places of the canvas to places of the sketch, both in -1..1.
    steps = torch.tensor(
        [
            [
                [THING_SHARE / (2 * square.reach_x), 0, THING_SHARE * (1 - 2 * square.middle_x) / (2 * square.reach_x)],
                [0, THING_SHARE / (2 * square.reach_y), THING_SHARE * (1 - 2 * square.middle_y) / (2 * square.reach_y)],
            ]
            for places in squares
            for square in places
        ],
        dtype=sketches.dtype,
        device=sketches.device,
    )
    grid = functional.affine_grid(steps, [len(index), sketches.shape[1], rows, columns], align_corners=False)
    placed = functional.grid_sample(sketches[index], grid, align_corners=False)
    inside = (grid.abs() <= THING_SHARE * _MARGIN).all(dim=-1)[:, None].to(sketches.dtype)
    canvas = canvas.index_add(0, index, torch.cat([placed, torch.ones_like(inside)], dim=1) * inside)
    # Where squares overlap their sketches share the place.
    cover = canvas[:, -1:].clamp(max=1)
    return canvas[:, :-1] / canvas[:, -1:].clamp(min=1), cover
