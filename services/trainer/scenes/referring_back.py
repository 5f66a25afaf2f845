"""Conversations of two turns whose second refers to a result of the first: "now remove the second one".

A result is called by the phrase that found it and its place in the observation: "dog 2". The orchestrator knows what
that is and tells the tool.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.mllm.conversation import Observation, Part, RoutedPhrase, Text, Turn
from services.trainer.scenes import templates
from services.trainer.scenes.answers import BOXES, EDITS, MASKS, count_answer, routed_answer
from services.trainer.scenes.conversation import Conversation, exchange
from services.trainer.scenes.drawing_requests import Wish, edit_wish
from services.trainer.scenes.drawing_templates import EDITED_ANSWERS
from services.trainer.scenes.observing import observe
from services.trainer.scenes.reference_templates import MASK_IT, NOW, ORDINALS, SPOKEN, SPOKEN_LAST, TOO_FEW
from services.trainer.scenes.referring import leftmost_first, members
from services.trainer.scenes.scene import Category, Scene
from services.trainer.scenes.segment_templates import SEGMENT
from services.trainer.scenes.templates import COUNT, DETECT, ENGLISH, ROUTED_ANSWERS
from services.trainer.scenes.wording import category_words, name, pick, pick_answer, vary

_TOO_FEW = 0.08


def refer_back(scene: Scene, language: str, rng: np.random.Generator, noisy: bool) -> Conversation | None:
    """Something is found; then one of the finds is masked or edited."""
    present = leftmost_first(scene)
    if not present:
        return None
    several = [category for category in present if len(members(scene, category)) > 1]
    category = pick(rng, several) if several and rng.random() < 0.7 else pick(rng, present)
    first, found = _first_turns(scene, category, language, rng, noisy)
    if found == 0:
        return None
    ordinals = ORDINALS[language]
    is_missing = rng.random() < _TOO_FEW and found < len(ordinals)
    place = 1 + int(rng.random() * min(found, len(ordinals)))
    if is_missing:
        place = found + 1 + int(rng.random() * (len(ordinals) - found))
    words = category_words(category, language) | {"ordinal": ordinals[place - 1], "number": str(place)}
    spoken = SPOKEN_LAST if place == found > 1 and rng.random() < 0.3 else SPOKEN
    it = pick(rng, spoken[language]).format(**words)
    handle = f"{name(category, language)} {place}"
    if rng.random() < 0.5:
        question = pick(rng, MASK_IT[language]).format(it=it)
        answer = routed_answer([RoutedPhrase(MASKS, handle)], ROUTED_ANSWERS, language, rng)
        drawings: tuple[tuple[int, ...], ...] = ()
    else:
        wish = edit_wish(scene, language, rng, (it, handle), category)
        question = _begun(wish, language, rng)
        answer = routed_answer([RoutedPhrase(EDITS, wish.phrase)], EDITED_ANSWERS, language, rng)
        drawings = (wish.rows,)
    if is_missing:
        said = pick_answer(rng, TOO_FEW[language]).format(
            is_or_are="is" if found == 1 else "are", number=found, measure=category.measure_word
        )
        answer, drawings = (Text(said),), ()
    second = Turn("user", (Text(vary(question, language, rng)),)), Turn("assistant", tuple(answer))
    routed = [part for part in (*first[1].parts, *answer) if isinstance(part, RoutedPhrase)]
    return Conversation("refer_back", language, (*first, *second), ((),) * len(routed), drawings=drawings)


def _first_turns(
    scene: Scene, category: Category, language: str, rng: np.random.Generator, noisy: bool
) -> tuple[tuple[Turn, Turn], int]:
    """A question and its remembered answer with what was found, and how many that are."""
    asked, route = pick(rng, ((DETECT, BOXES), (DETECT, BOXES), (SEGMENT, MASKS), (COUNT, BOXES)))
    question = pick(rng, asked[language]).format(**category_words(category, language))
    phrase = name(category, language)
    observation = observe(scene, route, [phrase], [members(scene, category)], rng, noisy)
    group = observation.groups[0]
    answer = _remembered(RoutedPhrase(route, phrase), observation, language, rng)
    if asked is COUNT:
        answer = (*answer, Text(count_answer(category, len(group.objects), language, rng)))
    user, _ = exchange(question, (), language, rng)
    return (user, Turn("assistant", answer, learned=False)), 0 if group.failed else len(group.objects)


def _remembered(
    phrase: RoutedPhrase, observation: Observation, language: str, rng: np.random.Generator
) -> tuple[Part, ...]:
    routed: Sequence[Part] = routed_answer([phrase], templates.ROUTED_ANSWERS, language, rng)
    return (*routed, observation)


def _begun(wish: Wish, language: str, rng: np.random.Generator) -> str:
    """The request as the next thing to do."""
    opening = pick(rng, NOW[language])
    keeps_capital = not opening or wish.spoken.startswith("I ") or language != ENGLISH
    return opening + (wish.spoken if keeps_capital else wish.spoken[0].lower() + wish.spoken[1:])
