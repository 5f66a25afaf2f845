"""MMC4 (Zhu et al. 2023): JSON lines with sentences, and images that were assigned to them by similarity."""

from __future__ import annotations

import gzip
import json
import zipfile
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from PIL import Image

from services.trainer.latent_compression.corpora.corpus import (
    Corpus,
    Document,
    ImageFolder,
    Shard,
    find_shards,
    read_picture,
)
from services.trainer.latent_compression.plan import Mmc4


class Mmc4Corpus(Corpus):
    """Rules of LCL, section 5.2 of its released code: one image a sentence, the first few of a document."""

    name = "mmc4"

    def __init__(self, settings: Mmc4) -> None:
        self._settings = settings
        self._images = ImageFolder(self.name, settings.images)

    def shards(self) -> list[Shard]:
        """See ``Corpus``."""
        patterns = ("*.jsonl", "*.jsonl.gz", "*.jsonl.zip")
        return [Shard(file) for file in find_shards(self.name, self._settings.shards, *patterns)]

    def rows(self, shard: Shard) -> Sequence[bytes]:
        """The lines of a shard."""
        if shard.file.suffix == ".zip":
            with zipfile.ZipFile(shard.file) as archive:
                content = b"".join(archive.read(member) for member in archive.namelist())
        elif shard.file.suffix == ".gz":
            content = gzip.decompress(shard.file.read_bytes())
        else:
            content = shard.file.read_bytes()
        return [line for line in content.splitlines() if line.strip()]

    def document(self, row: bytes, rng: np.random.Generator) -> Document | None:
        """Images stand before or after their sentence, as chance has it."""
        fields = json.loads(row)
        sentences: list[str] = fields["text_list"]
        pictures = self._pictures(fields["image_info"], len(sentences), rng)
        if not pictures:
            return None
        parts: list[str | Image.Image] = []
        text: list[str] = []
        for number, sentence in enumerate(sentences):
            picture = pictures.get(number)
            before = rng.random() < 0.5
            if picture is None or not before:
                text.append(sentence)
            if picture is not None:
                if text:
                    parts.append(" ".join(text))
                parts.append(picture)
                text = [sentence] if before else []
        if text:
            parts.append(" ".join(text))
        return Document(tuple(parts))

    def _pictures(
        self, infos: Sequence[dict[str, object]], sentences: int, rng: np.random.Generator
    ) -> dict[int, Image.Image]:
        """The image of every sentence that has one."""
        files = defaultdict(list)
        for info in infos:
            place, similarity = int(str(info["matched_text_index"])), float(str(info["matched_sim"]))
            file = self._images.find(str(info["image_name"]))
            if file is not None and similarity >= self._settings.least_similarity and 0 <= place < sentences:
                files[place].append(file)
        chosen = {place: files[place][int(rng.integers(len(files[place])))] for place in sorted(files)}
        first = list(chosen.items())[: self._settings.most_images]
        pictures = {place: read_picture(file.read_bytes()) for place, file in first}
        return {place: picture for place, picture in pictures.items() if picture is not None}
