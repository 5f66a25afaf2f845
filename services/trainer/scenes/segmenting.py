"""Conversations that ask for masks of things and grounds, alone and beside boxes."""

from __future__ import annotations

import numpy as np

from services.trainer.scenes import segment_templates, templates
from services.trainer.scenes.answers import boxes_of, masks_of, routed_answer
from services.trainer.scenes.choosing import maybe_present, several
from services.trainer.scenes.conversation import Conversation, exchange
from services.trainer.scenes.grounds import GROUND_CATEGORIES, with_grounds
from services.trainer.scenes.referring import choose_referring, members
from services.trainer.scenes.requests import request_one, request_referred, request_several
from services.trainer.scenes.scene import Category, Scene
from services.trainer.scenes.templates import ENGLISH
from services.trainer.scenes.wording import category_words, join_names, list_of, name, pick

# A category that is asked for alone is there this often.
_PRESENT = 0.75
# Share of the requests for masks that ask for a ground.
_GROUNDS = 0.25


def segment(scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation:
    """Masks of one category or ground, which may be absent."""
    if rng.random() < _GROUNDS:
        ground = _maybe_shown(scene, rng)
        return request_one("segment", segment_templates.GROUND, masks_of, with_grounds(scene), ground, language, rng)
    category = maybe_present(scene, rng, _PRESENT)
    return request_one("segment", segment_templates.SEGMENT, masks_of, scene, category, language, rng)


def segment_several(scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation:
    """Masks of several categories, or of some with a ground."""
    chosen = several(scene, rng, 2 + int(rng.random() * 4))
    questions = segment_templates.SEGMENT_SEVERAL
    if rng.random() < _GROUNDS:
        chosen = chosen[1:]
        chosen.insert(int(rng.random() * (len(chosen) + 1)), _maybe_shown(scene, rng))
        names = [name(category, language) for category in chosen]
        question = pick(rng, questions[language]).format(list=join_names(names, language, rng))
        answer = routed_answer(masks_of(names), templates.ROUTED_ANSWERS, language, rng)
        everything = with_grounds(scene)
        targets = tuple(members(everything, category) for category in chosen)
        return Conversation("segment_several", language, exchange(question, answer, language, rng), targets)
    return request_several("segment_several", questions, masks_of, scene, chosen, language, rng)


def segment_referred(scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation | None:
    """The mask of one thing that a referring expression means."""
    return request_referred("segment_referred", segment_templates.SEGMENT_REFERRED, masks_of, scene, language, rng)


def boxes_and_masks(scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation | None:
    """Two tools in one answer, in the order in which they were asked for."""
    boxed, masked = _asked(scene, language, rng), _asked(scene, language, rng)
    if boxed is None or masked is None or set(boxed[1]) & set(masked[1]):
        return None
    boxes_first = rng.random() < 0.5
    asked = segment_templates.BOXES_AND_MASKS if boxes_first else segment_templates.MASKS_AND_BOXES
    question = pick(rng, asked[language]).format(boxed=boxed[0], masked=masked[0])
    boxes, masks = boxes_of(boxed[1]), masks_of(masked[1])
    phrases, targets = (
        ([*boxes, *masks], boxed[2] + masked[2]) if boxes_first else ([*masks, *boxes], masked[2] + boxed[2])
    )
    answer = routed_answer(phrases, templates.ROUTED_ANSWERS, language, rng)
    return Conversation("boxes_and_masks", language, exchange(question, answer, language, rng), targets)


def _maybe_shown(scene: Scene, rng: np.random.Generator) -> Category:
    """A ground that is mostly in the scene, where it has any with a name."""
    shown = [item.category for item in with_grounds(scene).objects[len(scene.objects) :]]
    return pick(rng, shown if shown and rng.random() < _PRESENT else tuple(GROUND_CATEGORIES.values()))


def _asked(
    scene: Scene, language: str, rng: np.random.Generator
) -> tuple[str, list[str], tuple[tuple[int, ...], ...]] | None:
    """The words of one part of a request, the phrases that it routes, and what they mean."""
    drawn = rng.random()
    if drawn < 0.25:
        found = choose_referring(scene, language, rng)
        return None if found is None else (found.spoken, [found.phrase], ((found.target,),))
    if drawn < 0.6:
        category = maybe_present(scene, rng, _PRESENT)
        words = category_words(category, language)
        spoken = pick(rng, (words["the"], words["many"])) if language == ENGLISH else words["one"]
        return spoken, [name(category, language)], (members(scene, category),)
    chosen = several(scene, rng, 2 + int(rng.random() * 2))
    phrases = [name(category, language) for category in chosen]
    return list_of(chosen, language, rng), phrases, tuple(members(scene, category) for category in chosen)
