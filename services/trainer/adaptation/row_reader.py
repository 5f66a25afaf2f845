"""From a row to what a model reads: turns, tiles, ids, and labels on the answers alone.

Rows are laid out as the service lays out what it is asked (``services.mllm.conversation``), with the model's own prompt
format, so that an adapted model is asked in the words that it learned from.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from services.mllm.config import MllmConfig
from services.mllm.conversation import ImagePart, Part, RoleName, Text, Turn, VideoPart, fold_capitals, render
from services.mllm.tiling import cut_tiles, share_tiles
from services.mllm.tokenizer import MllmTokenizer
from services.trainer.adaptation.meta_file import DataSet
from services.trainer.adaptation.packing import ImageSpan, PackSample
from services.trainer.adaptation.rows import ConversationRow, Message, RowError
from services.trainer.adaptation.video_frames import read_frames

_ROLES: dict[str, RoleName] = {"system": "system", "human": "user", "gpt": "assistant"}
# A mark with the number that some data write before it, and the line break behind it: rendering brings both.
_MARK = re.compile(r"(?:Image-\d+: )?(<image>|<video>)\n?")
# Of data sets with ``data_augment``.
_JPEG_QUALITIES = (75, 100)


@dataclass(frozen=True)
class SeenRow:
    """A conversation and what it is about, in reading order."""

    turns: tuple[Turn, ...]
    # [tiles, 3, size, size] of each image, or frame of a video.
    images: tuple[Tensor, ...]


@dataclass(frozen=True)
class LearnedRow:
    """A conversation to learn from."""

    sample: PackSample
    # [tiles, 3, size, size] of all images in order; none for text.
    tiles: Tensor


class RowReader:
    """Reads rows for one model."""

    def __init__(self, config: MllmConfig, tokenizer: MllmTokenizer, max_tiles: int, video_frames: int) -> None:
        self._tokenizer = tokenizer
        self._tile_size = config.tile_size
        self._tokens_per_tile = config.tokens_per_tile
        self._folds_capitals = config.fold_capitals
        self._own_max_tiles = config.max_tiles
        self._max_tiles = max_tiles
        self._video_frames = video_frames

    def see(self, row: ConversationRow, data_set: DataSet, rng: np.random.Generator | None = None) -> SeenRow:
        """The turns of ``row`` and its tiles. With ``rng`` images are augmented, where the data set wants that.

        Several images share the tiles of one. Raises RowError for images and videos that cannot be read.
        """
        root = Path(data_set.root)
        if row.video is not None:
            frames = read_frames(root / row.video, self._video_frames, row.clip)
            images = [cut_tiles(frame, 1, self._tile_size) for frame in frames]
        else:
            budget = share_tiles(data_set.max_dynamic_patch or self._max_tiles, len(row.images))
            budget = min(budget, self._own_max_tiles or budget)
            pictures = [_open(root / path) for path in row.images]
            if rng is not None and data_set.data_augment:
                pictures = [_recompressed(picture, rng) for picture in pictures]
            images = [cut_tiles(picture, budget, self._tile_size) for picture in pictures]
        return SeenRow(tuple(self._turns(row, len(images))), tuple(images))

    def learn(self, row: ConversationRow, data_set: DataSet, rng: np.random.Generator | None = None) -> LearnedRow:
        """``row`` as ids, with labels on what ``gpt`` says and on the ends of its turns. Raises RowError."""
        seen = self.see(row, data_set, rng)
        rendered = render(seen.turns, self._tokenizer, self.token_counts(seen), for_generation=False)
        starts = [place for place, token in enumerate(rendered.input_ids) if token == self._tokenizer.image_start_id]
        counts = [len(tiles) for tiles in seen.images]
        firsts = [0, *accumulate(counts)]
        spans = tuple(ImageSpan(*span) for span in zip(starts, counts, firsts, strict=False))
        size = self._tile_size
        tiles = torch.cat(seen.images) if seen.images else torch.empty(0, 3, size, size)
        return LearnedRow(PackSample(tuple(rendered.input_ids), tuple(rendered.labels), spans), tiles)

    def token_counts(self, seen: SeenRow) -> list[int]:
        """Image tokens of each image."""
        return [len(tiles) * self._tokens_per_tile for tiles in seen.images]

    def _turns(self, row: ConversationRow, images: int) -> list[Turn]:
        turns, shown = [], 0
        for message in row.conversations:
            parts = self._parts(message, shown, images)
            shown += sum(isinstance(part, ImagePart) for part in parts)
            turns.append(Turn(_ROLES[message.speaker], tuple(parts)))
        return turns

    def _parts(self, message: Message, shown: int, images: int) -> list[Part]:
        """What a message says and shows; ``shown`` images stood before it, of ``images`` in all."""
        text = message.value
        if message.speaker != "human":
            return [Text(text)]
        text = fold_capitals(text) if self._folds_capitals else text
        parts: list[Part] = []
        for piece in _MARK.split(text):
            if piece == "<image>":
                parts.append(ImagePart(shown))
                shown += 1
            elif piece == "<video>":
                parts.append(VideoPart(0, images))
            elif piece:
                parts.append(Text(piece))
        return [_without_end(part) for part in parts] if images == 1 else parts


def shifted(row: LearnedRow, tiles: int) -> PackSample:
    """The sample of ``row`` among others, of whose tiles ``tiles`` stand before its own."""
    spans = tuple(replace(image, first=image.first + tiles) for image in row.sample.images)
    return replace(row.sample, images=spans)


def _without_end(part: Part) -> Part:
    """A single image moves to the front of its turn; the line break that parted it from words before it goes."""
    return Text(part.text.rstrip("\n")) if isinstance(part, Text) else part


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise RowError(f"{path}: is not an image that can be read ({error}).") from error


def _recompressed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(_JPEG_QUALITIES[0], _JPEG_QUALITIES[1] + 1)))
    return Image.open(buffer).convert("RGB")
