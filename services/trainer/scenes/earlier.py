"""Conversations that come back to what a tool reported: "now mask the second one"."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.mllm.conversation import Observation, ObservedGroup, ObservedObject, Text, Turn
from services.trainer.scenes import mark_templates, templates
from services.trainer.scenes.answers import count_answer, masks_of, observed_answer, routed_answer
from services.trainer.scenes.conversation import Conversation, exchange
from services.trainer.scenes.referring import leftmost_first, members
from services.trainer.scenes.scene import Scene
from services.trainer.scenes.wording import category_words, name, pick, vary


def segment_earlier(scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation | None:
    """Things are counted, then one of those that were reported is to be masked: its phrase is "dog 2"."""
    if not scene.objects:
        return None
    category = pick(rng, leftmost_first(scene))
    meant, words = members(scene, category), category_words(category, language)

    def answer(groups: Sequence[ObservedGroup]) -> str:
        return count_answer(category, len(groups[0].objects), language, rng)

    one = name(category, language)
    counted = observed_answer([one], [meant], answer, scene, language, rng, noisy=False)
    asked = exchange(pick(rng, templates.COUNT[language]).format(**words), counted, language, rng)
    [observed] = next(part for part in counted if isinstance(part, Observation)).groups
    place = int(rng.random() * min(len(observed.objects), len(mark_templates.ORDINALS[language])))
    ordinal = mark_templates.ORDINALS[language][place]
    question = pick(rng, mark_templates.SEGMENT_EARLIER[language]).format(ordinal=ordinal, number=place + 1, **words)
    masked = routed_answer(masks_of([f"{one} {place + 1}"]), templates.ROUTED_ANSWERS, language, rng)
    turns = (
        asked[0],
        Turn("assistant", asked[1].parts, learned=False),
        Turn("user", (Text(vary(question, language, rng)),)),
        Turn("assistant", masked),
    )
    target = min(meant, key=lambda index: _distance(scene, index, observed.objects[place]))
    return Conversation("segment_earlier", language, turns, (meant, (target,)))


def _distance(scene: Scene, index: int, observed: ObservedObject) -> float:
    """How far an object's corners are from those that were reported, in thousandths of the image's sides."""
    sides = (scene.width, scene.height, scene.width, scene.height)
    reported = (observed.x1, observed.y1, observed.x2, observed.y2)
    corners = zip(scene.objects[index].box, sides, reported, strict=True)
    return sum(abs(1000 * corner / side - seen) for corner, side, seen in corners)
