"""Documents about handwritten digits: the toy on which LCL is replicated.

A document has a topic, one of the ten digits, and the form ``<start> text image text image text <end>``. A word is,
more often than not, one of the topic's own, else a filler; both images show the topic, somewhere on a noisy canvas.
Later text is predictable from earlier text, so that generation alone hardly needs the images: that is why it fails.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from services.mllm.tiling import normalise
from services.trainer.digits import Digits, load_digits
from services.trainer.latent_compression.sequences import Marks, SequenceBuilder, Text, TokenSequence

CANVAS_SIDE = 12
TOPICS = 10
_TOPIC_WORDS = 6
_FILLERS = 40
_TOPIC_WORD_SHARE = 0.7
_WORDS_A_TEXT = 6
_NOISE = 0.2
# 0 is padding and no word.
_FIRST_WORD = 1
_FIRST_FILLER = _FIRST_WORD + TOPICS * _TOPIC_WORDS
_FIRST_MARK = _FIRST_FILLER + _FILLERS
DIGIT_MARKS = Marks(*range(_FIRST_MARK, _FIRST_MARK + 5))
# 106 with padding and marks.
DIGIT_VOCABULARY = _FIRST_MARK + 5


class DigitDocumentStream(Dataset[TokenSequence[Tensor]]):
    """Endless documents about the training digits; each follows from the seed and its number alone."""

    def __init__(self, builder: SequenceBuilder, seed: int, images_swapped: bool) -> None:
        self._builder = builder
        self._seed = seed
        self._images_swapped = images_swapped
        self._digits = load_digits()[0]

    def __getitem__(self, number: int) -> TokenSequence[Tensor]:
        """A document with two images."""
        rng = np.random.default_rng((self._seed, number))
        topic = int(rng.integers(TOPICS))
        # Swapped, each image comes from a document of its own.
        shown = self._digits.labels >= 0 if self._images_swapped else self._digits.labels == topic
        chosen = rng.choice(np.flatnonzero(shown), 2, replace=False)
        first, second = draw_canvases(self._digits.images[chosen], rng)
        texts = [draw_text(topic, rng) for _ in range(3)]
        return self._builder.interleaved([texts[0], first, texts[1], second, texts[2]])


def draw_text(topic: int, rng: np.random.Generator) -> Text:
    """Six words about a topic."""
    own = _FIRST_WORD + topic * _TOPIC_WORDS + rng.integers(_TOPIC_WORDS, size=_WORDS_A_TEXT)
    fillers = _FIRST_FILLER + rng.integers(_FILLERS, size=_WORDS_A_TEXT)
    words = np.where(rng.random(_WORDS_A_TEXT) < _TOPIC_WORD_SHARE, own, fillers)
    return Text(tuple(words.tolist()))


def topic_text(topic: int) -> Text:
    """All the words that are a topic's own: its name, so to speak."""
    first = _FIRST_WORD + topic * _TOPIC_WORDS
    return Text(tuple(range(first, first + _TOPIC_WORDS)))


def draw_canvases(scans: NDArray[np.float32], rng: np.random.Generator) -> Tensor:
    """Scans ``[n, 8, 8]`` somewhere on noise, ``[n, 3, 12, 12]`` in three equal channels, normalised as photographs."""
    canvases = rng.normal(0, _NOISE, (len(scans), CANVAS_SIDE, CANVAS_SIDE)).astype(np.float32)
    room = CANVAS_SIDE - scans.shape[1] + 1
    for canvas, scan, (top, left) in zip(canvases, scans, rng.integers(room, size=(len(scans), 2)), strict=True):
        canvas[top : top + len(scan), left : left + len(scan)] += scan
    grey = torch.from_numpy(canvases)[..., None].expand(-1, -1, -1, 3)
    return normalise(grey * 255)


def draw_labelled(digits: Digits, repeats: int, seed: int) -> tuple[Tensor, NDArray[np.int64]]:
    """Every digit ``repeats`` times on canvases of its own, for judging encoders; the labels go along."""
    rng = np.random.default_rng(seed)
    canvases = torch.cat([draw_canvases(digits.images, rng) for _ in range(repeats)])
    return canvases, np.tile(digits.labels, repeats)
