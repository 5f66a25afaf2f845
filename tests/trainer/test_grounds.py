"""Grounds that have a name: how they look, where they lie, and who asks for them."""

from __future__ import annotations

import hashlib
from collections import Counter

import numpy as np
import pytest
import torch

from services.mllm.conversation import RoutedPhrase
from services.segmentation.configuration import SegmenterConfig
from services.trainer.recipe import Data, Recipe, Schedule
from services.trainer.scenes.categories import CATEGORIES
from services.trainer.scenes.composer import Composer, ComposerOptions
from services.trainer.scenes.conversation import parts_of
from services.trainer.scenes.conversations import sample_conversation
from services.trainer.scenes.grounds import GROUND_NAMES, NAMED_GROUNDS, paint_named_ground, with_grounds
from services.trainer.segment_names import SEGMENT_NAMES
from services.trainer.segmenter_stage import SegmenterStage
from tests.trainer.conftest import draw_sprites

# Of the scenes of four seeds, as they were before grounds had names.
_PIXELS = "93d31bdf5648bb92ab108ff7556be7674cd6482dce421859e0239f2994f2b64e"


@pytest.fixture(scope="module")
def grounded() -> Composer:
    return Composer(draw_sprites(), ComposerOptions(named_grounds=1.0))


def test_seeds_keep_their_pixels_where_no_grounds_are_named(composer: Composer) -> None:
    digest = hashlib.sha256()
    for seed in (0, 1, 77, 10_000_000_000):
        digest.update(composer.compose(seed).image.tobytes())
    assert digest.hexdigest() == _PIXELS


def test_named_grounds_share_exactly_what_no_thing_covers(grounded: Composer) -> None:
    numbers = Counter()
    for seed in range(60):
        scene = grounded.compose(seed)
        covered = np.sum([thing.mask for thing in scene.objects] + [mask for _, mask in scene.grounds], axis=0)
        assert (covered == 1).all()
        assert all(name in GROUND_NAMES for name, _ in scene.grounds)
        numbers[len(scene.grounds)] += 1
    assert set(numbers) == {1, 2}


def test_the_sky_is_never_below(grounded: Composer) -> None:
    seen = 0
    for seed in range(120):
        grounds = dict(grounded.arrange(seed).grounds)
        sky = grounds.pop("sky", None)
        for other in grounds.values() if sky is not None else ():
            seen += 1
            assert np.nonzero(sky)[0].mean() < np.nonzero(other)[0].mean()
    assert seen > 5


@pytest.mark.parametrize("name", GROUND_NAMES)
def test_grounds_vary_but_keep_their_colours(name: str) -> None:
    painted = [paint_named_ground(name, 96, 128, np.random.default_rng(seed)) for seed in range(8)]
    assert all(ground.shape == (96, 128, 3) and 0 <= ground.min() <= ground.max() <= 255 for ground in painted)
    assert not np.array_equal(painted[0], painted[1])
    for ground in painted:
        red, green, blue = ground.mean(axis=(0, 1))
        spread = max(red, green, blue) - min(red, green, blue)
        is_as_it_should = {
            "grass": green > red and green > blue,
            "sand": red > green > blue and green > 130,
            "water": blue > red and green > red,
            "snow": spread < 40 and min(red, green, blue) > 190,
            "road": spread < 40 and max(red, green, blue) < 150,
            "soil": red > green > blue and green < 130,
            "brick": red > green and red > blue,
            "sky": blue > red and blue > 170,
        }
        assert is_as_it_should[name]


def test_a_scene_with_its_grounds_lists_them_after_its_things(grounded: Composer) -> None:
    for seed in range(20):
        scene = grounded.compose(seed)
        everything = with_grounds(scene)
        assert everything.objects[: len(scene.objects)] == scene.objects
        for thing in everything.objects[len(scene.objects) :]:
            x1, y1, x2, y2 = (int(side) for side in thing.box)
            assert thing.mask[y1:y2, x1:x2].sum() == thing.area == thing.mask.sum()
            assert thing.area >= 0.01 * scene.height * scene.width


def test_the_segmenter_learns_each_visible_ground_as_one_mask_under_its_own_name(grounded: Composer) -> None:
    sizes = {"image_side": 64, "width": 32, "heads": 2, "backbone_base_channels": 16, "queries": 12}
    stage = SegmenterStage(
        Recipe(
            name="small",
            stage="segmenter",
            schedule=Schedule(steps=1, batch_size=1, learning_rate=1e-3),
            data=Data(workers=0),
            segmenter=SegmenterConfig(**sizes, link_width=16, mask_width=8, mask_points=64, decoder_layers=1),
        )
    )
    for seed in range(6):
        scene = grounded.compose(seed)
        sample = stage.prepare(scene, seed)
        memberships = sample.targets[1]
        for name, mask in scene.grounds:
            [target] = torch.nonzero(memberships[:, SEGMENT_NAMES.index(name)]).flatten().tolist()
            padded = (max(scene.height, scene.width) / 64) ** 2
            assert sample.masks[target].sum() * padded == pytest.approx(mask.sum(), rel=0.15)
        things = memberships[:, : len(CATEGORIES)].any(dim=1)
        assert things.sum() == len(scene.objects)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_conversations_ask_for_grounds_by_their_names(grounded: Composer, language: str) -> None:
    names = {ground.english if language == "en" else ground.chinese: ground.key for ground in NAMED_GROUNDS}
    asked = 0
    for seed in range(80):
        scene, rng = grounded.compose(seed % 20), np.random.default_rng(seed)
        everything = with_grounds(scene).objects
        conversation = sample_conversation(scene, rng, "segment" if seed % 2 else "segment_several", language)
        phrases = [part for part in parts_of(conversation) if isinstance(part, RoutedPhrase)]
        for phrase, targets in zip(phrases, conversation.targets, strict=True):
            if phrase.phrase in names:
                asked += 1
                assert phrase.route == "[SEG]"
                meant = [everything[index].category.key for index in targets]
                shown = {name for name, mask in scene.grounds if mask.mean() >= 0.01}
                assert meant == ([names[phrase.phrase]] if names[phrase.phrase] in shown else [])
    assert asked > 8
