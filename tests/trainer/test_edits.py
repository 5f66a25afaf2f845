"""Edits change exactly what their instruction names."""

from __future__ import annotations

import colorsys
import re

import numpy as np
import pytest
from scipy.ndimage import binary_erosion

from services.trainer.scenes.composer import Composer
from services.trainer.scenes.edit_templates import INSTRUCTIONS
from services.trainer.scenes.edits import EDIT_KINDS, Edit, draw_edit, make_edit
from services.trainer.scenes.referring import members
from services.trainer.scenes.scene import Category, Scene


def edits(composer: Composer, kind: str, count: int = 40, language: str | None = None) -> list[Edit]:
    made = []
    for seed in range(count):
        edit = make_edit(kind, composer, composer.arrange(seed), np.random.default_rng(seed), language)
        if edit is not None:
            made.append(edit)
    assert len(made) > count // 2
    return made


def counts(scene: Scene) -> dict[str, int]:
    keys = [thing.category.key for thing in scene.objects]
    return {key: keys.count(key) for key in keys}


def mask_of(scene: Scene, category: Category) -> np.ndarray:
    masks = [scene.objects[index].mask for index in members(scene, category)]
    return np.any(masks, axis=0)


def test_removed_things_are_gone_and_nothing_else_is(composer: Composer) -> None:
    for edit in edits(composer, "remove"):
        before, after = counts(edit.before), counts(edit.after)
        assert edit.category is not None
        del before[edit.category.key]
        assert after == before
        assert edit.changed[mask_of(edit.before, edit.category)].mean() > 0.5


def test_added_things_are_there_and_nothing_is_lost(composer: Composer) -> None:
    for edit in edits(composer, "add"):
        assert edit.category is not None
        assert edit.category.key not in counts(edit.before)
        assert counts(edit.after) == counts(edit.before) | {edit.category.key: 1}


def test_things_are_replaced_one_for_one_where_they_stood(composer: Composer) -> None:
    for edit in edits(composer, "replace"):
        assert edit.category is not None
        assert edit.replacement is not None
        before, after = counts(edit.before), counts(edit.after)
        assert after.pop(edit.replacement.key) == before.pop(edit.category.key)
        assert after == before
        for old in members(edit.before, edit.category):
            x1, y1, x2, y2 = edit.before.objects[old].box
            assert edit.after.objects[old].category == edit.replacement
            left, top, right, bottom = edit.after.objects[old].box
            assert left < (x1 + x2) / 2 < right
            assert top < (y1 + y2) / 2 < bottom


def test_recoloured_things_keep_their_place_and_take_the_hue(composer: Composer) -> None:
    for edit in edits(composer, "recolour"):
        assert edit.category is not None
        assert edit.colour is not None
        assert [thing.box for thing in edit.after.objects] == [thing.box for thing in edit.before.objects]
        pixels = edit.after.image[mask_of(edit.after, edit.category)] / 255
        shades = np.array([colorsys.rgb_to_hsv(*pixel) for pixel in pixels[::7].tolist()])
        hues = shades[shades[:, 2] > 0.25, 0]
        if len(hues):
            distance = np.abs(hues - edit.colour.hue)
            assert np.median(np.minimum(distance, 1 - distance)) < 0.06


def test_a_new_ground_leaves_the_things_alone(composer: Composer) -> None:
    for edit in edits(composer, "ground"):
        assert counts(edit.after) == counts(edit.before)
        shown = np.any([thing.mask for thing in edit.before.objects], axis=0)
        # Edges are a blend of thing and ground, also where two of them cross.
        assert edit.changed[binary_erosion(shown, iterations=3)].mean() < 0.01
        assert edit.changed[~shown].mean() > 0.9


@pytest.mark.parametrize("kind", [kind for kind in EDIT_KINDS if kind != "ground"])
def test_pixels_that_no_named_thing_reaches_stay_exactly_as_they_were(composer: Composer, kind: str) -> None:
    for edit in edits(composer, kind):
        touched = np.zeros_like(edit.changed)
        for layer in composer.arrange(edit.before.seed).layers:
            if layer.category == edit.category:
                touched[layer.window] = True
        for thing in edit.after.objects:
            if thing.category == (edit.replacement or edit.category):
                x1, y1, x2, y2 = (int(value) for value in thing.box)
                touched[max(0, y1 - 4) : y2 + 4, max(0, x1 - 4) : x2 + 4] = True
        assert not (edit.changed & ~touched).any()


def test_a_named_ground_becomes_the_ground(composer: Composer) -> None:
    made = edits(composer, "ground")
    assert {edit.ground.key for edit in made if edit.ground} >= {"grass", "sky", "brick"}
    for edit in made:
        assert [name for name, _ in edit.after.grounds] == ([edit.ground.key] if edit.ground else [])


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("kind", EDIT_KINDS)
def test_instructions_name_what_changes(composer: Composer, kind: str, language: str) -> None:
    for edit in edits(composer, kind, language=language):
        words = edit.instruction.lower()
        assert not re.search(r"[{}]", words)
        assert " a orange" not in words
        assert edit.language == language
        for category in (edit.category, edit.replacement):
            if category is not None:
                names = (category.english, category.english_plural) if language == "en" else (category.chinese,)
                assert any(name.lower() in words for name in names)
        assert (edit.colour is not None or edit.ground is not None) == (kind in ("recolour", "ground"))
        if edit.ground is not None:
            assert (edit.ground.english if language == "en" else edit.ground.chinese) in words
        if edit.colour is not None:
            assert (edit.colour.english if language == "en" else edit.colour.chinese) in words


def test_every_kind_has_many_phrasings_in_both_languages() -> None:
    for languages in INSTRUCTIONS.values():
        for phrasings in languages.values():
            assert len(set(phrasings)) >= 8


def test_the_same_generator_gives_the_same_edit(composer: Composer) -> None:
    first, second = (draw_edit(composer, composer.arrange(4), np.random.default_rng(9)) for _ in range(2))
    assert first.instruction == second.instruction
    assert np.array_equal(first.after.image, second.after.image)


def test_all_kinds_are_drawn(composer: Composer) -> None:
    rng = np.random.default_rng(0)
    assert {draw_edit(composer, composer.arrange(seed), rng).kind for seed in range(60)} == set(EDIT_KINDS)
