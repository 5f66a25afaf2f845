"""What a layout is, and how its readers open files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from services.trainer.adaptation.converters import Picture
from services.trainer.adaptation.region_marks import Mark
from services.trainer.adaptation.rows import ConversationRow

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")


class LayoutError(ValueError):
    """A data set is not in the layout that was named. The text says which file lacks what."""


@dataclass(frozen=True)
class Source:
    """What a reader is given."""

    # The data set as it was unpacked.
    folder: Path
    # "train", "val", ...; how each data set spells it.
    split: str
    # Folder for images that a reader makes: stitched cameras, marked regions.
    pictures: Path
    # How regions are marked, where a layout marks them.
    mark: Mark = "box"


@dataclass(frozen=True)
class Layout:
    """A published layout, and its reader."""

    # One line: what becomes of the data.
    summary: str
    # What lies in its folder.
    files: str
    read: Callable[[Source], Iterator[ConversationRow]]
    # Whether rows show images that the reader makes; paths then start at ``Source.pictures``.
    makes_pictures: bool = False


def read_json(file: Path) -> Any:
    """The content of a JSON file. Raises LayoutError."""
    try:
        return _parsed(file.read_text(encoding="utf-8"), str(file))
    except OSError as error:
        raise LayoutError(f"{file}: cannot be read ({error.strerror}). This layout needs it.") from error
    except UnicodeDecodeError as error:
        raise LayoutError(f"{file}: is not UTF-8 ({error.reason} at byte {error.start}).") from error


def read_json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    """Each line of a JSONL file, with the words for where it stands; empty ones are left out. Raises LayoutError."""
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                place = f"{file}, line {number}"
                if line.strip():
                    yield place, _parsed(line, place)
    except OSError as error:
        raise LayoutError(f"{file}: cannot be read ({error.strerror}). This layout needs it.") from error
    except UnicodeDecodeError as error:
        raise LayoutError(f"{file}: is not UTF-8 ({error.reason} at byte {error.start}).") from error


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise LayoutError(f"{place}: is not valid JSON: {error}") from error


def field(entry: Any, key: str, place: str) -> Any:
    """``entry[key]``. Raises LayoutError naming the ``place`` where it is missing."""
    if not isinstance(entry, Mapping) or key not in entry:
        raise LayoutError(f"{place}: has no {key!r}.")
    return entry[key]


@lru_cache(maxsize=65536)
def picture(root: Path, path: str) -> Picture:
    """An image with its size, of which only the header is read. Raises LayoutError."""
    try:
        with Image.open(root / path) as image:
            return Picture(path, image.width, image.height)
    except FileNotFoundError as error:
        raise LayoutError(f"{root / path}: is missing.") from error
    except (OSError, UnidentifiedImageError) as error:
        raise LayoutError(f"{root / path}: is not an image: {error}") from error


def save_picture(image: Image.Image, file: Path) -> None:
    """Write a JPEG that appears whole, so that a conversion that was cut off can go on."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.partial")
    image.convert("RGB").save(partial, "JPEG", quality=95)
    os.replace(partial, file)
