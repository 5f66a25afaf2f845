"""Conversations that ask for pictures and for changes of a picture.

The routed phrase is the canonical wording of what is wanted ("a cat beside a tree", "make the dog blue"); the queries
behind it learn its concepts, see ``drawings``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.mllm.conversation import ImagePart, RoutedPhrase, Text, Turn, fast_path
from services.trainer.scenes import drawing_templates
from services.trainer.scenes.answers import EDITS, IMAGES, routed_answer
from services.trainer.scenes.categories import CATEGORIES
from services.trainer.scenes.choosing import absent, maybe_present
from services.trainer.scenes.conversation import Conversation, exchange
from services.trainer.scenes.drawings import DRAW, NOTHING, Slots
from services.trainer.scenes.edit_templates import INSTRUCTIONS
from services.trainer.scenes.edits import COLOURS, EDIT_KINDS, NamedColour
from services.trainer.scenes.grounds import NAMED_GROUNDS, NamedGround
from services.trainer.scenes.scene import Category, Scene
from services.trainer.scenes.templates import ENGLISH
from services.trainer.scenes.wording import name, pick, plural, vary, with_article

# What is edited is in the image this often.
_PRESENT = 0.85


@dataclass(frozen=True)
class Wish:
    """A picture or a change that somebody wants."""

    # As a part of a sentence: "two cats next to a tree", "paint the dog blue".
    spoken: str
    # The canonical words.
    phrase: str
    # The vocabulary row of every slot.
    rows: tuple[int, ...]


def draw(_scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation:
    """A new picture, with an image in the conversation or without."""
    wish = draw_wish(language, rng)
    question = vary(pick(rng, drawing_templates.DRAW[language]).format(what=wish.spoken), language, rng)
    shown = (ImagePart(0),) if rng.random() < 0.3 else ()
    answer = routed_answer([RoutedPhrase(IMAGES, wish.phrase)], drawing_templates.DRAWN_ANSWERS, language, rng)
    turns = Turn("user", (*shown, Text(question))), Turn("assistant", answer)
    return Conversation("draw", language, turns, ((),), drawings=(wish.rows,))


def draw_fast(_scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation:
    """The form of ``/v1/images/generations``, whose prompt is the caller's own words."""
    wish = draw_wish(language, rng)
    prompt = wish.spoken
    if rng.random() < 0.4:
        prompt = pick(rng, drawing_templates.DRAW[language]).format(what=wish.spoken)
    prompt = vary(prompt, language, rng)
    turns = fast_path([RoutedPhrase(IMAGES, prompt)], shows_image=False)
    return Conversation("draw_fast", language, turns, ((),), drawings=(wish.rows,))


