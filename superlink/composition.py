"""Several pictures in one: in a row, or in a grid with a caption above each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from superlink.drawing import Font, font_for

# Between the pictures, in pixels.
GAP = 16
# Sizes of captions and notes relative to the height of the pictures.
_TITLE_SIZE, _TEXT_SIZE = 1 / 16, 1 / 20
_TITLE_COLOUR, _TEXT_COLOUR = "#4363d8", "black"
_NOTE_GROUND, _NOTE_COLOUR = "#eeeeee", "#555555"
# From one line of text to the next, relative to the size of the font.
_LINE_HEIGHT = 1.3


@dataclass(frozen=True)
class Panel:
    """A picture of a grid with its caption: a title, and a sentence below it."""

    title: str
    caption: str
    # A note stands where there is no picture.
    content: Image.Image | str


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """``pictures``, at least one, in a row on white, all as high as the highest of them."""
    scaled = _scaled(pictures, max(picture.height for picture in pictures))
    row = Image.new(
        "RGB", (sum(picture.width for picture in scaled) + GAP * (len(scaled) - 1), scaled[0].height), "white"
    )
    left = 0
    for picture in scaled:
        row.paste(picture, (left, 0))
        left += picture.width + GAP
    return row


def captioned_grid(panels: Sequence[Panel], columns: int) -> Image.Image:
    """``panels``, at least one of them with a picture, row by row on white.

    All pictures are as high as the highest of them, and all columns as wide as the widest; texts are broken to fit.
    """
    given = [panel.content for panel in panels if isinstance(panel.content, Image.Image)]
    height = max(picture.height for picture in given)
    width = max(picture.width for picture in _scaled(given, height))
    drawn = [_draw_panel(panel, width, height) for panel in panels]
    rows = [drawn[start : start + columns] for start in range(0, len(drawn), columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    grid = Image.new(
        "RGB",
        (GAP + len(rows[0]) * (width + GAP), GAP + sum(row_height + GAP for row_height in heights)),
        "white",
    )
    bottom = GAP
    for row, row_height in zip(rows, heights, strict=True):
        bottom += row_height
        for column, picture in enumerate(row):
            # Captions of a row differ in length; its pictures stand on one line.
            grid.paste(picture, (GAP + column * (width + GAP), bottom - picture.height))
        bottom += GAP
    return grid


def _draw_panel(panel: Panel, width: int, height: int) -> Image.Image:
    """The caption, and below it the picture or the note, ``height`` pixels high."""
    title_size, text_size = round(height * _TITLE_SIZE), round(height * _TEXT_SIZE)
    title, title_font = _broken(panel.title, title_size, width)
    caption, text_font = _broken(panel.caption, text_size, width)
    caption_top = round(len(title) * title_size * _LINE_HEIGHT)
    top = caption_top + round(len(caption) * text_size * _LINE_HEIGHT) + text_size // 2
    drawn = Image.new("RGB", (width, top + height), "white")
    pen = ImageDraw.Draw(drawn)
    _write(pen, title, (0, 0), title_font, title_size, _TITLE_COLOUR)
    _write(pen, caption, (0, caption_top), text_font, text_size, _TEXT_COLOUR)
    if isinstance(panel.content, Image.Image):
        drawn.paste(_scaled([panel.content], height)[0], (0, top))
        return drawn
    pen.rectangle((0, top, width, top + height), fill=_NOTE_GROUND)
    note, note_font = _broken(panel.content, text_size, width - 2 * text_size)
    room = int((height - 2 * text_size) / (text_size * _LINE_HEIGHT))
    if len(note) > room:
        note = [*note[: room - 1], "…"]
    _write(pen, note, (text_size, top + text_size), note_font, text_size, _NOTE_COLOUR)
    return drawn


def _scaled(pictures: Sequence[Image.Image], height: int) -> list[Image.Image]:
    """``pictures`` in colour at this height."""
    return [
        picture.convert("RGB").resize((max(1, round(picture.width * height / picture.height)), height))
        for picture in pictures
    ]


def _broken(text: str, size: int, width: int) -> tuple[list[str], Font]:
    """``text`` in lines that are at most ``width`` pixels wide, but for single words, and the font for it."""
    font = font_for(text, size) or ImageFont.load_default(size)
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines, font


def _write(
    pen: ImageDraw.ImageDraw, lines: Sequence[str], corner: tuple[int, int], font: Font, size: int, colour: str
) -> None:
    for number, line in enumerate(lines):
        pen.text((corner[0], corner[1] + round(number * size * _LINE_HEIGHT)), line, fill=colour, font=font)
