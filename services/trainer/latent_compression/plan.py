"""What a recipe says about latent compression learning."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from services.mllm.towers import ClipTower
from superlink.configuration import Section


class DecoderSize(Section):
    """The causal language model, which is thrown away after training; its width is also that of the contrast.

    The defaults are the paper's beside ViT-B/16.
    """

    hidden_size: PositiveInt = 768
    layers: PositiveInt = 12
    heads: PositiveInt = 12
    # Of the attentive pool. The released sizes have 64 channels a head.
    pool_heads: PositiveInt = 12
    # Longest sequence in tokens, those of images included.
    context: PositiveInt = 280


class DigitDocuments(Section):
    """Documents about handwritten digits, made as they are needed: see ``digit_documents.py``."""

    # Every image comes from another document: what is said no longer tells what is shown.
    images_swapped: bool = False


class _Corpus(Section):
    # Share of the samples, relative to the other corpora's.
    weight: PositiveFloat = 1.0


class Pairs(_Corpus):
    """Images with captions in tar shards, as img2dataset writes them: NAME.jpg (png, webp) beside NAME.txt."""

    shards: Path
    image_first: float = Field(default=0.5, ge=0, le=1)


class _Interleaved(_Corpus):
    # Folder of shards, searched at any depth.
    shards: Path
    # Folder of the downloaded images.
    images: Path
    most_images: PositiveInt = 6


class Mmc4(_Interleaved):
    """MMC4: shards ``*.jsonl``, ``*.jsonl.gz`` or ``*.jsonl.zip``; images by their ``image_name``."""

    least_similarity: float = 0.24


class Obelics(_Interleaved):
    """OBELICS: Parquet shards; images by the SHA-256 of their address (``src``)."""


class OmniCorpus(_Interleaved):
    """OmniCorpus: Parquet shards; images by their ``img_url_sha``."""


class Documents(Section):
    """What is learned from: any of these, mixed by their weights; digits stand alone."""

    digits: DigitDocuments | None = None
    pairs: Pairs | None = None
    mmc4: Mmc4 | None = None
    obelics: Obelics | None = None
    omnicorpus: OmniCorpus | None = None

    @model_validator(mode="after")
    def _some_are_named(self) -> Documents:
        others = [self.pairs, self.mmc4, self.obelics, self.omnicorpus]
        is_mixed = any(corpus is not None for corpus in others)
        if self.digits is None and not is_mixed:
            raise ValueError("name a corpus: digits, pairs, mmc4, obelics or omnicorpus")
        if self.digits is not None and is_mixed:
            raise ValueError("digits have a vocabulary of their own and cannot be mixed with other corpora")
        return self


class LabelledImages(Section):
    """Pictures by which encoders are judged while they learn: a folder with a sub-folder for each class."""

    training: Path
    held_out: Path
    # The classes' names, as texts know them, take the place of {}.
    templates: tuple[str, ...] = Field(default=("a photo of a {}.",), min_length=1)


class LatentCompression(Section):
    """One run of latent compression learning."""

    # The MLLM knows it as a vision tower.
    encoder: ClipTower = ClipTower()
    decoder: DecoderSize = DecoderSize()
    documents: Documents
    # The paper's lambda. With a weight of 0 a loss is left out.
    contrast_weight: float = Field(default=0.1, ge=0)
    generation_weight: float = Field(default=1.0, ge=0)
    # A tokenizer.json, of CLIP in the paper. Digits have words of their own and need none.
    tokenizer: Path | None = None
    # Unset: encoders of digits are judged on digits, others are not judged.
    judged_on: LabelledImages | None = None
    gradient_checkpointing: bool = False

    @model_validator(mode="after")
    def _parts_fit(self) -> LatentCompression:
        if self.documents.digits is None and self.tokenizer is None:
            raise ValueError("tokenizer: name a tokenizer.json")
        if self.documents.digits is not None and (self.tokenizer is not None or self.judged_on is not None):
            raise ValueError("tokenizer, judged_on: digits have words of their own and are judged on digits")
        if not self.contrast_weight and not self.generation_weight:
            raise ValueError("contrast_weight and generation_weight cannot both be 0")
        if self.encoder.tokens + 4 > self.decoder.context:
            raise ValueError(
                f"decoder.context: {self.decoder.context} tokens have no room for the {self.encoder.tokens} of an image"
            )
        return self
