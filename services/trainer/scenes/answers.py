"""What the model answers: routed phrases, numbers, presence and comparisons in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from services.mllm.conversation import ObservedGroup, Part, RoutedPhrase, Text
from services.trainer.scenes import templates
from services.trainer.scenes.observing import observe
from services.trainer.scenes.scene import Category, Scene
from services.trainer.scenes.wording import name, noun_for, pick_answer, plural, with_article

# The routing tokens of the tools that scenes are about.
BOXES = "[DET]"
MASKS = "[SEG]"
# Of one tool: whose pose, and which keypoints.
FIGURES = "[POSE_OBJECT]"
KEYPOINTS = "[POSE]"
IMAGES = "[GEN]"
EDITS = "[EDIT]"


def boxes_of(phrases: Sequence[str]) -> list[RoutedPhrase]:
    """Phrases that are answered with boxes."""
    return [RoutedPhrase(BOXES, phrase) for phrase in phrases]


def masks_of(phrases: Sequence[str]) -> list[RoutedPhrase]:
    """Phrases that are answered with masks."""
    return [RoutedPhrase(MASKS, phrase) for phrase in phrases]


def routed_answer(
    phrases: Sequence[RoutedPhrase],
    answers: Mapping[str, Sequence[tuple[str, str]]],
    language: str,
    rng: np.random.Generator,
) -> tuple[Part, ...]:
    """All phrases in order, each with its routing token, between the words of one of ``answers``."""
    before, after = pick_answer(rng, answers[language])
    parts: list[Part] = [Text(before)] if before else []
    for number, phrase in enumerate(phrases):
        if number:
            parts.append(Text(templates.ANSWER_SEPARATOR[language]))
        parts.append(phrase)
    return (*parts, Text(after))


def observed_answer(
    phrases: Sequence[str],
    targets: Sequence[Sequence[int]],
    answer: Callable[[Sequence[ObservedGroup]], str],
    scene: Scene,
    language: str,
    rng: np.random.Generator,
    noisy: bool,
) -> tuple[Part, ...]:
    """Two rounds: route and read the observation, then answer with what ``answer`` makes of its groups."""
    routed = routed_answer(boxes_of(phrases), templates.ROUTED_ANSWERS, language, rng)
    observation = observe(scene, BOXES, phrases, targets, rng, noisy)
    if any(group.failed for group in observation.groups):
        words = pick_answer(rng, templates.TOOL_FAILED[language])
    else:
        words = answer(observation.groups)
    return (*routed, observation, Text(words))


def count_answer(category: Category, number: int, language: str, rng: np.random.Generator) -> str:
    """How many there are."""
    noun = noun_for(category, number)
    verb = "is" if number == 1 else "are"
    return pick_answer(rng, templates.COUNT_ANSWERS[language]).format(
        there_are=f"There {verb} {number} {noun}",
        number=number,
        noun=noun,
        one=category.chinese,
        measure=category.measure_word,
    )


def presence_answer(category: Category, number: int, language: str, rng: np.random.Generator) -> str:
    """Whether there is any."""
    answers = templates.PRESENCE_YES if number else templates.PRESENCE_NO
    some = with_article(category.english) if number == 1 else f"{number} {category.english_plural}"
    return pick_answer(rng, answers[language]).format(
        is_or_are="is" if number == 1 else "are",
        some=some,
        number=number,
        one=name(category, language),
        measure=category.measure_word,
    )


def numbers_answer(
    pair: tuple[Category, Category],
    numbers: tuple[int, int],
    yes_or_no: bool,
    language: str,
    rng: np.random.Generator,
) -> str:
    """Whether there are more of the first, or of which of the two there are more."""
    first, second = (plural(category, language) for category in pair)
    x, y = numbers
    if yes_or_no:
        answers = templates.MORE_YES if x > y else templates.MORE_NO
    elif x == y:
        answers = templates.EQUALLY_MANY
    else:
        answers = templates.WHICH_MORE
        if y > x:
            first, second, x, y = second, first, y, x
    return pick_answer(rng, answers[language]).format(a=first, b=second, x=x, y=y)
