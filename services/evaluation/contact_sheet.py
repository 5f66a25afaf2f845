"""A scene set at a glance: every image with its boxes and names on one sheet."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from services.evaluation.scenes_set import SceneSet
from superlink.drawing import COLOURS

CELL = 240
_MARGIN = 6


def contact_sheet(scene_set: SceneSet, columns: int, limit: int) -> Image.Image:
    """The first ``limit`` images, ``columns`` in a row, each scaled to a cell of 240 pixels."""
    font = ImageFont.load_default(11)
    return tile_cells([_cell(scene_set, image.id, font) for image in list(scene_set.images.values())[:limit]], columns)


def tile_cells(cells: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures of at most 240 pixels a side, ``columns`` in a row."""
    rows = -(-len(cells) // columns)
    step = CELL + _MARGIN
    sheet = Image.new("RGB", (columns * step + _MARGIN, max(1, rows) * step + _MARGIN), "#202020")
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        sheet.paste(cell, (_MARGIN + column * step, _MARGIN + row * step))
    return sheet


def _cell(scene_set: SceneSet, image_id: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    with Image.open(scene_set.image_file(image_id)) as opened:
        picture = opened.convert("RGB")
    scale = CELL / max(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
    draw = ImageDraw.Draw(picture)
    for annotation in scene_set.annotations_of(image_id):
        x, y, width, height = (value * scale for value in annotation.bbox)
        colour = COLOURS[annotation.category_id % len(COLOURS)]
        draw.rectangle((x, y, x + width - 1, y + height - 1), outline=colour, width=2)
        name = scene_set.categories[annotation.category_id].name
        draw.text((x + 3, y + 2), name, fill="white", font=font, stroke_width=2, stroke_fill=colour)
    return picture
