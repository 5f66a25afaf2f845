"""Scenes without art, for what needs words and no pixels: the words stage and the tokenizer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from services.mllm.conversation import Observation, RoutedPhrase, Text, observation_text
from services.trainer.scenes.categories import CATEGORIES
from services.trainer.scenes.conversation import parts_of
from services.trainer.scenes.conversations import draw_conversation
from services.trainer.scenes.scene import Scene, SceneObject
from services.trainer.scenes.wording import pick

_PIXELS = np.zeros((256, 256, 3), dtype=np.uint8)
_MASK = np.ones((1, 1), dtype=np.bool_)


def random_layout(rng: np.random.Generator) -> Scene:
    """A scene of boxes with categories; its pixels and masks show nothing."""
    kinds = [pick(rng, CATEGORIES) for _ in range(1 + int(rng.random() * 4))]
    objects = []
    for _ in range(1 + int(rng.random() * 8)):
        x1, y1, width, height = (rng.random(4) * (180, 180, 60, 60) + (0, 0, 15, 15)).tolist()
        box = (x1, y1, x1 + width, y1 + height)
        objects.append(SceneObject(pick(rng, kinds), box, _MASK, int(width * height)))
    return Scene(image=_PIXELS, objects=tuple(objects), style="", seed=0)


def all_texts(seed: int, count: int) -> Iterator[str]:
    """``count`` texts as the tokenizer meets them: questions, answers, phrases and observations of random layouts."""
    rng = np.random.default_rng(seed)
    produced = 0
    while produced < count:
        for part in parts_of(draw_conversation(random_layout(rng), rng)):
            if isinstance(part, Text | RoutedPhrase | Observation):
                yield _written(part)
                produced += 1
                if produced == count:
                    return


def _written(part: Text | RoutedPhrase | Observation) -> str:
    if isinstance(part, Text):
        return part.text
    return part.phrase if isinstance(part, RoutedPhrase) else observation_text(part)
