"""Conversations that ask for poses: whose, and which keypoints.

An answer first routes the kind of figure and then the keypoints, in the order in which they were asked for; without
any, all of the figure's skeleton in its own order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.mllm.conversation import RoutedPhrase, fast_path
from services.trainer.scenes.answers import FIGURES, KEYPOINTS, routed_answer
from services.trainer.scenes.conversation import Conversation, exchange
from services.trainer.scenes.pose_templates import BOTH_SIDES, POSE, POSE_PLACES
from services.trainer.scenes.scene import Scene
from services.trainer.scenes.skeletons import SKELETONS, KeypointName, Skeleton
from services.trainer.scenes.templates import ENGLISH, ROUTED_ANSWERS
from services.trainer.scenes.wording import join_names, pick

_MOST_PLACES = 4


def pose(_scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation:
    """All keypoints of one kind of figure."""
    skeleton = pick(rng, SKELETONS)
    question = pick(rng, POSE[language]).format(**figure_words(skeleton, language))
    return _conversation("pose", question, skeleton, skeleton.keypoints, language, rng)


def pose_places(_scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation:
    """Some keypoints of one kind of figure."""
    skeleton = pick(rng, SKELETONS)
    spoken, keypoints = some_places(skeleton, language, rng)
    words = figure_words(skeleton, language) | {"places": spoken}
    question = pick(rng, POSE_PLACES[language]).format(**words)
    return _conversation("pose_places", question, skeleton, keypoints, language, rng)


def pose_fast(_scene: Scene, language: str, rng: np.random.Generator, _noisy: bool) -> Conversation:
    """The form of ``/v1/pose``, whose phrases are the caller's own words."""
    kinds = [skeleton for skeleton in SKELETONS if rng.random() < 0.5] or [pick(rng, SKELETONS)]
    asked = list(kinds[0].keypoints)
    if rng.random() < 0.5:
        rng.shuffle(asked)  # type: ignore[arg-type]
        asked = asked[: 1 + int(rng.random() * len(asked))]
    first, *keypoints = pose_phrases(kinds[0], asked, language)
    others = [pose_phrases(kind, (), language)[0] for kind in kinds[1:]]
    phrases = [first, *others, *keypoints]
    return Conversation("pose_fast", language, fast_path(phrases), ((),) * len(phrases))


def pose_phrases(skeleton: Skeleton, keypoints: Sequence[KeypointName], language: str) -> list[RoutedPhrase]:
    """What an answer routes to the pose tool."""
    kind = skeleton.english if language == ENGLISH else skeleton.chinese
    names = [keypoint.english if language == ENGLISH else keypoint.chinese for keypoint in keypoints]
    return [RoutedPhrase(FIGURES, kind), *(RoutedPhrase(KEYPOINTS, name) for name in names)]


def some_places(skeleton: Skeleton, language: str, rng: np.random.Generator) -> tuple[str, tuple[KeypointName, ...]]:
    """A few places of a skeleton as people list them, and the keypoints that are meant, in this order."""
    kinds = list(dict.fromkeys(_kind(keypoint.key) for keypoint in skeleton.keypoints))
    rng.shuffle(kinds)
    names: list[str] = []
    chosen: list[KeypointName] = []
    for kind in kinds[: 1 + int(rng.random() * _MOST_PLACES)]:
        members = [keypoint for keypoint in skeleton.keypoints if _kind(keypoint.key) == kind]
        if len(members) > 1 and rng.random() < 0.5:
            names.append(BOTH_SIDES[kind][0 if language == ENGLISH else 1])
        else:
            members = [pick(rng, members)]
            names.append(members[0].english if language == ENGLISH else members[0].chinese)
        chosen.extend(members)
    return join_names(names, language, rng), tuple(chosen)


def figure_words(skeleton: Skeleton, language: str) -> dict[str, str]:
    """What question templates fill in about a kind of figure."""
    one = skeleton.english if language == ENGLISH else skeleton.chinese
    return {
        "one": one,
        "many": skeleton.english_plural if language == ENGLISH else one,
        "the": f"the {one}",
        "measure": skeleton.measure_word,
    }


def _kind(key: str) -> str:
    """What a keypoint is called without its side."""
    return key.removeprefix("left_").removeprefix("right_")


def _conversation(
    task: str,
    question: str,
    skeleton: Skeleton,
    keypoints: Sequence[KeypointName],
    language: str,
    rng: np.random.Generator,
) -> Conversation:
    phrases = pose_phrases(skeleton, keypoints, language)
    answer = routed_answer(phrases, ROUTED_ANSWERS, language, rng)
    # Scenes of sprites show no figures.
    return Conversation(task, language, exchange(question, answer, language, rng), ((),) * len(phrases))