def edit(scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation:
    """A change of the picture that is shown."""
    wish = edit_wish(scene, language, rng)
    answer = routed_answer([RoutedPhrase(EDITS, wish.phrase)], drawing_templates.EDITED_ANSWERS, language, rng)
    turns = exchange(wish.spoken, answer, language, rng)
    return Conversation("edit", language, turns, ((),), drawings=(wish.rows,))


def edit_fast(scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation:
    """The form of ``/v1/images/edits``, whose prompt is the caller's own words."""
    wish = edit_wish(scene, language, rng)
    turns = fast_path([RoutedPhrase(EDITS, vary(wish.spoken, language, rng))])
    return Conversation("edit_fast", language, turns, ((),), drawings=(wish.rows,))


def draw_wish(language: str, rng: np.random.Generator) -> Wish:
    """One, two or three of a kind, or two kinds in a relation; on any ground, a coloured one or a named one."""
    first, chance = pick(rng, CATEGORIES), rng.random()
    count, relation, second = "one", None, None
    if chance < 0.35:
        relation = pick(rng, tuple(drawing_templates.RELATIONS))
        second = pick(rng, [category for category in CATEGORIES if category.key != first.key])
    elif chance < 0.55:
        count = pick(rng, ("two", "three"))
    colour = ground = None
    if (chance := rng.random()) < 0.35:
        ground = pick(rng, NAMED_GROUNDS)
    elif chance < 0.55:
        colour = pick(rng, COLOURS)
    spoken, phrase = (
        _picture(first, count, relation, second, colour, ground, language, choice) for choice in (rng, None)
    )
    return Wish(
        spoken,
        phrase,
        Slots(
            operation=DRAW,
            count=count,
            category=first.key,
            relation=relation or NOTHING,
            other=second.key if second else NOTHING,
            ground=ground.key if ground else colour.english if colour else NOTHING,
        ).indices,
    )


def edit_wish(
    scene: Scene,
    language: str,
    rng: np.random.Generator,
    it: tuple[str, str] | None = None,
    thing: Category | None = None,
) -> Wish:
    """Something that can be done to the picture.

    ``it`` is what is meant, as it is spoken of and as it is called ("the second one", "dog 2"), and ``thing`` its
    category; else chance chooses.
    """
    kinds = ("recolour", "replace", "remove") if it else EDIT_KINDS
    kind = pick(rng, kinds)
    category = thing or (absent(scene, rng) if kind == "add" else maybe_present(scene, rng, _PRESENT))
    words: dict[str, str] = {}
    one = name(category, language)
    several = not it and kind != "add" and rng.random() < 0.25
    if it:
        words["it"] = it[0]
    elif language == ENGLISH:
        words["it"] = f"the {plural(category, language) if several else one}"
    else:
        words["it"] = one
    words["a"] = _one(category, language)
    slots = {} if kind == "ground" else {"category": category.key}
    if kind == "replace":
        other = absent(scene, rng)
        words["other"] = other.english_plural if several and language == ENGLISH else name(other, language)
        if language == ENGLISH and not several:
            words["other"] = with_article(words["other"])
        slots["other"] = other.key
    templates = INSTRUCTIONS[kind][language]
    if kind == "recolour" or (kind == "ground" and rng.random() < 0.5):
        colour = pick(rng, COLOURS)
        words |= _colour_words(colour, language)
        slots["ground" if kind == "ground" else "colour"] = colour.english
    elif kind == "ground":
        ground = pick(rng, NAMED_GROUNDS)
        templates = INSTRUCTIONS["named_ground"][language]
        words["ground"] = ground.english if language == ENGLISH else ground.chinese
        slots["ground"] = ground.key
    spoken = pick(rng, templates).format(**words)
    if it:
        words["it"] = it[1]
    canonical = templates[0].rstrip(".。").format(**words)
    return Wish(spoken, canonical[0].lower() + canonical[1:], Slots(operation=kind, **slots).indices)


def _picture(
    first: Category,
    count: str,
    relation: str | None,
    second: Category | None,
    colour: NamedColour | None,
    ground: NamedGround | None,
    language: str,
    rng: np.random.Generator | None,
) -> str:
    """What a picture shows, in words that chance chooses, or in the canonical ones without."""

    def choose(wordings: tuple[str, ...]) -> str:
        return pick(rng, wordings) if rng is not None and rng.random() < 0.6 else wordings[0]

    what = _counted(first, count, language)
    if relation and second:
        wording = choose(drawing_templates.RELATIONS[relation][language])
        what = wording.format(first=what, second=_one(second, language))
    if colour is not None:
        return choose(drawing_templates.ON_COLOUR[language]).format(what=what, **_colour_words(colour, language))
    if ground is not None:
        word = ground.english if language == ENGLISH else ground.chinese
        return choose(drawing_templates.ON_GROUND[language]).format(what=what, ground=word)
    return what


def _counted(category: Category, count: str, language: str) -> str:
    english, chinese = drawing_templates.NUMBERS[count]
    if language != ENGLISH:
        return f"{chinese}{category.measure_word}{category.chinese}"
    return f"{english} {category.english_plural}" if english else with_article(category.english)


def _one(category: Category, language: str) -> str:
    return _counted(category, "one", language)


def _colour_words(colour: NamedColour, language: str) -> dict[str, str]:
    word = colour.english if language == ENGLISH else colour.chinese
    return {"colour": word, "a_colour": with_article(word) if language == ENGLISH else word}
