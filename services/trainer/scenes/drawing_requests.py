"""Conversations that ask for pictures and for changes of a picture.

The routed phrase is the canonical wording of what is wanted ("a cat beside a tree", "make the dog blue"); the queries
behind it learn its concepts, see ``drawings``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from services.mllm.conversation import ImagePart, RoutedPhrase, Text, Turn, fast_path
from services.trainer.scenes import drawing_templates
from services.trainer.scenes.answers import EDITS, IMAGES, routed_answer
from services.trainer.scenes.categories import CATEGORIES, CATEGORY_INDEX
from services.trainer.scenes.choosing import absent, maybe_present
from services.trainer.scenes.conversation import Conversation, exchange
from services.trainer.scenes.drawings import DRAW, NOTHING, Drawing, Slots
from services.trainer.scenes.edit_templates import INSTRUCTIONS
from services.trainer.scenes.edits import COLOURS, EDIT_KINDS, NamedColour
from services.trainer.scenes.grounds import NAMED_GROUNDS, NamedGround
from services.trainer.scenes.scene import Category, Scene
from services.trainer.scenes.templates import ENGLISH, LANGUAGES
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
    return _ask_for_drawing(draw_wish(language, rng), language, rng)


def draw_fast(_scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation:
    """The form of ``/v1/images/generations``, whose prompt is the caller's own words."""
    return _prompt_drawing(draw_wish(language, rng), language, rng)


