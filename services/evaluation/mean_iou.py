"""Intersection over union of masks: of single ones, and its mean over classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]


def mask_iou(first: Mask, second: Mask) -> float:
    """Shared pixels as part of those of either, 0..1; 0 where both are empty. Both ``[height, width]``."""
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 0.0


class MeanIou:
    """Collects the pixels of classes over many images: the mean over classes of each one's IoU over all images."""

    def __init__(self) -> None:
        self._shared: dict[int, int] = {}
        self._either: dict[int, int] = {}

    def add(self, truths: Mapping[int, Mask], found: Mapping[int, Mask]) -> None:
        """Masks ``[height, width]`` by class of one image, which are there and which were found."""
        for label, truth in truths.items():
            mask = found.get(label, np.zeros_like(truth))
            self._shared[label] = self._shared.get(label, 0) + int((truth & mask).sum())
            self._either[label] = self._either.get(label, 0) + int((truth | mask).sum())

    def value(self) -> float | None:
        """0..1; None where no class was to be found."""
        return mean(self._shared[label] / either for label, either in self._either.items() if either)


def mean(values: Iterable[float]) -> float | None:
    """The mean; None of nothing."""
    listed = list(values)
    return sum(listed) / len(listed) if listed else None
