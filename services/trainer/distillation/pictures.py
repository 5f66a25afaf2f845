"""Pictures to distil on: any folder of images. Nothing has to be known about them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from services.mllm.tiling import cut_tiles
from superlink.configuration import ConfigurationError

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def find_pictures(folder: Path) -> list[Path]:
    """All image files below ``folder``, by name. Raises ConfigurationError where there are none."""
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES)
    if not found:
        raise ConfigurationError(f"distillation.images: there is no image in {folder}.")
    return found


def hold_out(files: Sequence[Path], count: int, seed: int) -> tuple[list[Path], list[Path]]:
    """The files to learn from, and ``count`` of them drawn at random to look at during training.

    Raises ConfigurationError where nothing would be left to learn from.
    """
    if count >= len(files):
        raise ConfigurationError(
            f"evaluation.scenes: {count} pictures cannot be held out of {len(files)}; distillation.images needs more."
        )
    order = np.random.default_rng((seed, 21)).permutation(len(files)).tolist()
    return [files[place] for place in sorted(order[count:])], [files[place] for place in sorted(order[:count])]


def read_tile(file: Path, size: int) -> Tensor:
    """The whole picture as one tile, ``[3, size, size]`` float32, normalised. Raises ConfigurationError."""
    try:
        with Image.open(file) as image:
            return cut_tiles(image, 1, size)[0]
    except (OSError, UnidentifiedImageError) as error:
        raise ConfigurationError(f"{file}: is not a readable image ({error}).") from error


class Pictures(Dataset[Tensor]):
    """Tiles of files, endlessly: every pass has an order of its own, which follows from the seed alone."""

    def __init__(self, files: Sequence[Path], size: int, seed: int) -> None:
        self.files, self.size, self.seed = files, size, seed
        self._pass = -1
        self._order: list[int] = []

    def __getitem__(self, index: int) -> Tensor:
        number, place = divmod(index, len(self.files))
        if number != self._pass:
            self._pass = number
            self._order = np.random.default_rng((self.seed, 22, number)).permutation(len(self.files)).tolist()
        return read_tile(self.files[self._order[place]], self.size)
