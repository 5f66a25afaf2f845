from __future__ import annotations

import numpy as np
import pytest

from services.trainer.scenes.categories import CATEGORIES
from services.trainer.scenes.composer import Composer


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
