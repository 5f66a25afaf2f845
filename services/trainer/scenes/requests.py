"""Requests that name things, and answers that route these names: the same words whichever tool is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from services.mllm.conversation import RoutedPhrase
from services.trainer.scenes import templates
from services.trainer.scenes.answers import routed_answer
from services.trainer.scenes.conversation import Conversation, exchange
from services.trainer.scenes.referring import choose_referring, members
from services.trainer.scenes.scene import Category, Scene
from services.trainer.scenes.templates import Templates
from services.trainer.scenes.wording import category_words, list_of, name, pick

# Phrases to the tool that is asked: ``answers.boxes_of`` or ``answers.masks_of``.
Routed = Callable[[Sequence[str]], list[RoutedPhrase]]


def request_one(
    task: str,
    questions: Templates,
    routed: Routed,
    scene: Scene,
    category: Category,
    language: str,
    rng: np.random.Generator,
) -> Conversation:
    """One category is asked for."""
    question = pick(rng, questions[language]).format(**category_words(category, language))
    answer = routed_answer(routed([name(category, language)]), templates.ROUTED_ANSWERS, language, rng)
    return Conversation(task, language, exchange(question, answer, language, rng), (members(scene, category),))


def request_several(
    task: str,
    questions: Templates,
    routed: Routed,
    scene: Scene,
    categories: Sequence[Category],
    language: str,
    rng: np.random.Generator,
) -> Conversation:
    """Several categories are asked for."""
    question = pick(rng, questions[language]).format(list=list_of(categories, language, rng))
    names = [name(category, language) for category in categories]
    answer = routed_answer(routed(names), templates.ROUTED_ANSWERS, language, rng)
    targets = tuple(members(scene, category) for category in categories)
    return Conversation(task, language, exchange(question, answer, language, rng), targets)


def request_referred(
    task: str, questions: Templates, routed: Routed, scene: Scene, language: str, rng: np.random.Generator
) -> Conversation | None:
    """One thing is asked for by a referring expression; None when chance finds none."""
    found = choose_referring(scene, language, rng)
    if found is None:
        return None
    question = pick(rng, questions[language]).format(it=found.spoken)
    answer = routed_answer(routed([found.phrase]), templates.ROUTED_ANSWERS, language, rng)
    return Conversation(
        task, language, exchange(question, answer, language, rng), ((found.target,),), kind=found.relation
    )
