"""Which categories are asked about, present and absent ones."""

from __future__ import annotations

import numpy as np

from services.trainer.scenes.categories import CATEGORIES
from services.trainer.scenes.referring import leftmost_first
from services.trainer.scenes.scene import Category, Scene
from services.trainer.scenes.wording import pick

_BY_GROUP: dict[str, tuple[Category, ...]] = {
    category.group: tuple(other for other in CATEGORIES if other.group == category.group) for category in CATEGORIES
}


def several(scene: Scene, rng: np.random.Generator, count: int) -> list[Category]:
    """``count`` different categories in random order, some present and some not."""
    present = leftmost_first(scene)
    rng.shuffle(present)  # type: ignore[arg-type]
    chosen = present[: max(1, round(count * (0.35 + 0.5 * rng.random())))]
    known = {category.key for category in present}
    while len(chosen) < count:
        other = _other(scene, rng)
        if other.key not in known:
            known.add(other.key)
            chosen.append(other)
    rng.shuffle(chosen)  # type: ignore[arg-type]
    return chosen


def maybe_present(scene: Scene, rng: np.random.Generator, probability: float) -> Category:
    """A category that is in the scene with ``probability``."""
    if scene.objects and rng.random() < probability:
        return pick(rng, leftmost_first(scene))
    return absent(scene, rng)


def absent(scene: Scene, rng: np.random.Generator) -> Category:
    """A category that is not in the scene."""
    present = {item.category.key for item in scene.objects}
    while True:
        other = _other(scene, rng)
        if other.key not in present:
            return other


def _other(scene: Scene, rng: np.random.Generator) -> Category:
    """Any category; every second time one of the same group as something in the scene, which is harder to tell."""
    if scene.objects and rng.random() < 0.5:
        return pick(rng, _BY_GROUP[pick(rng, scene.objects).category.group])
    return pick(rng, CATEGORIES)
