"""Handwritten digits as training samples: in another order every epoch, shifted and noisy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from services.trainer.digits import Digits

_SHIFT = 1
_NOISE = 0.1
# Keeps the held-out digits' noise apart from that of any run.
_HELD_OUT_STREAM = 1 << 32


@dataclass(frozen=True)
class DigitBatch:
    """Digits as a network takes them."""

    # [batch, 1, 8, 8] float32, about 0..1.
    pixels: Tensor
    # [batch] int64.
    labels: Tensor
    # Number in the run of the batch's first digit.
    number: int


class DigitStream(Dataset[DigitBatch]):
    """Digit ``number`` of a run: the number alone says which one it is, where it is shifted to and its noise."""

    def __init__(self, digits: Digits, seed: int) -> None:
        self.digits, self.seed = digits, seed

    def __getitem__(self, number: int) -> DigitBatch:
        epoch, place = divmod(number, len(self.digits.labels))
        which = _order(self.seed, epoch, len(self.digits.labels))[place]
        rng = np.random.default_rng((self.seed, epoch, place))
        return _make_batch([_disturb(self.digits.images[which], rng)], self.digits.labels[[which]], number)


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, digits: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(digits)


def stack_digits(samples: Sequence[DigitBatch]) -> DigitBatch:
    """Several digits as one batch."""
    return DigitBatch(
        torch.cat([sample.pixels for sample in samples]),
        torch.cat([sample.labels for sample in samples]),
        samples[0].number,
    )


def disturbed_passes(digits: Digits, passes: int) -> list[DigitBatch]:
    """All ``digits``, ``passes`` times, each time shifted and noisy in another way; the same in every run."""
    return [
        _make_batch(
            [
                _disturb(image, np.random.default_rng((_HELD_OUT_STREAM, round_, number)))
                for number, image in enumerate(digits.images)
            ],
            digits.labels,
            0,
        )
        for round_ in range(passes)
    ]


def _make_batch(images: Sequence[NDArray[np.float32]], labels: NDArray[np.int64], number: int) -> DigitBatch:
    return DigitBatch(torch.from_numpy(np.stack(images))[:, None], torch.from_numpy(labels), number)


def _disturb(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Up to a pixel elsewhere, empty pixels coming in, and with Gaussian noise."""
    down, right = rng.integers(0, 2 * _SHIFT + 1, 2)
    height, width = image.shape
    shifted = np.pad(image, _SHIFT)[down : down + height, right : right + width]
    noise = rng.normal(scale=_NOISE, size=image.shape)
    return (shifted + noise).astype(np.float32)
