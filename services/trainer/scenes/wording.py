"""Words for categories and requests: articles, plurals, lists, and the ways people vary a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from services.trainer.scenes.scene import Category
from services.trainer.scenes.templates import (
    CHINESE,
    ENGLISH,
    LAST_SEPARATORS,
    LIST_SEPARATORS,
    LITERAL_TOKENS,
    POLITE_AFTER,
    POLITE_BEFORE,
    POLITE_BEFORE_QUESTION,
)

Item = TypeVar("Item")


def pick(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    """One of ``items``, each equally likely; much faster than ``rng.choice``."""
    return items[int(rng.random() * len(items))]


def pick_answer(rng: np.random.Generator, templates: Sequence[Item], usual: float = 0.7) -> Item:
    """The first template with probability ``usual``, so that a greedy model has one habit; else any other."""
    return templates[0] if rng.random() < usual else pick(rng, templates)


def name(category: Category, language: str) -> str:
    """The canonical singular name, the one that routed phrases carry: "dog", "狗"."""
    return category.english if language == ENGLISH else category.chinese


def plural(category: Category, language: str) -> str:
    """The name of several: "dogs", "狗"."""
    return category.english_plural if language == ENGLISH else category.chinese


def with_article(noun: str) -> str:
    """An English noun with its indefinite article: "an apple"."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def noun_for(category: Category, count: int) -> str:
    """The English noun that follows a number: "1 dog", "0 dogs"."""
    return category.english if count == 1 else category.english_plural


def category_words(category: Category, language: str) -> dict[str, str]:
    """What question templates fill in about one category."""
    one = name(category, language)
    return {
        "one": one,
        "many": plural(category, language),
        "the": f"the {one}",
        "a": with_article(one) if language == ENGLISH else one,
        "measure": category.measure_word,
    }


def join_names(names: Sequence[str], language: str, rng: np.random.Generator) -> str:
    """A list as people type it: "dogs, cats and buses", "狗、猫和公交车"."""
    separator = pick(rng, LIST_SEPARATORS[language])
    last = pick(rng, LAST_SEPARATORS[language]) or separator
    return last.join([separator.join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def list_of(categories: Sequence[Category], language: str, rng: np.random.Generator) -> str:
    """Several categories as people list them: names, plurals, or names with articles."""
    chance = rng.random()
    if language == CHINESE or chance < 0.45:
        names = [name(category, language) for category in categories]
    elif chance < 0.85:
        names = [plural(category, language) for category in categories]
    else:
        article = pick(rng, ("the {}", "every {}", "a {}"))
        names = [
            with_article(category.english) if article == "a {}" else article.format(category.english)
            for category in categories
        ]
    return join_names(names, language, rng)


def things(counts: Sequence[tuple[Category, int]], language: str) -> str:
    """Categories with their numbers as a caption names them: "a dog, 2 cats and a bus", "1只狗、2只猫"."""
    if language != ENGLISH:
        return "、".join(f"{count}{category.measure_word}{category.chinese}" for category, count in counts)
    words = [
        with_article(category.english) if count == 1 else f"{count} {category.english_plural}"
        for category, count in counts
    ]
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def vary(question: str, language: str, rng: np.random.Generator) -> str:
    """The question as different people type it: politeness, case, punctuation, stray routing tokens."""
    chance = rng.random()
    if chance < 0.10:
        openings = POLITE_BEFORE_QUESTION if question[-1] in "?？" else POLITE_BEFORE
        question = pick(rng, openings[language]) + _lower_first(question)
    elif chance < 0.15:
        question += pick(rng, POLITE_AFTER[language])
    chance = rng.random()
    if chance < 0.15:
        question = question.lower()
    elif chance < 0.165:
        question = question.upper()
    elif chance < 0.3:
        question = question[0].upper() + question[1:]
    chance = rng.random()
    if question[-1] in ".。?？!！":
        if chance < 0.15:
            question = question[:-1]
        elif chance < 0.18:
            question = question[:-1] + pick(rng, ("!", "！", "...", " .", "?", "。"))
    if rng.random() < 0.015:
        token = pick(rng, LITERAL_TOKENS)
        question = f"{token} {question}" if rng.random() < 0.4 else f"{question} {token}"
    return question


def _lower_first(text: str) -> str:
    return text if text.startswith("I ") else text[0].lower() + text[1:]
