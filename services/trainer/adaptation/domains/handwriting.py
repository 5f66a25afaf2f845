"""Scanned digits: a real domain, as classes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from services.trainer.adaptation.converters import Picture, classification
from services.trainer.adaptation.rows import ConversationRow
from services.trainer.digits import Digits

SIDE = 64
# Half of the digits: what is compared are ratios of replay, not readers of digits.
_CLASSES = ("zero", "one", "two", "three", "four")


def draw_handwriting(digits: Digits, pictures: Path, count: int) -> Iterator[ConversationRow]:
    """A row for each of the first ``count`` digits of the classes, its picture written into ``pictures``."""
    for number in np.flatnonzero(digits.labels < len(_CLASSES))[:count]:
        ink = (255 - 255 * digits.images[number]).astype(np.uint8)
        file = f"{number}.png"
        Image.fromarray(ink).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(pictures / file)
        yield classification(str(number), Picture(file, SIDE, SIDE), _CLASSES[digits.labels[number]], _CLASSES)
