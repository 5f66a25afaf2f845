"""Endless documents of one or several corpora, by number, so that a resumed run goes on where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from services.mllm.tiling import normalise
from services.trainer.latent_compression.corpora.corpus import Corpus, Document, Shard
from services.trainer.latent_compression.corpora.mmc4 import Mmc4Corpus
from services.trainer.latent_compression.corpora.pairs import PairCorpus
from services.trainer.latent_compression.corpora.parallel_lists import ObelicsCorpus, OmniCorpusCorpus
from services.trainer.latent_compression.document_tokenizer import DocumentTokenizer
from services.trainer.latent_compression.plan import Documents
from services.trainer.latent_compression.sequences import SequenceBuilder, Text, TokenSequence
from superlink.configuration import ConfigurationError

# So many samples in a row come from one shard of a corpus, which is then in memory.
_SAMPLES_A_SHARD = 512
# Documents that are tried before a corpus counts as broken.
_TRIES = 100
# OpenCLIP's random crop: the share of an image's area, and the range of its ratio.
_CROP_AREA = (0.9, 1.0)
_CROP_RATIO = (3 / 4, 4 / 3)
_CROP_TRIES = 10


class DocumentStream(Dataset[TokenSequence[Tensor]]):
    """Sample ``number`` follows from the seed and the number alone."""

    def __init__(
        self,
        corpora: Sequence[tuple[Corpus, float]],
        tokenizer: DocumentTokenizer,
        builder: SequenceBuilder,
        image_size: int,
        seed: int,
    ) -> None:
        self._sources = [_Source(corpus, corpus.shards()) for corpus, _ in corpora]
        weights = np.array([weight for _, weight in corpora])
        self._shares = weights / weights.sum()
        self._tokenizer = tokenizer
        self._builder = builder
        self._image_size = image_size
        self._seed = seed

    def __getitem__(self, number: int) -> TokenSequence[Tensor]:
        """Raises ConfigurationError where a shard has no document that can be used."""
        rng = np.random.default_rng((self._seed, number))
        source = self._sources[int(rng.choice(len(self._sources), p=self._shares))]
        rows = source.rows_for(number // _SAMPLES_A_SHARD, self._seed)
        # Neighbours, so that no batch has a document twice; what cannot be used is replaced at random.
        place = number % max(1, len(rows))
        for _ in range(_TRIES if rows else 0):
            document = source.corpus.document(rows[place], rng)
            sequence = None if document is None else self._sequence(document, rng)
            if sequence is not None and sequence.pictures:
                return sequence
            place = int(rng.integers(len(rows)))
        raise ConfigurationError(
            f"latent_compression.documents.{source.corpus.name}: none of {_TRIES} documents of a shard has an image "
            "that can be read. Are the images downloaded, and named as docs/latent_compression.md says?"
        )

    def _sequence(self, document: Document, rng: np.random.Generator) -> TokenSequence[Tensor]:
        parts: list[Text | Tensor] = [
            self._tokenizer.encode(part) if isinstance(part, str) else random_crop(part, self._image_size, rng)
            for part in document.parts
        ]
        if document.form == "interleaved":
            return self._builder.interleaved(parts)
        text = next(part for part in parts if isinstance(part, Text))
        pixels = next(part for part in parts if isinstance(part, Tensor))
        lay = self._builder.text_first if document.form == "text_first" else self._builder.image_first
        return lay(text, pixels)


@dataclass
class _Source:
    """A corpus, and the shard of it that was read last."""

    corpus: Corpus
    shards: list[Shard]
    _read: Shard | None = None
    _rows: Sequence[Any] = ()

    def rows_for(self, visit: int, seed: int) -> Sequence[Any]:
        """The rows of the shard that is visited ``visit``-th, in that visit's order."""
        epoch, place = divmod(visit, len(self.shards))
        shard = self.shards[int(np.random.default_rng((seed, epoch)).permutation(len(self.shards))[place])]
        if shard != self._read:
            self._rows, self._read = self.corpus.rows(shard), shard
        return self._rows


def open_corpora(documents: Documents) -> list[tuple[Corpus, float]]:
    """The corpora that a recipe names, with their weights. Raises ConfigurationError for folders that are not there."""
    corpora: list[tuple[Corpus, float]] = []
    if documents.pairs is not None:
        corpora.append((PairCorpus(documents.pairs), documents.pairs.weight))
    if documents.mmc4 is not None:
        corpora.append((Mmc4Corpus(documents.mmc4), documents.mmc4.weight))
    if documents.obelics is not None:
        corpora.append((ObelicsCorpus(documents.obelics), documents.obelics.weight))
    if documents.omnicorpus is not None:
        corpora.append((OmniCorpusCorpus(documents.omnicorpus), documents.omnicorpus.weight))
    return corpora


def random_crop(image: Image.Image, side: int, rng: np.random.Generator) -> Tensor:
    """A large random piece of an RGB image, ``[3, side, side]``, normalised as the MLLM's tiles are."""
    width, height = image.size
    for _ in range(_CROP_TRIES):
        area = width * height * rng.uniform(*_CROP_AREA)
        ratio = np.exp(rng.uniform(*np.log(_CROP_RATIO)))
        crop_width, crop_height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < crop_width <= width and 0 < crop_height <= height:
            break
    else:
        crop_width = crop_height = min(width, height)
    left, top = int(rng.integers(width - crop_width + 1)), int(rng.integers(height - crop_height + 1))
    box = (left, top, left + crop_width, top + crop_height)
    return _to_pixels(image.resize((side, side), Image.Resampling.BICUBIC, box=box))


def centre_crop(image: Image.Image, side: int) -> Tensor:
    """The middle square of an RGB image, ``[3, side, side]``, normalised as the MLLM's tiles are."""
    width, height = image.size
    shorter = min(width, height)
    left, top = (width - shorter) / 2, (height - shorter) / 2
    box = (left, top, left + shorter, top + shorter)
    return _to_pixels(image.resize((side, side), Image.Resampling.BICUBIC, box=box))


def _to_pixels(image: Image.Image) -> Tensor:
    pixels: NDArray[np.uint8] = np.array(image, dtype=np.uint8)
    return normalise(torch.from_numpy(pixels)[None])[0]
