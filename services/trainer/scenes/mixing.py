"""Conversations whose answer needs several tools: "find the dogs, mask the largest one and draw me a cat"."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from services.mllm.conversation import RoutedPhrase
from services.trainer.scenes.answers import BOXES, EDITS, IMAGES, MASKS, routed_answer
from services.trainer.scenes.choosing import maybe_present, several
from services.trainer.scenes.conversation import Conversation, exchange
from services.trainer.scenes.drawing_requests import draw_wish, edit_wish
from services.trainer.scenes.mix_templates import CLAUSES, ENDS, JOINTS
from services.trainer.scenes.posing import figure_words, pose_phrases, some_places
from services.trainer.scenes.referring import choose_referring, members
from services.trainer.scenes.scene import Scene
from services.trainer.scenes.skeletons import SKELETONS
from services.trainer.scenes.templates import ENGLISH, ROUTED_ANSWERS
from services.trainer.scenes.wording import category_words, list_of, name, pick

_PRESENT = 0.75


@dataclass(frozen=True)
class Clause:
    """One part of a request: what one tool is asked for."""

    spoken: str
    phrases: tuple[RoutedPhrase, ...]
    targets: tuple[tuple[int, ...], ...]
    drawings: tuple[tuple[int, ...], ...] = ()


def several_tools(scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation | None:
    """Two to four tools in one answer, in the order in which they were asked for."""
    makers = list(_CLAUSES)
    rng.shuffle(makers)  # type: ignore[arg-type]
    clauses: list[Clause] = []
    for maker in makers[: 2 + int(rng.random() ** 2 * 3)]:
        clause = maker(scene, language, rng)
        if clause is None:
            return None
        clauses.append(clause)
    phrases = [phrase for clause in clauses for phrase in clause.phrases]
    if len({(phrase.route, phrase.phrase) for phrase in phrases}) < len(phrases):
        return None
    answer = routed_answer(phrases, ROUTED_ANSWERS, language, rng)
    return Conversation(
        "several_tools",
        language,
        exchange(_joined([clause.spoken for clause in clauses], language, rng), answer, language, rng),
        tuple(target for clause in clauses for target in clause.targets),
        drawings=tuple(drawing for clause in clauses for drawing in clause.drawings),
    )


def _boxes(scene: Scene, language: str, rng: np.random.Generator) -> Clause | None:
    return _named(scene, language, rng, BOXES, "boxes")


def _masks(scene: Scene, language: str, rng: np.random.Generator) -> Clause | None:
    return _named(scene, language, rng, MASKS, "masks")


def _named(scene: Scene, language: str, rng: np.random.Generator, route: str, kind: str) -> Clause | None:
    """One category, several, or one thing that a referring expression means."""
    drawn = rng.random()
    if drawn < 0.25:
        found = choose_referring(scene, language, rng)
        if found is None:
            return None
        spoken, names, targets = found.spoken, [found.phrase], ((found.target,),)
    elif drawn < 0.7:
        category = maybe_present(scene, rng, _PRESENT)
        words = category_words(category, language)
        spoken = pick(rng, (words["the"], words["many"])) if language == ENGLISH else words["one"]
        names, targets = [name(category, language)], (members(scene, category),)
    else:
        chosen = several(scene, rng, 2 + int(rng.random() * 2))
        spoken = list_of(chosen, language, rng)
        names = [name(category, language) for category in chosen]
        targets = tuple(members(scene, category) for category in chosen)
    clause = pick(rng, CLAUSES[kind][language]).format(x=spoken)
    return Clause(clause, tuple(RoutedPhrase(route, phrase) for phrase in names), targets)


def _pose(_scene: Scene, language: str, rng: np.random.Generator) -> Clause:
    skeleton = pick(rng, SKELETONS)
    words = figure_words(skeleton, language)
    spoken = pick(rng, (words["the"], words["many"])) if language == ENGLISH else words["one"]
    if rng.random() < 0.5:
        clause = pick(rng, CLAUSES["pose"][language]).format(x=spoken)
        phrases = pose_phrases(skeleton, skeleton.keypoints, language)
    else:
        places, keypoints = some_places(skeleton, language, rng)
        clause = pick(rng, CLAUSES["places"][language]).format(x=spoken, places=places)
        phrases = pose_phrases(skeleton, keypoints, language)
    return Clause(clause, tuple(phrases), ((),) * len(phrases))


def _drawing(_scene: Scene, language: str, rng: np.random.Generator) -> Clause:
    wish = draw_wish(language, rng)
    clause = pick(rng, CLAUSES["drawing"][language]).format(x=wish.spoken)
    return Clause(clause, (RoutedPhrase(IMAGES, wish.phrase),), ((),), (wish.rows,))


def _edit(scene: Scene, language: str, rng: np.random.Generator) -> Clause:
    wish = edit_wish(scene, language, rng)
    spoken = wish.spoken.rstrip(".。?？")
    return Clause(spoken, (RoutedPhrase(EDITS, wish.phrase),), ((),), (wish.rows,))


_CLAUSES: tuple[Callable[[Scene, str, np.random.Generator], Clause | None], ...] = (
    _boxes,
    _masks,
    _pose,
    _drawing,
    _edit,
)


def _joined(clauses: list[str], language: str, rng: np.random.Generator) -> str:
    """The clauses as one request."""
    request = clauses[0]
    for clause in clauses[1:]:
        joint = pick(rng, JOINTS[language])
        is_new_sentence = joint.startswith(".") or clause.startswith("I ")
        following = clause if is_new_sentence or language != ENGLISH else clause[0].lower() + clause[1:]
        request += joint + following
    if language == ENGLISH:
        request = request[0].upper() + request[1:]
    return request + ENDS[language]
