"""Requests for the diffusion tool in slots, and the images that fulfil them."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from services.diffusion.autoencoder import LATENT_STRIDE
from services.diffusion.configuration import SketcherConfig
from services.trainer.scenes.categories import CATEGORIES
from services.trainer.scenes.composer import Composer
from services.trainer.scenes.conversation import routed_phrases
from services.trainer.scenes.drawing_requests import drawing_wish, request_drawing
from services.trainer.scenes.drawings import (
    COLOUR_NAMES,
    CONCEPT_INDEX,
    CONCEPTS,
    COUNTS,
    DRAWING_OPTIONS,
    GROUND_NAMES,
    NOTHING,
    RELATIONS,
    Slots,
    draw_drawing,
    draw_edit_drawing,
)
from tests.trainer.conftest import draw_sprites


@pytest.fixture(scope="module")
def drawing_composer() -> Composer:
    return Composer(draw_sprites(), DRAWING_OPTIONS)


def test_every_concept_has_a_row_of_its_own() -> None:
    assert len(CONCEPT_INDEX) == len(CONCEPTS)


def test_a_drawing_shows_what_its_slots_say(drawing_composer: Composer) -> None:
    relations = set()
    for seed in range(60):
        drawing = draw_drawing(drawing_composer, np.random.default_rng(seed))
        slots, shown = drawing.slots, [thing.category.key for thing in drawing.target.objects]
        assert drawing.source is None
        assert len(slots.indices) == 8
        assert slots.operation == "draw"
        assert slots.ground in (NOTHING, *COLOUR_NAMES, *GROUND_NAMES)
        assert shown.count(slots.category) == COUNTS.index(slots.count) + 1
        assert set(shown) == {slots.category, slots.other} - {NOTHING}
        assert (slots.relation in RELATIONS) == (slots.other != NOTHING)
        if slots.relation == "above":
            first, second = (thing.box for thing in drawing.target.objects)
            assert first[1] + first[3] < second[1] + second[3]
        relations.add(slots.relation)
    assert relations == {NOTHING, *RELATIONS}


def test_things_drawn_are_large_and_whole(drawing_composer: Composer) -> None:
    for seed in range(30):
        drawing = draw_drawing(drawing_composer, np.random.default_rng(seed))
        for thing in drawing.target.objects:
            x1, y1, x2, y2 = thing.box
            assert max(x2 - x1, y2 - y1) >= 0.15 * drawing.target.width


def test_an_edit_is_said_in_slots_and_marked_where_it_happens(drawing_composer: Composer) -> None:
    operations = set()
    for seed in range(40):
        drawing = draw_edit_drawing(drawing_composer, seed, np.random.default_rng(seed))
        slots = drawing.slots
        assert drawing.source is not None
        assert (slots.category != NOTHING) == (slots.operation != "ground")
        assert (slots.other != NOTHING) == (slots.operation == "replace")
        assert (slots.colour != NOTHING) == (slots.operation == "recolour")
        assert (slots.ground != NOTHING) == (slots.operation == "ground")
        assert bool(drawing.regions) == (slots.operation != "ground")
        if slots.operation in ("remove", "recolour"):
            marked = np.zeros(drawing.target.image.shape[:2], dtype=bool)
            for x1, y1, x2, y2 in drawing.regions:
                marked[int(y1) : int(y2), int(x1) : int(x2)] = True
            changed = (drawing.target.image != drawing.source.image).any(axis=2)
            # Soft edges may lie a little outside a thing's box.
            assert (changed & marked).sum() > 0.95 * changed.sum() > 0
        operations.add(slots.operation)
    assert len(operations) == 5


def test_the_same_seed_draws_the_same(drawing_composer: Composer) -> None:
    first, again = (draw_drawing(drawing_composer, np.random.default_rng(7)) for _ in range(2))
    assert first.slots == again.slots
    assert np.array_equal(first.target.image, again.target.image)


def test_words_say_what_a_drawing_shows(drawing_composer: Composer) -> None:
    for seed in range(60):
        drawing = draw_drawing(drawing_composer, np.random.default_rng(seed))
        wish = drawing_wish(drawing, "en", np.random.default_rng(seed))
        slots, named = drawing.slots, {category.key: category for category in CATEGORIES}
        category = named[slots.category]
        assert wish.rows == slots.indices
        assert (category.english if slots.count == "one" else category.english_plural) in wish.phrase
        assert slots.other == NOTHING or named[slots.other].english in wish.phrase
        assert slots.ground not in COLOUR_NAMES or f"{slots.ground} background" in wish.phrase


def test_words_say_how_many_things_an_edit_changes(drawing_composer: Composer) -> None:
    numbers = set()
    for seed in range(80):
        drawing = draw_edit_drawing(drawing_composer, seed, np.random.default_rng(seed))
        if drawing.slots.operation != "remove" or drawing.source is None:
            continue
        [category] = [category for category in CATEGORIES if category.key == drawing.slots.category]
        shown = [thing.category.key for thing in drawing.source.objects].count(category.key)
        wish = drawing_wish(drawing, "en", np.random.default_rng(seed))
        assert wish.phrase == f"remove the {category.english if shown == 1 else category.english_plural}"
        numbers.add(shown)
    assert len(numbers) > 1


def test_a_request_for_a_drawing_comes_in_every_form_and_language(drawing_composer: Composer) -> None:
    asked = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        drawing = draw_edit_drawing(drawing_composer, seed, rng) if seed % 2 else draw_drawing(drawing_composer, rng)
        conversation = request_drawing(drawing, rng)
        assert conversation.drawings == (drawing.slots.indices,)
        assert [phrase.route for phrase in routed_phrases(conversation)] == ["[EDIT]" if drawing.source else "[GEN]"]
        asked.add((conversation.task, conversation.language))
    assert asked == {
        (task, language) for task in ("draw", "draw_fast", "edit", "edit_fast") for language in ("en", "zh")
    }


def test_the_sketcher_reads_what_things_are_from_the_links_of_their_slots() -> None:
    names = [field.name for field in fields(Slots)]
    assert [names[link] for link in SketcherConfig().things] == ["category", "other"]


def test_things_of_a_drawing_stand_whole_latents_apart(drawing_composer: Composer) -> None:
    numbers = set()
    for seed in range(60):
        drawing = draw_drawing(drawing_composer, np.random.default_rng(seed))
        same = [thing.box for thing in drawing.target.objects if thing.category.key == drawing.slots.category]
        for box in same[1:]:
            assert [(here - there) % LATENT_STRIDE for here, there in zip(box, same[0], strict=True)] == [0] * 4
        numbers.add(len(same))
    assert numbers == {1, 2, 3}