def edit(scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation:
    """A change of the picture that is shown."""
    return _ask_for_edit(edit_wish(scene, language, rng), language, rng)


def edit_fast(scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation:
    """The form of ``/v1/images/edits``, whose prompt is the caller's own words."""
    return _prompt_edit(edit_wish(scene, language, rng), language, rng)


def request_drawing(drawing: Drawing, rng: np.random.Generator) -> Conversation:
    """A conversation that asks for exactly ``drawing``, in one of the four forms above.

    Where it is an edit, the image that is shown must be its source; else it must be another than its target.
    """
    language = pick(rng, LANGUAGES)
    wish = drawing_wish(drawing, language, rng)
    if drawing.source is None:
        form = pick(rng, (_ask_for_drawing, _prompt_drawing))
    else:
        form = pick(rng, (_ask_for_edit, _prompt_edit))
    return form(wish, language, rng)


def drawing_wish(drawing: Drawing, language: str, rng: np.random.Generator) -> Wish:
    """The words for ``drawing``: what its slots say and, of an edit, the number of things that its source shows."""
    if drawing.source is None:
        return _picture_wish(drawing.slots, language, rng)
    several = sum(thing.category.key == drawing.slots.category for thing in drawing.source.objects) > 1
    return _change_wish(drawing.slots, several, language, rng)


def draw_wish(language: str, rng: np.random.Generator) -> Wish:
    """One, two or three of a kind, or two kinds in a relation; on any ground, a coloured one or a named one."""
    first, chance = pick(rng, CATEGORIES), rng.random()
    slots = Slots(operation=DRAW, count="one", category=first.key)
    if chance < 0.35:
        relation = pick(rng, tuple(drawing_templates.RELATIONS))
        second = pick(rng, [category for category in CATEGORIES if category.key != first.key])
        slots = replace(slots, relation=relation, other=second.key)
    elif chance < 0.55:
        slots = replace(slots, count=pick(rng, ("two", "three")))
    if (chance := rng.random()) < 0.35:
        slots = replace(slots, ground=pick(rng, NAMED_GROUNDS).key)
    elif chance < 0.55:
        slots = replace(slots, ground=pick(rng, COLOURS).english)
    return _picture_wish(slots, language, rng)


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
    several = not it and kind != "add" and rng.random() < 0.25
    slots = Slots(operation=kind, category=NOTHING if kind == "ground" else category.key)
    if kind == "replace":
        slots = replace(slots, other=absent(scene, rng).key)
    elif kind == "recolour":
        slots = replace(slots, colour=pick(rng, COLOURS).english)
    elif kind == "ground":
        slots = replace(
            slots, ground=pick(rng, COLOURS).english if rng.random() < 0.5 else pick(rng, NAMED_GROUNDS).key
        )
    return _change_wish(slots, several, language, rng, it)


def _ask_for_drawing(wish: Wish, language: str, rng: np.random.Generator) -> Conversation:
    question = vary(pick(rng, drawing_templates.DRAW[language]).format(what=wish.spoken), language, rng)
    shown = (ImagePart(0),) if rng.random() < 0.3 else ()
    answer = routed_answer([RoutedPhrase(IMAGES, wish.phrase)], drawing_templates.DRAWN_ANSWERS, language, rng)
    turns = Turn("user", (*shown, Text(question))), Turn("assistant", answer)
    return Conversation("draw", language, turns, ((),), drawings=(wish.rows,))


def _prompt_drawing(wish: Wish, language: str, rng: np.random.Generator) -> Conversation:
    prompt = wish.spoken
    if rng.random() < 0.4:
        prompt = pick(rng, drawing_templates.DRAW[language]).format(what=wish.spoken)
    prompt = vary(prompt, language, rng)
    turns = fast_path([RoutedPhrase(IMAGES, prompt)], shows_image=False)
    return Conversation("draw_fast", language, turns, ((),), drawings=(wish.rows,))


def _ask_for_edit(wish: Wish, language: str, rng: np.random.Generator) -> Conversation:
    answer = routed_answer([RoutedPhrase(EDITS, wish.phrase)], drawing_templates.EDITED_ANSWERS, language, rng)
    turns = exchange(wish.spoken, answer, language, rng)
    return Conversation("edit", language, turns, ((),), drawings=(wish.rows,))


def _prompt_edit(wish: Wish, language: str, rng: np.random.Generator) -> Conversation:
    turns = fast_path([RoutedPhrase(EDITS, vary(wish.spoken, language, rng))])
    return Conversation("edit_fast", language, turns, ((),), drawings=(wish.rows,))


def _picture_wish(slots: Slots, language: str, rng: np.random.Generator) -> Wish:
    """The words for a picture that ``slots`` describe."""
    return Wish(_picture(slots, language, rng), _picture(slots, language, None), slots.indices)


def _change_wish(
    slots: Slots, several: bool, language: str, rng: np.random.Generator, it: tuple[str, str] | None = None
) -> Wish:
    """The words for a change that ``slots`` describe, of one thing or of ``several``; see ``edit_wish`` for ``it``."""
    kind, templates = slots.operation, INSTRUCTIONS[slots.operation][language]
    words: dict[str, str] = {}
    if slots.category != NOTHING:
        category = _category(slots.category)
        one = name(category, language)
        words["it"] = f"the {plural(category, language) if several else one}" if language == ENGLISH else one
        words["a"] = _one(category, language)
    if it:
        words["it"] = it[0]
    if slots.other != NOTHING:
        other = _category(slots.other)
        words["other"] = other.english_plural if several and language == ENGLISH else name(other, language)
        if language == ENGLISH and not several:
            words["other"] = with_article(words["other"])
    if (colour := _colour(slots.ground if kind == "ground" else slots.colour)) is not None:
        words |= _colour_words(colour, language)
    elif (ground := _ground(slots.ground)) is not None:
        templates = INSTRUCTIONS["named_ground"][language]
        words["ground"] = ground.english if language == ENGLISH else ground.chinese
    spoken = pick(rng, templates).format(**words)
    if it:
        words["it"] = it[1]
    canonical = templates[0].rstrip(".。").format(**words)
    return Wish(spoken, canonical[0].lower() + canonical[1:], slots.indices)


def _picture(slots: Slots, language: str, rng: np.random.Generator | None) -> str:
    """What a picture shows, in words that chance chooses, or in the canonical ones without."""

    def choose(wordings: tuple[str, ...]) -> str:
        return pick(rng, wordings) if rng is not None and rng.random() < 0.6 else wordings[0]

    what = _counted(_category(slots.category), slots.count, language)
    if slots.relation != NOTHING:
        wording = choose(drawing_templates.RELATIONS[slots.relation][language])
        what = wording.format(first=what, second=_one(_category(slots.other), language))
    if (colour := _colour(slots.ground)) is not None:
        return choose(drawing_templates.ON_COLOUR[language]).format(what=what, **_colour_words(colour, language))
    if (ground := _ground(slots.ground)) is not None:
        word = ground.english if language == ENGLISH else ground.chinese
        return choose(drawing_templates.ON_GROUND[language]).format(what=what, ground=word)
    return what


def _category(key: str) -> Category:
    return CATEGORIES[CATEGORY_INDEX[key]]


def _colour(concept: str) -> NamedColour | None:
    """The colour that a concept names, if it does."""
    return next((colour for colour in COLOURS if colour.english == concept), None)


def _ground(concept: str) -> NamedGround | None:
    """The named ground that a concept is, if it is one."""
    return next((ground for ground in NAMED_GROUNDS if ground.key == concept), None)


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
