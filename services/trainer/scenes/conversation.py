"""One conversation about a scene."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from services.mllm.conversation import ImagePart, Part, RoutedPhrase, Text, Turn
from services.trainer.scenes.wording import vary
from superlink.v1 import types_pb2


@dataclass(frozen=True)
class Mark:
    """One thing that was marked."""

    # Index into the scene's objects.
    thing: int
    region: types_pb2.Region


@dataclass(frozen=True)
class Conversation:
    """What is said about a scene, and what it means."""

    task: str
    # "en" or "zh".
    language: str
    turns: tuple[Turn, ...]
    # For every routed phrase in order, the indices of the scene's objects that it means; empty: absent. Grounds follow
    # the objects, see ``grounds.with_grounds``.
    targets: tuple[tuple[int, ...], ...]
    # For every phrase that is routed to be drawn, in order, the concepts that its queries say, see ``drawings``.
    drawings: tuple[tuple[int, ...], ...] = ()
    # A finer kind where the task has several: "leftmost", "more", "which_more", "larger" ...
    kind: str = ""
    # The right answer by the scene, not by the observation: "3", "yes", "no", a phrase, "equal"; empty where none.
    truth: str = ""
    # What the user marked, in the order of the regions' numbers.
    marks: tuple[Mark, ...] = ()


class TaskError(ValueError):
    """The scene does not allow the task: counting what is larger in an empty scene, say."""


def parts_of(conversation: Conversation) -> Iterator[Part]:
    """All that is said, shown and observed, in order."""
    for turn in conversation.turns:
        yield from turn.parts


def routed_phrases(conversation: Conversation) -> tuple[RoutedPhrase, ...]:
    """What is given to tools, in order."""
    return tuple(part for part in parts_of(conversation) if isinstance(part, RoutedPhrase))


def expected_phrases(conversation: Conversation) -> tuple[str, ...]:
    """The words of the routed phrases in order."""
    return tuple(part.phrase for part in routed_phrases(conversation))


def exchange(question: str, answer: Sequence[Part], language: str, rng: np.random.Generator) -> tuple[Turn, Turn]:
    """A question about the image, worded a little differently each time, and its answer."""
    user = Turn("user", (ImagePart(0), Text(vary(question, language, rng))))
    return user, Turn("assistant", tuple(answer))
