"""Referring expressions that mean exactly one thing of a scene: "the leftmost dog", "the cat left of the bus"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.trainer.scenes.scene import Category, Scene, SceneObject
from services.trainer.scenes.templates import RELATIONS, SUPERLATIVES
from services.trainer.scenes.wording import name, pick

# How far apart two centres must lie, as a share of the scene's width or height, to be told apart in words.
CLEAR_DISTANCE = 0.06
# How many times larger a thing must be than the next.
CLEAR_RATIO = 1.3

# name -> (whether it compares columns, rows or areas, sign that makes the meant one the lowest)
_SUPERLATIVE_KEYS = {
    "leftmost": ("column", 1.0),
    "rightmost": ("column", -1.0),
    "topmost": ("row", 1.0),
    "bottommost": ("row", -1.0),
    "largest": ("area", -1.0),
    "smallest": ("area", 1.0),
}
_RELATION_KEYS = {"left": ("column", 1.0), "right": ("column", -1.0), "above": ("row", 1.0), "below": ("row", -1.0)}


@dataclass(frozen=True)
class Referring:
    """One expression and the thing that it means."""

    # "leftmost" ... or "left" ...
    relation: str
    # The words in the question.
    spoken: str
    # The canonical words, which the routed phrase carries.
    phrase: str
    # Index into the scene's objects.
    target: int


def choose_referring(scene: Scene, language: str, rng: np.random.Generator) -> Referring | None:
    """An unambiguous expression for something in the scene, or None when chance finds none.

    Positions are those of box centres; sizes are those of visible pixels.
    """
    if not scene.objects:
        return None
    for _ in range(8):
        wants_relation = rng.random() < 0.3
        found = _relation(scene, language, rng) if wants_relation else _superlative(scene, language, rng)
        if found is not None:
            return found
    return None


def leftmost_first(scene: Scene) -> list[Category]:
    """The categories in the scene, each once, by the left edge of their leftmost box."""
    first: dict[str, tuple[float, Category]] = {}
    for item in scene.objects:
        known = first.get(item.category.key)
        if known is None or item.box[0] < known[0]:
            first[item.category.key] = (item.box[0], item.category)
    return [category for _, category in sorted(first.values(), key=lambda pair: pair[0])]


def members(scene: Scene, category: Category) -> tuple[int, ...]:
    """Indices of the scene's objects of ``category``."""
    return tuple(index for index, item in enumerate(scene.objects) if item.category.key == category.key)


def superlative_target(scene: Scene, candidates: Sequence[int], relation: str) -> int | None:
    """Which of ``candidates`` (indices of objects) is the "leftmost" ..., or None when it is not clear."""
    kind, sign = _SUPERLATIVE_KEYS[relation]
    ranked = sorted(candidates, key=lambda index: sign * _measure(scene, scene.objects[index], kind))
    if len(ranked) == 1:
        return ranked[0]
    first, second = (_measure(scene, scene.objects[index], kind) for index in ranked[:2])
    clear = (
        max(first, second) >= CLEAR_RATIO * min(first, second)
        if kind == "area"
        else (abs(first - second) >= CLEAR_DISTANCE)
    )
    return ranked[0] if clear else None


def relation_target(scene: Scene, candidates: Sequence[int], other: int, relation: str) -> int | None:
    """The only one of ``candidates`` that is "left" ... of object ``other``, or None when none or several could be."""
    kind, sign = _RELATION_KEYS[relation]
    edge = sign * _measure(scene, scene.objects[other], kind)
    offsets = [(index, sign * _measure(scene, scene.objects[index], kind) - edge) for index in candidates]
    if any(abs(offset) < CLEAR_DISTANCE for _, offset in offsets):
        return None
    meant = [index for index, offset in offsets if offset < 0]
    return meant[0] if len(meant) == 1 else None


def _superlative(scene: Scene, language: str, rng: np.random.Generator) -> Referring | None:
    category = pick(rng, scene.objects).category
    candidates = members(scene, category)
    if len(candidates) == 1 and rng.random() < 0.6:
        return None
    relation = pick(rng, tuple(SUPERLATIVES))
    target = superlative_target(scene, candidates, relation)
    if target is None:
        return None
    return _referring(relation, SUPERLATIVES[relation][language], target, category, category, language, rng)


def _relation(scene: Scene, language: str, rng: np.random.Generator) -> Referring | None:
    other = int(rng.random() * len(scene.objects))
    landmark, category = scene.objects[other].category, pick(rng, scene.objects).category
    if landmark.key == category.key or len(members(scene, landmark)) > 1:
        return None
    relation = pick(rng, tuple(RELATIONS))
    target = relation_target(scene, members(scene, category), other, relation)
    if target is None:
        return None
    return _referring(relation, RELATIONS[relation][language], target, category, landmark, language, rng)


def _referring(
    relation: str,
    templates: Sequence[str],
    target: int,
    category: Category,
    other: Category,
    language: str,
    rng: np.random.Generator,
) -> Referring:
    words = {
        "one": name(category, language),
        "other": name(other, language),
        "measure": category.measure_word,
    }
    spoken = templates[0] if rng.random() < 0.55 else pick(rng, templates)
    return Referring(relation, spoken.format(**words), templates[0].format(**words), target)


def _measure(scene: Scene, item: SceneObject, kind: str) -> float:
    """Centre column or row as a share of the scene's side, or visible pixels."""
    x1, y1, x2, y2 = item.box
    if kind == "column":
        return (x1 + x2) / 2 / scene.width
    if kind == "row":
        return (y1 + y2) / 2 / scene.height
    return float(item.area)
