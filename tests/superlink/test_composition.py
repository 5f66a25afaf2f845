"""Several pictures in one: sizes fit, and every word of a caption is there to be read."""

from __future__ import annotations

import pytest
from PIL import Image, ImageDraw

from superlink.composition import GAP, Panel, captioned_grid, side_by_side

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of text that are drawn, and no text in the picture."""
    lines: list[str] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, corner, text, **options: lines.append(text))
    return lines


def test_pictures_side_by_side_are_all_as_high_as_the_highest() -> None:
    row = side_by_side([Image.new("RGB", (10, 20), "red"), Image.new("RGB", (5, 5), "blue")])
    assert row.size == (10 + GAP + 20, 20)
    assert [row.getpixel((x, 10)) for x in (0, 12, 45)] == [RED, WHITE, BLUE]


def test_a_grid_has_equal_columns_and_fills_them_row_by_row(written: list[str]) -> None:
    wide, square = Image.new("RGB", (320, 200), "red"), Image.new("RGB", (20, 20), "blue")
    panels = [Panel("one", "Red.", wide), Panel("two", "Blue.", square), Panel("three", "Red.", wide)]

    grid = captioned_grid(panels, columns=2)

    assert grid.width == GAP + 2 * (320 + GAP)
    assert grid.height > 2 * 200 + 3 * GAP
    # The last row's picture stands at the bottom, with nothing beside it.
    lowest = grid.height - GAP - 1
    assert [grid.getpixel((x, lowest)) for x in (GAP, GAP + 319, GAP + 320 + GAP)] == [RED, RED, WHITE]
    # The square one was enlarged to the height of the others, and leaves the rest of its column white.
    row = lowest - (grid.height - GAP) // 2
    second = GAP + 320 + GAP
    assert [grid.getpixel((x, row)) for x in (GAP, second, second + 199, second + 201)] == [RED, BLUE, BLUE, WHITE]
    assert written == ["one", "Red.", "two", "Blue.", "three", "Red."]


def test_pictures_of_a_row_stand_on_one_line_whatever_their_captions_need(written: list[str]) -> None:
    picture = Image.new("RGB", (100, 200), "red")
    question = "Where are all the dogs that nobody has seen for quite a while?"

    grid = captioned_grid([Panel("long", question, picture), Panel("short", "Why?", picture)], columns=2)

    columns = [GAP + 50, GAP + 100 + GAP + 50]
    tops = [next(y for y in range(grid.height) if grid.getpixel((x, y)) == RED) for x in columns]
    assert tops == [grid.height - GAP - 200] * 2
    caption = written[1:-2]
    assert len(caption) > 1
    assert " ".join(caption) == question


def test_a_note_stands_where_there_is_no_picture(written: list[str]) -> None:
    picture = Image.new("RGB", (320, 200), "red")

    grid = captioned_grid([Panel("dogs", "Where?", picture), Panel("cats", "Where?", "No cats here.")], columns=2)

    assert written[-1] == "No cats here."
    assert grid.getpixel((GAP + 320 + GAP, grid.height - GAP - 1)) not in (RED, WHITE)


def test_a_note_that_is_too_long_ends_with_dots_within_its_panel(written: list[str]) -> None:
    picture = Image.new("RGB", (320, 200), "red")
    captioned_grid([Panel("dogs", "Where?", picture), Panel("cats", "Where?", "No cats here. " * 200)], columns=2)
    note = written[4:]
    assert note[-1] == "…"
    assert len(note) < 20


def test_captions_are_drawn_dark_on_white() -> None:
    grid = captioned_grid([Panel("dogs", "Where are the dogs?", Image.new("RGB", (640, 480), "white"))], columns=1)
    darkest, _ = grid.convert("L").getextrema()
    assert darkest < 50
