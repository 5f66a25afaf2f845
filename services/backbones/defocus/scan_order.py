"""Scan order of images larger than those of pre-training: section by section (De-focus, appendix on detection)."""

from __future__ import annotations

import torch
from torch import Tensor


def padded_grid(rows: int, columns: int, section: int) -> tuple[int, int]:
    """Rows and columns after padding below and on the right to whole sections of ``section`` tokens a side."""
    return -(-rows // section) * section, -(-columns // section) * section


def section_order(rows: int, columns: int, section: int) -> Tensor:
    """Raster indices ``[rows · columns]`` int64 in the order of the sequence.

    Sections of ``section`` x ``section`` tokens follow one another row by row, and so do the tokens within a section,
    as they did in pre-training. Raises ValueError unless the grid is made of whole sections.
    """
    if padded_grid(rows, columns, section) != (rows, columns):
        raise ValueError(f"A grid of {rows} x {columns} tokens is not made of whole sections of {section}.")
    raster = torch.arange(rows * columns).reshape(rows // section, section, columns // section, section)
    return raster.transpose(1, 2).flatten()


def inverse(order: Tensor) -> Tensor:
    """The permutation that puts tokens in ``order`` back in raster order."""
    return order.argsort()
