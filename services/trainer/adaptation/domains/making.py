"""Writes the small domains and the general data: pictures, rows and a meta file each, for training and for testing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from services.trainer.adaptation.conversion import META_FILE
from services.trainer.adaptation.domains.aerial import draw_aerial
from services.trainer.adaptation.domains.driving import draw_driving
from services.trainer.adaptation.domains.handwriting import draw_handwriting
from services.trainer.adaptation.domains.naming import draw_naming
from services.trainer.adaptation.meta_file import DataSet, save_meta
from services.trainer.adaptation.rows import ConversationRow, write_rows
from services.trainer.digits import load_digits
from services.trainer.recipe import Data
from services.trainer.stage import make_composer

GENERAL = "general"
DOMAINS = ("aerial", "driving", "handwriting")
GENERAL_ROWS = 4000
DOMAIN_ROWS = 500
TEST_ROWS = 120
# Passes over a domain in an epoch: one is too little to learn to place boxes, as the published recipes found.
_PASSES = 8
# Test pictures are made of seeds from here on.
_TEST_SEEDS = 1_000_000

Draw = Callable[[Path, range], Iterator[ConversationRow]]


def make_domains(out: Path, advance: Callable[[int], None]) -> list[Path]:
    """Write ``out/NAME/train`` and ``out/NAME/test`` for every domain and the general data; returns the meta files.

    ``advance`` is told of rows as they are written. Raises SpriteError where the art of scenes is missing.
    """
    composer = make_composer(Data())
    training, held_out = load_digits()

    def draw_scanned(pictures: Path, seeds: range) -> Iterator[ConversationRow]:
        return draw_handwriting(training if seeds.start < _TEST_SEEDS else held_out, pictures, len(seeds))

    drawn: dict[str, Draw] = {
        GENERAL: lambda pictures, seeds: draw_naming(composer, pictures, seeds),
        "aerial": draw_aerial,
        "driving": draw_driving,
        "handwriting": draw_scanned,
    }
    metas = []
    for name, draw in drawn.items():
        rows = GENERAL_ROWS if name == GENERAL else DOMAIN_ROWS
        passes = 1 if name == GENERAL else _PASSES
        metas.append(_write(out / name / "train", name, draw, range(rows), passes, advance))
        metas.append(_write(out / name / "test", name, draw, range(_TEST_SEEDS, _TEST_SEEDS + TEST_ROWS), 1, advance))
    return metas


def all_rows() -> int:
    """How many rows ``make_domains`` writes."""
    return GENERAL_ROWS + len(DOMAINS) * DOMAIN_ROWS + (1 + len(DOMAINS)) * TEST_ROWS


def _write(folder: Path, name: str, draw: Draw, seeds: range, passes: int, advance: Callable[[int], None]) -> Path:
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)

    def told() -> Iterator[ConversationRow]:
        for row in draw(pictures, seeds):
            advance(1)
            yield row

    file = folder / "rows.jsonl"
    count = write_rows(file, told())
    data_set = DataSet(root=str(pictures), annotation=str(file), length=count, repeat_time=passes)
    save_meta(folder / META_FILE, {name: data_set})
    return folder / META_FILE
