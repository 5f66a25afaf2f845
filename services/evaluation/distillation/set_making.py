"""Pictures of the quarters world with conversations about some of them, and others to be asked about.

FOLDER/pictures/               all pictures to learn from; for distillation nothing else of them is needed
FOLDER/train_200/meta.json …   conversations about the first 200 of them …, two questions each
FOLDER/test/meta.json          other pictures; sets naming and colour: one question a row
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from services.trainer.adaptation.conversion import META_FILE
from services.trainer.adaptation.converters import Picture, visual_question
from services.trainer.adaptation.meta_file import DataSet, save_meta
from services.trainer.adaptation.rows import ConversationRow, write_rows
from services.trainer.scenes.composer import EVALUATION_SEED_START, Composer
from services.trainer.scenes.quarters import ask_quarters, draw_quarters

# Seeds of one set's pictures; each seed of the experiment has a set of its own.
_SEEDS_A_SET = 1_000_000


def make_quarters_set(
    folder: Path, composer: Composer, seed: int, labelled: Sequence[int], test: int, advance: Callable[[int], None]
) -> None:
    """Write as many pictures as the largest of ``labelled``, conversations about so many, and ``test`` other pictures.

    ``advance`` is told of pictures as they are made. The meta file of the test is written last: where it is, all is.
    """
    first = seed * _SEEDS_A_SET
    rows = []
    for number in range(max(labelled)):
        picture = _save(folder, f"pictures/{number:06}.png", composer, first + number)
        exchanges = list(ask_quarters(draw_quarters(composer, first + number), first + number).values())
        rows.append(visual_question(str(number), picture, exchanges))
        advance(1)
    for count in labelled:
        _write(folder, f"train_{count}", {"quarters": rows[:count]})
    asked: dict[str, list[ConversationRow]] = {}
    for number in range(test):
        own = EVALUATION_SEED_START + first + number
        picture = _save(folder, f"test/pictures/{number:06}.png", composer, own)
        for kind, exchange in ask_quarters(draw_quarters(composer, own), own).items():
            asked.setdefault(kind, []).append(visual_question(str(number), picture, [exchange]))
        advance(1)
    _write(folder, "test", asked)


def _save(folder: Path, path: str, composer: Composer, seed: int) -> Picture:
    image = Image.fromarray(draw_quarters(composer, seed).image)
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    image.save(folder / path)
    return Picture(path, image.width, image.height)


def _write(folder: Path, part: str, sets: dict[str, list[ConversationRow]]) -> None:
    written = {}
    for name, rows in sets.items():
        file = folder / part / f"{name}.jsonl"
        written[name] = DataSet(root=str(folder), annotation=str(file), length=write_rows(file, rows))
    save_meta(folder / part / META_FILE, written)
