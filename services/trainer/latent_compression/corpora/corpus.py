"""What all corpora have in common: shards, their rows, and what becomes of a row."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as parquet  # type: ignore[import-untyped]
from PIL import Image

from services.runtime.images import decode_image
from superlink.configuration import ConfigurationError
from superlink.errors import SuperlinkError
from superlink.profile import ImageLimits

_IMAGE_ENDINGS = ("", ".jpg", ".jpeg", ".png", ".webp")
_LIMITS = ImageLimits()


@dataclass(frozen=True)
class Document:
    """Texts and images in reading order, and how they become a sequence: see ``sequences.py``."""

    parts: tuple[str | Image.Image, ...]
    form: Literal["interleaved", "text_first", "image_first"] = "interleaved"


@dataclass(frozen=True)
class Shard:
    """A piece of a corpus that is read at once: a file, or a row group of a Parquet file."""

    file: Path
    row_group: int = 0


class Corpus(ABC):
    """One corpus in its published layout."""

    name: str

    @abstractmethod
    def shards(self) -> list[Shard]:
        """All shards, sorted. Raises ConfigurationError where there are none."""

    @abstractmethod
    def rows(self, shard: Shard) -> Sequence[Any]:
        """What ``document`` takes, one for each document of a shard."""

    @abstractmethod
    def document(self, row: Any, rng: np.random.Generator) -> Document | None:
        """A row as a document with at least one image; None where it has none that can be read."""


def find_shards(name: str, folder: Path, *patterns: str) -> list[Path]:
    """Files below ``folder`` that match, sorted. Raises ConfigurationError naming the key and what was looked for."""
    found = sorted(file for pattern in patterns for file in folder.rglob(pattern))
    if not found:
        raise ConfigurationError(
            f"latent_compression.documents.{name}.shards: {folder} has no {' or '.join(patterns)}."
        )
    return found


def parquet_shards(files: Sequence[Path]) -> list[Shard]:
    """The row groups of Parquet files."""
    return [
        Shard(file, number) for file in files for number in range(parquet.ParquetFile(file).metadata.num_row_groups)
    ]


def parquet_rows(shard: Shard, columns: Sequence[str]) -> list[dict[str, Any]]:
    """A row group's rows. Raises ConfigurationError for columns that the file has not."""
    file = parquet.ParquetFile(shard.file)
    missing = [column for column in columns if column not in file.schema_arrow.names]
    if missing:
        raise ConfigurationError(f"{shard.file}: there is no column {', '.join(missing)}.")
    rows: list[dict[str, Any]] = file.read_row_group(shard.row_group, columns=list(columns)).to_pylist()
    return rows


class ImageFolder:
    """Downloaded images by name, with or without an ending; in the folder, or below it by their first two letters."""

    def __init__(self, name: str, folder: Path) -> None:
        """Raises ConfigurationError where there is no such folder."""
        if not folder.is_dir():
            raise ConfigurationError(f"latent_compression.documents.{name}.images: there is no folder {folder}.")
        self._folder = folder.resolve()

    def find(self, name: str) -> Path | None:
        """The file of an image, None where it was not downloaded. Names come from outside: none leaves the folder."""
        for ending in _IMAGE_ENDINGS:
            for folder in (self._folder, self._folder / name[:2]):
                file = folder / f"{name}{ending}"
                if file.is_file() and file.resolve().is_relative_to(self._folder):
                    return file
        return None


def read_picture(encoded: bytes) -> Image.Image | None:
    """An image file as RGB, None where it is damaged or too large: crawled images often are."""
    try:
        return Image.fromarray(decode_image(encoded, _LIMITS))
    except SuperlinkError:
        return None


def address_digest(address: str) -> str:
    """What a downloaded image is called: the SHA-256 of its address."""
    return hashlib.sha256(address.encode()).hexdigest()
