"""What tools report about a scene, as the model gets to read it in training: true, noisy or failed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.mllm.conversation import Observation, ObservedGroup, ObservedObject
from services.trainer.scenes.scene import Scene, SceneObject
from services.trainer.scenes.wording import pick

_FAILURE_PROBABILITY = 0.04
_NOISE_PROBABILITY = 0.5
_DROP_PROBABILITY = 0.15
_DUPLICATE_PROBABILITY = 0.08
_FALSE_ALARM_PROBABILITY = 0.06


def observe(
    scene: Scene,
    route: str,
    phrases: Sequence[str],
    targets: Sequence[Sequence[int]],
    rng: np.random.Generator,
    noisy: bool,
) -> Observation:
    """The observation of one round: ``targets`` are the indices of the objects that each phrase means.

    With ``noisy``, half of the observations have jittered boxes, low scores, lost or invented objects, and a few say
    that the tool failed; without, everything is true.
    """
    if noisy and rng.random() < _FAILURE_PROBABILITY:
        return Observation(tuple(ObservedGroup(route, phrase, failed=True) for phrase in phrases))
    disturbed = noisy and rng.random() < _NOISE_PROBABILITY
    return Observation(
        tuple(
            ObservedGroup(route, phrase, _objects(scene, indices, rng, disturbed))
            for phrase, indices in zip(phrases, targets, strict=True)
        )
    )


def _objects(
    scene: Scene, indices: Sequence[int], rng: np.random.Generator, disturbed: bool
) -> tuple[ObservedObject, ...]:
    kept = list(indices)
    if disturbed:
        if kept and rng.random() < _DROP_PROBABILITY:
            kept.remove(pick(rng, kept))
        if kept and rng.random() < _DUPLICATE_PROBABILITY:
            kept.append(pick(rng, kept))
        if scene.objects and rng.random() < _FALSE_ALARM_PROBABILITY:
            kept.append(int(rng.random() * len(scene.objects)))
    jitter, lowest = (0.06, 0.5) if disturbed else (0.01, 0.7)
    found = [_object(scene, scene.objects[index], rng, jitter, lowest) for index in kept]
    return tuple(sorted(found, key=lambda item: -item.score))


def _object(scene: Scene, item: SceneObject, rng: np.random.Generator, jitter: float, lowest: float) -> ObservedObject:
    x1, y1, x2, y2 = item.box
    shift = rng.normal(0.0, jitter, 4).tolist()
    width, height = x2 - x1, y2 - y1
    score = round(lowest + (0.99 - lowest) * float(rng.random()) ** 0.5, 2)
    return ObservedObject(
        _thousandths(x1 + shift[0] * width, scene.width),
        _thousandths(y1 + shift[1] * height, scene.height),
        _thousandths(x2 + shift[2] * width, scene.width),
        _thousandths(y2 + shift[3] * height, scene.height),
        score,
    )


def _thousandths(position: float, side: int) -> int:
    return min(1000, max(0, round(1000 * position / side)))
