"""Small real sets of rows and a small InternVL-shaped model to learn them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from services.mllm.config import LanguageSize
from services.mllm.towers import VisionSize
from services.trainer.adaptation.converters import Picture, grounding, visual_question
from services.trainer.adaptation.meta_file import DataSet, save_meta
from services.trainer.adaptation.plan import Adaptation, NewModel
from services.trainer.adaptation.rows import ConversationRow, Message, write_rows
from services.trainer.recipe import Checkpoints, Data, Evaluation, Recipe, Schedule

COLOURS = ("red", "green", "blue", "white", "black", "yellow")


def write_set(folder: Path, rows: Sequence[ConversationRow], name: str = "colours", **fields: Any) -> Path:
    """Rows whose pictures lie in ``folder`` as a meta file."""
    write_rows(folder / f"{name}.jsonl", rows)
    entry = DataSet(root=str(folder), annotation=str(folder / f"{name}.jsonl"), **({"length": len(rows)} | fields))
    save_meta(folder / f"{name}.json", {name: entry})
    return folder / f"{name}.json"


def colour_rows(folder: Path, count: int = 6) -> list[ConversationRow]:
    """Pictures of one colour of several shapes; some rows ask twice, some where it is, and the last shows nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count - 1):
        colour, size = COLOURS[number % len(COLOURS)], ((28, 28), (60, 30), (30, 90))[number % 3]
        Image.new("RGB", size, colour).save(folder / f"{number}.png")
        picture = Picture(f"{number}.png", *size)
        if number % 3 == 1:
            rows.append(grounding(str(number), picture, {colour: [(0, 0, size[0] / 2, size[1])]}))
        else:
            exchanges = [("Which colour is it?", colour), ("Are you sure that it is?", "Yes, it is.")]
            rows.append(visual_question(str(number), picture, exchanges[: 1 + number % 2]))
    said = (Message(speaker="human", value="Say the colours."), Message(speaker="gpt", value=", ".join(COLOURS)))
    return [*rows, ConversationRow(id="words", conversations=said)]


def new_model(meta: Path) -> NewModel:
    return NewModel(
        texts=(meta,),
        vocabulary=420,
        tile_size=28,
        vision=VisionSize(
            patch_embedding="linear", hidden_size=32, layers=2, heads=2, intermediate_size=48, patch_size=7
        ),
        language=LanguageSize(
            hidden_size=48, layers=2, heads=4, key_value_heads=2, intermediate_size=64, max_positions=256
        ),
    )


def small_recipe(meta: Path, name: str = "small", steps: int = 3, **fields: Any) -> Recipe:
    """A recipe of the adaptation stage; ``fields`` are those of its section, or ``start_from`` of the recipe."""
    start_from = fields.pop("start_from", {})
    start: dict[str, Any] = {} if "mllm" in start_from else {"new_model": new_model(meta)}
    return Recipe(
        name=name,
        stage="adaptation",
        threads=1,
        schedule=Schedule(
            steps=steps, batch_size=4, learning_rate=3e-3, warmup_steps=1, final_learning_rate=0, adam_beta2=0.999
        ),
        data=Data(workers=0),
        evaluation=Evaluation(every_steps=100, scenes=8),
        checkpoints=Checkpoints(every_steps=2),
        adaptation=Adaptation.model_validate({"meta": meta, "max_tiles": 4} | start | fields),
        start_from=start_from,
    )
