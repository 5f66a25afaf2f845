"""The vocabularies that decoders were trained with, and the words that stand for their rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from services.runtime.weights import WEIGHTS_FILE, WeightsError
from services.trainer.scenes.categories import CATEGORIES
from services.trainer.scenes.drawings import CONCEPTS
from services.trainer.scenes.grounds import NAMED_GROUNDS
from services.trainer.scenes.pose_names import POSE_NAMES
from services.trainer.segment_names import REGION_ROW, SEGMENT_NAMES

_TENSOR = "vocabulary.weight"
_CATEGORY_OF_NAME = {
    name: index
    for index, category in enumerate(CATEGORIES)
    for name in (category.english, category.english_plural, category.chinese)
}
_GROUND_OF_NAME = {
    name: SEGMENT_NAMES.index(ground.key) for ground in NAMED_GROUNDS for name in (ground.english, ground.chinese)
}
_POSE_ROW_OF_NAME = {name: row for row, words in enumerate(POSE_NAMES) for name in (words.english, words.chinese)}
# "region 1", "dog 2", "狗 2": the words stand for a place that the tool is told beside them.
_HANDLE = re.compile(r".+ \d+")


@dataclass(frozen=True)
class Vocabulary:
    """One decoder's."""

    # [rows, width].
    rows: Tensor
    # The row that a phrase means, or -1.
    row_of: Callable[[str], int]

    def to(self, device: torch.device) -> Vocabulary:
        """The same on ``device``."""
        return Vocabulary(self.rows.to(device), self.row_of)


def category_of(phrase: str) -> int:
    """The category that a phrase names in English (singular or plural) or Chinese, or -1."""
    return _CATEGORY_OF_NAME.get(phrase.lower(), -1)


def load_vocabularies(folders: Mapping[str, Path]) -> dict[str, Vocabulary]:
    """The vocabularies of the decoders in ``folders``: "detection", "segmentation", "pose", "diffusion".

    Raises WeightsError where a folder holds none.
    """
    return {
        decoder: Vocabulary(read_vocabulary(folders[decoder]), row_of)
        for decoder, row_of in _ROW_OF.items()
        if decoder in folders
    }


def read_vocabulary(folder: Path) -> Tensor:
    """The rows ``[rows, width]`` in a decoder's export or in what ``draw_vocabularies`` wrote, float32.

    Raises WeightsError where there are none.
    """
    # The diffusion tool is several folders, and its vocabulary one of them.
    part = folder / "vocabulary" / WEIGHTS_FILE
    file, tensor = (part, "weight") if part.is_file() else (folder / WEIGHTS_FILE, _TENSOR)
    if not file.is_file():
        raise WeightsError(f"{folder} has no {WEIGHTS_FILE} to read a vocabulary from.")
    with safe_open(file, framework="pt") as weights:
        if tensor not in weights.keys():  # noqa: SIM118  (it is no mapping)
            raise WeightsError(f"{file} holds no vocabulary.")
        rows: Tensor = weights.get_tensor(tensor)
    return rows.float()


def fill_vocabulary(vocabulary: nn.Embedding, folder: Path) -> None:
    """Give a decoder the rows in ``folder``. Raises WeightsError where there are none, or of another shape."""
    rows, wanted = read_vocabulary(folder), vocabulary.weight
    if rows.shape != wanted.shape:
        raise WeightsError(f"{folder}: the vocabulary is {tuple(rows.shape)} instead of {tuple(wanted.shape)}.")
    with torch.no_grad():
        wanted.copy_(rows)


def draw_vocabularies(out: Path, detector: Path, seed: int) -> dict[str, Tensor]:
    """Draw the rows of the decoders that train before an MLLM speaks to them, and write each to a folder of ``out``.

    They are as wide as those of ``detector``, an export, and the segmenter's categories have the detector's very rows.
    Decoders and MLLM can then learn the same rows at the same time. Returns the rows by decoder. Raises WeightsError
    where the detector has no vocabulary of the scenes' categories.
    """
    known = read_vocabulary(detector)
    if len(known) != len(CATEGORIES):
        raise WeightsError(f"{detector}: the vocabulary has {len(known)} rows instead of {len(CATEGORIES)}.")
    generator = torch.Generator().manual_seed(seed)
    sizes = {"segmentation": len(SEGMENT_NAMES), "pose": len(POSE_NAMES), "diffusion": len(CONCEPTS)}
    drawn = {decoder: torch.randn(rows, known.shape[1], generator=generator) for decoder, rows in sizes.items()}
    drawn["segmentation"][: len(known)] = known
    for decoder, rows in drawn.items():
        (out / decoder).mkdir(parents=True, exist_ok=True)
        save_file({_TENSOR: rows}, str(out / decoder / WEIGHTS_FILE))
    return drawn


def segment_row(phrase: str) -> int:
    """The row of the segmenter's vocabulary that a phrase means, or -1."""
    if _HANDLE.fullmatch(phrase):
        return REGION_ROW
    return _GROUND_OF_NAME.get(phrase.lower(), category_of(phrase))


def pose_row(phrase: str) -> int:
    """The row of the pose estimator's vocabulary that a phrase means, or -1."""
    return _POSE_ROW_OF_NAME.get(phrase.lower(), -1)


_ROW_OF: Mapping[str, Callable[[str], int]] = {
    "detection": category_of,
    "segmentation": segment_row,
    "pose": pose_row,
    # Its rows come with the conversation: no word alone says what a picture shows.
    "diffusion": lambda _: -1,
}
