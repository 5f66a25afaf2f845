"""Edit pairs at a glance: before and after side by side under their instruction."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from services.evaluation.contact_sheet import CELL, tile_cells
from services.trainer.scenes.composer import EVALUATION_SEED_START, Composer
from services.trainer.scenes.edits import Edit, draw_edit

_LINE = 22


def edit_sheet(composer: Composer, count: int, seed: int) -> Image.Image:
    """``count`` random edits with English instructions, two in a row."""
    rng, font = np.random.default_rng(seed), ImageFont.load_default(11)
    cells: list[Image.Image] = []
    for number in range(count):
        edit = draw_edit(composer, composer.arrange(EVALUATION_SEED_START + seed + number), rng, language="en")
        cells += _cells(edit, font)
    return tile_cells(cells, columns=4)


def _cells(edit: Edit, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[Image.Image]:
    cells = []
    for scene, words in ((edit.before, edit.instruction), (edit.after, "")):
        cell = Image.new("RGB", (CELL, CELL), "#202020")
        picture = Image.fromarray(scene.image)
        scale = min(CELL / picture.width, (CELL - _LINE) / picture.height)
        cell.paste(picture.resize((round(picture.width * scale), round(picture.height * scale))), (0, _LINE))
        ImageDraw.Draw(cell).text((2, 4), words, fill="white", font=font)
        cells.append(cell)
    return cells
