"""Conversations about pictures with a small, a medium or a large shape: to learn from, and to be asked about.

FOLDER/close/meta.json   shapes seen from near: one tile is enough
FOLDER/train/meta.json   shapes of the three sizes, every picture once for each limit of tiles
FOLDER/test/meta.json    other pictures, asked about in both languages; sets small_en, small_zh, …
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from services.trainer.adaptation.conversion import META_FILE
from services.trainer.adaptation.converters import Exchange, Picture, visual_question
from services.trainer.adaptation.meta_file import DataSet, save_meta
from services.trainer.adaptation.rows import ConversationRow, write_rows
from services.trainer.scenes.composer import EVALUATION_SEED_START
from services.trainer.scenes.sized_shapes import SizedShape, SizeName, draw_sized_shape

_LANGUAGES = ("en", "zh")
# What is asked about in the end.
_ASKED_SIZES: tuple[SizeName, ...] = ("small", "medium", "large")
# Pictures of more tiles than InternVL trains on cost most of a run's time: they come half as often.
_DEAR_TILES = 12
# Of JPEG.
_QUALITY = 92


class ResolutionSetError(Exception):
    """The set cannot be made. The text says why."""


def make_resolution_set(
    folder: Path, close: int, training: int, test: int, tiles: Sequence[int], advance: Callable[[int], None]
) -> None:
    """Write ``close`` pictures from near, ``training`` of the three sizes to learn at ``tiles``, and ``test`` others.

    ``advance`` is told of pictures as they are made; the same numbers give the same set. Raises ResolutionSetError
    where ``folder`` is there already.
    """
    if folder.exists():
        raise ResolutionSetError(f"{folder} exists already. Name a new folder, or remove it.")
    _make_training(folder / "close", range(close), ("close",), {"close": 1}, advance)
    _make_training(
        folder / "train", range(training), _ASKED_SIZES, {f"tiles_{limit}": limit for limit in tiles}, advance
    )
    _make_test(folder / "test", test, advance)


def _shape(drawn: SizedShape, language: str) -> Exchange:
    if language == "zh":
        return "图中是什么形状？", drawn.shape.chinese
    return "What shape is in the picture?", drawn.shape.english


def _make_training(
    folder: Path,
    seeds: range,
    sizes: Sequence[SizeName],
    limits: Mapping[str, int],
    advance: Callable[[int], None],
) -> None:
    """Pictures of ``sizes`` by turns, in data sets by name with their limits of tiles."""
    rows = []
    for seed in seeds:
        rng = np.random.default_rng((seed, 12))
        drawn = draw_sized_shape(seed, sizes[seed % len(sizes)])
        language = _LANGUAGES[rng.integers(len(_LANGUAGES))]
        rows.append(visual_question(str(seed), _save(folder, seed, drawn), [_shape(drawn, language)]))
        advance(1)
    file = folder / "conversations.jsonl"
    write_rows(file, rows)
    sets = {
        name: DataSet(
            root=str(folder),
            annotation=str(file),
            length=len(rows),
            max_dynamic_patch=limit,
            repeat_time=0.5 if limit > _DEAR_TILES else 1.0,
        )
        for name, limit in limits.items()
    }
    save_meta(folder / META_FILE, sets)


def _make_test(folder: Path, count: int, advance: Callable[[int], None]) -> None:
    rows: dict[str, list[ConversationRow]] = defaultdict(list)
    for number in range(count):
        drawn = draw_sized_shape(EVALUATION_SEED_START + number, _ASKED_SIZES[number % len(_ASKED_SIZES)])
        picture = _save(folder, number, drawn)
        for language in _LANGUAGES:
            row = visual_question(str(number), picture, [_shape(drawn, language)])
            rows[f"{drawn.size}_{language}"].append(row)
        advance(1)
    sets = {}
    for name, own in rows.items():
        file = folder / f"{name}.jsonl"
        sets[name] = DataSet(root=str(folder), annotation=str(file), length=write_rows(file, own))
    save_meta(folder / META_FILE, sets)


def _save(folder: Path, number: int, drawn: SizedShape) -> Picture:
    path = f"pictures/{number:06}.jpg"
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    drawn.image.save(folder / path, quality=_QUALITY, subsampling=0)
    return Picture(path, drawn.image.width, drawn.image.height)
