"""Images with captions, as documents of one text and one image: LAION and the like, as img2dataset downloads them."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from services.trainer.latent_compression.corpora.corpus import Corpus, Document, Shard, find_shards, read_picture
from services.trainer.latent_compression.plan import Pairs

_IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp")


@dataclass(frozen=True)
class _Span:
    start: int
    size: int


@dataclass(frozen=True)
class PairRow:
    """Where a pair lies in its shard."""

    file: Path
    image: _Span
    text: _Span


class PairCorpus(Corpus):
    """Half the pairs begin with the image and train generation; the others begin with the text and train contrast."""

    name = "pairs"

    def __init__(self, settings: Pairs) -> None:
        self._settings = settings

    def shards(self) -> list[Shard]:
        """See ``Corpus``."""
        return [Shard(file) for file in find_shards(self.name, self._settings.shards, "*.tar")]

    def rows(self, shard: Shard) -> Sequence[PairRow]:
        """Members of one name are a pair; what has no caption is left out."""
        members: dict[str, dict[str, _Span]] = {}
        with tarfile.open(shard.file) as archive:
            for member in archive:
                stem, _, ending = member.name.rpartition(".")
                if member.isfile():
                    members.setdefault(stem, {})[ending.lower()] = _Span(member.offset_data, member.size)
        rows = []
        for spans in members.values():
            image = next((spans[ending] for ending in _IMAGE_ENDINGS if ending in spans), None)
            if image is not None and "txt" in spans:
                rows.append(PairRow(shard.file, image, spans["txt"]))
        return rows

    def document(self, row: PairRow, rng: np.random.Generator) -> Document | None:
        """See ``Corpus``."""
        image_first = rng.random() < self._settings.image_first
        with row.file.open("rb") as file:
            encoded, text = (_read(file, span) for span in (row.image, row.text))
        picture = read_picture(encoded)
        if picture is None:
            return None
        caption = text.decode("utf-8", errors="replace").strip()
        if image_first:
            return Document((picture, caption), "image_first")
        return Document((caption, picture), "text_first")


def _read(file: BinaryIO, span: _Span) -> bytes:
    file.seek(span.start)
    return file.read(span.size)
