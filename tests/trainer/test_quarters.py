"""The quarters world: pictures that follow from their seed, and questions whose answers the picture gives."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from services.trainer.scenes.composer import Composer
from services.trainer.scenes.quarters import GROUND_COLOURS, PICTURE_SIDE, ask_quarters, draw_quarters

pytestmark = pytest.mark.internvl


def test_the_same_seed_gives_the_same_pixels_and_another_one_others(composer: Composer) -> None:
    first, again, other = (draw_quarters(composer, seed) for seed in (4, 4, 5))

    assert first.image.shape == (PICTURE_SIDE, PICTURE_SIDE, 3)
    assert np.array_equal(first.image, again.image)
    assert (first.name, first.ground) == (again.name, again.ground)
    assert not np.array_equal(first.image, other.image)


def test_the_thing_lies_in_one_quarter_and_the_ground_has_its_colour(composer: Composer) -> None:
    for seed in range(20):
        picture = draw_quarters(composer, seed)
        half = PICTURE_SIDE // 2
        ground = np.array(GROUND_COLOURS[picture.ground])
        touched = 0
        for top, left in itertools.product((0, half), (0, half)):
            pixels = picture.image[top : top + half, left : left + half].reshape(-1, 3).astype(float)
            touched += int((np.abs(pixels - ground).max(axis=1) > 90).any())
        assert touched <= 1


def test_answers_are_true_and_come_in_either_order(composer: Composer) -> None:
    orders = set()
    for seed in range(20):
        picture = draw_quarters(composer, seed)
        asked = ask_quarters(picture, seed)
        orders.add(tuple(asked))
        answers = {kind: answer for kind, (_, answer) in asked.items()}
        assert answers == {"naming": picture.name, "colour": picture.ground}
    assert len(orders) == 2
