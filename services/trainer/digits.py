"""Handwritten digits: 1 797 scans of 8 x 8 pixels from the UCI repository, which come along with scikit-learn.

The replications of papers in docs/ learn on them: small enough for one core, real enough to need learning.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

TRAINING_DIGITS = 1200
# The files are ordered by writer; mixed, both parts have the same ones.
_ORDER_SEED = 0


@dataclass(frozen=True)
class Digits:
    """Scans and what they show."""

    # [digits, 8, 8] float32 in 0..1, ink is 1.
    images: NDArray[np.float32]
    # [digits] int64 in 0..9.
    labels: NDArray[np.int64]


@cache
def load_digits() -> tuple[Digits, Digits]:
    """The training digits (1 200) and the held-out ones (597)."""
    # Takes a second to import, and most stages do without it.
    from sklearn import datasets  # type: ignore[import-untyped]

    bunch = datasets.load_digits()
    order = np.random.default_rng(_ORDER_SEED).permutation(len(bunch.target))
    images = (bunch.images[order] / 16).astype(np.float32)
    labels = bunch.target[order].astype(np.int64)
    return (
        Digits(images[:TRAINING_DIGITS], labels[:TRAINING_DIGITS]),
        Digits(images[TRAINING_DIGITS:], labels[TRAINING_DIGITS:]),
    )
