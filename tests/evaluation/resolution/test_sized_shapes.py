"""Pictures in which size is everything: drawn as told, and small things are lost when they are shrunk."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from services.mllm.tiling import choose_grid
from services.trainer.scenes.sized_shapes import SHAPES, VIEWS, SizedShape, SizeName, draw_sized_shape

pytestmark = pytest.mark.internvl

TILE = 64


def side_in_tiles(drawn: SizedShape, max_tiles: int) -> float:
    """Pixels of the shape's shorter side once its picture is cut into tiles."""
    width, height = drawn.image.size
    grid = choose_grid(width, height, max_tiles, TILE)
    left, top, right, bottom = drawn.box
    return min((right - left) * grid.columns * TILE / width, (bottom - top) * grid.rows * TILE / height)


@pytest.mark.parametrize("size", get_args(SizeName))
def test_a_shape_lies_where_its_box_says_and_nowhere_else(size: SizeName) -> None:
    for seed in range(20):
        drawn = draw_sized_shape(seed, size)
        left, top, right, bottom = drawn.box
        assert drawn.image.size in VIEWS[size].pictures
        assert VIEWS[size].sides[0] <= right - left == bottom - top <= VIEWS[size].sides[1]
        ys, xs = np.nonzero(np.asarray(drawn.image.convert("L")) < 100)
        assert left <= xs.min() <= xs.max() < right
        assert top <= ys.min() <= ys.max() < bottom
        # It fills its box, but for a star's tips.
        assert max(np.ptp(xs), np.ptp(ys)) >= 0.75 * (right - left)


def test_a_seed_always_gives_one_picture_and_seeds_differ() -> None:
    first, again, other = (np.asarray(draw_sized_shape(seed, "small").image) for seed in (3, 3, 5))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_every_size_needs_more_tiles_than_the_larger_ones() -> None:
    for seed in range(10):
        small, medium, large, close = (
            [side_in_tiles(draw_sized_shape(seed, size), limit) for limit in (1, 4, 12, 40)] for size in VIEWS
        )
        assert small[0] < 4
        assert small[3] > 12
        assert medium[0] < 8
        assert medium[2] > 12
        assert large[0] > 10
        assert close[0] > 16


def test_every_shape_has_a_word_of_its_own_in_both_languages() -> None:
    assert len({each.english for each in SHAPES}) == len({each.chinese for each in SHAPES}) == len(SHAPES)
