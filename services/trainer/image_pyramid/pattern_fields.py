"""Pictures whose cells can only be named by fine detail and coarse context together.

A wide grating under noise fills the picture; here and there a cell of 8 x 8 pixels carries stripes as fine as pixels
are. Its class is the stripes' pattern and the grating's orientation. Shrinking the picture wipes the stripes out, and
the grating only shows over many cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

SIDE = 64
CELL = 8
CELLS = SIDE // CELL
PATTERNS = 4
ORIENTATIONS = 4
# Background, and every pattern under every orientation.
CLASSES = 1 + PATTERNS * ORIENTATIONS

_GRATING_PERIOD = 32
_GRATING_AMPLITUDE = 0.35
_NOISE_DEVIATION = 0.9
_PATTERN_AMPLITUDE = 1.2
_PATTERN_SHARE = 0.12
# Keeps held-out fields apart from those of any training run.
HELD_OUT_STREAM = 1_000_003


@dataclass(frozen=True)
class PatternField:
    """One field, or a stack of them."""

    # [..., 3, SIDE, SIDE] float32, the same in all three channels.
    pixels: Tensor
    # [..., CELLS, CELLS] int64: 0 for background, else 1 + pattern · ORIENTATIONS + orientation.
    classes: Tensor


class PatternFields(Dataset[PatternField]):
    """Field ``index`` of a stream, drawn anew whenever it is asked for."""

    def __init__(self, stream: int) -> None:
        self.stream = stream
        self.stripes = _stripes()

    def __getitem__(self, index: int) -> PatternField:
        rng = np.random.default_rng([self.stream, index])
        orientation = int(rng.integers(ORIENTATIONS))
        picture = rng.normal(0, _NOISE_DEVIATION, (SIDE, SIDE)) + _grating(orientation, rng.uniform(0, 2 * np.pi))
        marked = rng.random((CELLS, CELLS)) < _PATTERN_SHARE
        patterns = rng.integers(PATTERNS, size=(CELLS, CELLS))
        for row, column in np.argwhere(marked):
            top, left = row * CELL, column * CELL
            picture[top : top + CELL, left : left + CELL] += _PATTERN_AMPLITUDE * self.stripes[patterns[row, column]]
        classes = np.where(marked, 1 + patterns * ORIENTATIONS + orientation, 0)
        pixels = torch.from_numpy(picture.astype(np.float32)).expand(3, -1, -1)
        return PatternField(pixels, torch.from_numpy(classes))


def stack_fields(fields: list[PatternField]) -> PatternField:
    """Several fields as one stack."""
    return PatternField(
        torch.stack([field.pixels for field in fields]), torch.stack([field.classes for field in fields])
    )


def _grating(orientation: int, phase: float) -> NDArray[np.float64]:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    angle = orientation * np.pi / ORIENTATIONS
    along = columns * np.cos(angle) + rows * np.sin(angle)
    wave: NDArray[np.float64] = _GRATING_AMPLITUDE * np.sin(2 * np.pi * along / _GRATING_PERIOD + phase)
    return wave


def _stripes() -> NDArray[np.float64]:
    """Four patterns ``[PATTERNS, CELL, CELL]`` of 1 and -1 that change sign from pixel to pixel."""
    rows, columns = np.mgrid[:CELL, :CELL]
    return (-1.0) ** np.stack([columns, rows, rows + columns, columns + rows // 2])
