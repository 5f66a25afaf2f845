"""The small domains: pictures show what rows say, and a seed always draws the same ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from services.mllm.grounding_text import parse_grounded, pixels
from services.trainer.adaptation.domains.aerial import draw_aerial
from services.trainer.adaptation.domains.driving import draw_driving
from services.trainer.adaptation.domains.handwriting import draw_handwriting
from services.trainer.adaptation.domains.naming import NAMES, draw_naming
from services.trainer.adaptation.rows import ConversationRow
from services.trainer.digits import load_digits
from services.trainer.scenes.composer import Composer

pytestmark = pytest.mark.internvl

Draw = Callable[[Path, range], Iterator[ConversationRow]]


def picture(folder: Path, row: ConversationRow) -> NDArray[np.int64]:
    with Image.open(folder / row.images[0]) as image:
        assert image.size == (row.width, row.height)
        return np.asarray(image.convert("RGB")).astype(int)


def test_boxes_of_the_aerial_domain_hold_the_thing(tmp_path: Path) -> None:
    """A pool's water, the only blue of a picture, lies in its box and reaches nearly across it."""
    pools = [row for row in draw_aerial(tmp_path, range(40)) if "pool" in row.conversations[0].value]
    assert pools
    for row in pools:
        shown = picture(tmp_path, row)
        left, top, right, bottom = pixels(parse_grounded(row.conversations[1].value)[0].grounded.boxes[0], 64, 64)
        rows, columns = np.nonzero((shown[..., 2] > shown[..., 0] + 60) & (shown[..., 2] > shown[..., 1] + 20))
        assert left <= columns.min() < left + 4
        assert right - 4 <= columns.max() < right
        assert top <= rows.min() < top + 4
        assert bottom - 4 <= rows.max() < bottom


def test_the_car_stops_at_red_lights_alone(tmp_path: Path) -> None:
    for row in draw_driving(tmp_path, range(40)):
        shown = picture(tmp_path, row)
        red = (shown[..., 0] > 200) & (shown[..., 1] < 80) & (shown[..., 2] < 80)
        assert (row.conversations[1].value == "B") == bool(red.sum() > 8)


def test_general_pictures_name_the_side(composer: Composer, tmp_path: Path) -> None:
    rows = list(draw_naming(composer, tmp_path, range(20)))
    assert {row.conversations[1].value for row in rows} <= set(NAMES)
    assert {row.conversations[3].value for row in rows} == {"left", "right"}


def test_digits_of_the_classes_are_taken_in_order(tmp_path: Path) -> None:
    training, _ = load_digits()
    rows = list(draw_handwriting(training, tmp_path, 30))
    words = ("zero", "one", "two", "three", "four")
    assert [row.conversations[1].value for row in rows] == [words[label] for label in training.labels if label < 5][:30]


@pytest.mark.parametrize("draw", [draw_aerial, draw_driving])
def test_a_seed_always_draws_the_same(draw: Draw, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    first, again = (list(draw(tmp_path / folder, range(3))) for folder in ("a", "b"))
    assert first == again
    assert all(np.array_equal(picture(tmp_path / "a", row), picture(tmp_path / "b", row)) for row in first)
