from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from services.trainer.scenes.categories import CATEGORIES
from services.trainer.scenes.composer import Composer
from services.trainer.scenes.figures import FIGURE_CATEGORIES
from tests.trainer.conftest import draw_sprites


def test_there_are_at_least_96_categories_in_eight_groups_with_unique_names() -> None:
    assert len(CATEGORIES) >= 96
    assert len({category.group for category in CATEGORIES}) >= 8
    for names in ("key", "english", "english_plural", "chinese", "emoji"):
        assert len({getattr(category, names) for category in CATEGORIES}) >= len(CATEGORIES) - (
            names == "english_plural"
        )


def test_the_same_seed_gives_the_same_pixels(composer: Composer) -> None:
    first, second = composer.compose(12345), composer.compose(12345)

    assert np.array_equal(first.image, second.image)
    assert [thing.box for thing in first.objects] == [thing.box for thing in second.objects]
    assert not np.array_equal(first.image, composer.compose(12346).image)


@pytest.mark.parametrize("seed", range(40))
def test_boxes_and_masks_are_exact_and_disjoint(composer: Composer, seed: int) -> None:
    scene = composer.compose(seed)

    assert scene.objects
    assert min(scene.height, scene.width) >= 128
    assert max(scene.height, scene.width) <= 320
    owners = np.zeros((scene.height, scene.width), dtype=int)
    for thing in scene.objects:
        x1, y1, x2, y2 = (int(value) for value in thing.box)
        owners += thing.mask
        assert thing.area == thing.mask.sum()
        assert thing.mask[y1:y2, x1:x2].sum() == thing.area
        assert thing.mask[y1, x1:x2].any()
        assert thing.mask[y2 - 1, x1:x2].any()
        assert thing.mask[y1:y2, x1].any()
        assert thing.mask[y1:y2, x2 - 1].any()
    assert owners.max() <= 1


@pytest.mark.parametrize("seed", range(12))
def test_figures_have_keypoints_that_are_hidden_where_something_covers_them(composer: Composer, seed: int) -> None:
    scene = Composer(draw_sprites(), replace(composer.options, most_figures=4)).compose(seed)

    figures = [thing for thing in scene.objects if thing.keypoints is not None]
    assert 1 <= len(figures) <= 4
    shown = np.full((scene.height, scene.width), -1)
    for index, thing in enumerate(scene.objects):
        shown[thing.mask] = index
    for index, thing in enumerate(scene.objects):
        assert (thing.keypoints is None) == (thing.category.key not in FIGURE_CATEGORIES)
        if thing.keypoints is None:
            assert thing.visibility is None
            continue
        for (x, y), flag in zip(thing.keypoints, thing.visibility, strict=True):
            inside = 0 <= x < scene.width and 0 <= y < scene.height
            assert (flag == 0) != inside
            if inside and shown[int(y), int(x)] > index:
                assert flag == 1


def test_a_composer_without_figures_draws_what_it_always_drew(composer: Composer) -> None:
    """Seeds of published scenes and figures name pixels: an option that is off must not touch them."""
    digest = hashlib.sha256()
    for seed in range(5):
        scene = composer.compose(seed)
        digest.update(scene.image.tobytes())
        digest.update(repr([thing.box for thing in scene.objects]).encode())

    assert digest.hexdigest() == "18db1081115fd5fba5d742c297f76ac9ab426310c4636a42209f6d31fcd71f52"
