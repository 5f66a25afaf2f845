"""OBELICS and OmniCorpus: Parquet with two lists as long as the document, ``images`` and ``texts``.

At every place exactly one of them says something. ``images`` holds addresses; the user has downloaded the files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from services.trainer.latent_compression.corpora.corpus import (
    Corpus,
    Document,
    ImageFolder,
    Shard,
    address_digest,
    find_shards,
    parquet_rows,
    parquet_shards,
    read_picture,
)
from services.trainer.latent_compression.plan import Obelics, OmniCorpus


class ObelicsCorpus(Corpus):
    """OBELICS (Laurençon et al. 2023)."""

    name = "obelics"
    _columns: tuple[str, ...] = ("images", "texts")

    def __init__(self, settings: Obelics | OmniCorpus) -> None:
        self._settings = settings
        self._images = ImageFolder(self.name, settings.images)

    def shards(self) -> list[Shard]:
        """See ``Corpus``."""
        return parquet_shards(find_shards(self.name, self._settings.shards, "*.parquet"))

    def rows(self, shard: Shard) -> Sequence[dict[str, Any]]:
        """See ``Corpus``."""
        return parquet_rows(shard, self._columns)

    def document(self, row: dict[str, Any], rng: np.random.Generator) -> Document | None:  # noqa: ARG002
        """Images beyond ``most_images``, and those that were not downloaded, are left out; their texts stay."""
        parts: list[str | Image.Image] = []
        pictures = 0
        for place, (address, text) in enumerate(zip(row["images"], row["texts"], strict=True)):
            if text is not None:
                if parts and isinstance(parts[-1], str):
                    parts[-1] = f"{parts[-1]} {text}"
                else:
                    parts.append(text)
            elif address is not None and pictures < self._settings.most_images:
                picture = self._picture(row, place, address)
                if picture is not None:
                    parts.append(picture)
                    pictures += 1
        return Document(tuple(parts)) if pictures else None

    def _picture(self, row: dict[str, Any], place: int, address: str) -> Image.Image | None:
        file = self._images.find(self._image_name(row, place, address))
        return None if file is None else read_picture(file.read_bytes())

    def _image_name(self, _row: dict[str, Any], _place: int, address: str) -> str:
        return address_digest(address)


class OmniCorpusCorpus(ObelicsCorpus):
    """OmniCorpus-CC (Li et al. 2024), whose metadata brings the digests of addresses along."""

    name = "omnicorpus"
    _columns = ("images", "texts", "metadata")

    def _image_name(self, row: dict[str, Any], place: int, address: str) -> str:
        about = row["metadata"][place]
        return str(about["img_url_sha"]) if about and about.get("img_url_sha") else address_digest(address)
