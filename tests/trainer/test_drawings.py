"""Requests for the diffusion tool in slots, and the images that fulfil them."""

from __future__ import annotations

import numpy as np
import pytest

from services.trainer.scenes.composer import Composer
from services.trainer.scenes.drawings import (
    COLOUR_NAMES,
    CONCEPT_INDEX,
    CONCEPTS,
    COUNTS,
    DRAWING_OPTIONS,
    GROUND_NAMES,
    NOTHING,
    RELATIONS,
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
