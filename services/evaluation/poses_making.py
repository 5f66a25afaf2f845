"""The part of a scene set that asks for poses: scenes with people and deer."""

from __future__ import annotations

import numpy as np

from services.evaluation.scenes_making import set_category
from services.evaluation.scenes_set import POSE_TASK, PromptPhrase
from services.evaluation.set_extension import ATTEMPTS, LANGUAGES, SetExtension
from services.mllm.conversation import RoutedPhrase, Text
from services.trainer.scenes.answers import KEYPOINTS
from services.trainer.scenes.composer import EVALUATION_SEED_START, Composer, ComposerOptions
from services.trainer.scenes.conversation import Conversation, routed_phrases
from services.trainer.scenes.conversations import sample_conversation
from services.trainer.scenes.figures import FIGURE_CATEGORIES
from services.trainer.scenes.referring import members
from services.trainer.scenes.scene import Scene
from services.trainer.scenes.skeletons import SKELETONS, Skeleton
from services.trainer.scenes.wording import name

# All keypoints of a kind of figure, and some of them.
_PLACES_TASK = "pose_places"
POSE_TASKS = (POSE_TASK, _PLACES_TASK)
# As the pose estimator is trained.
POSE_OPTIONS = ComposerOptions(largest_side=256, most_figures=3)
_FIRST_SEED = EVALUATION_SEED_START + 30_000


def add_poses(extension: SetExtension, composer: Composer, count: int) -> None:
    """``count`` scenes with figures, by turns in English and in Chinese.

    Every kind of figure in a scene is asked for with all keypoints, and one of them with some.
    """
    extension.name_categories(map(set_category, FIGURE_CATEGORIES.values()))
    for number in range(count):
        scene = composer.compose(_FIRST_SEED + number)
        image_id, first = extension.add_scene(scene)
        shown = [kind for kind in SKELETONS if members(scene, FIGURE_CATEGORIES[kind.key])]
        if not shown:
            continue
        rng = np.random.default_rng((scene.seed, 19))
        language = LANGUAGES[number % 2]
        for kind in shown:
            _ask(extension, scene, kind, _about(kind, scene, POSE_TASK, language, rng), image_id, first)
        kind = shown[number // 2 % len(shown)]
        _ask(extension, scene, kind, _about(kind, scene, _PLACES_TASK, language, rng), image_id, first)


def _about(kind: Skeleton, scene: Scene, task: str, language: str, rng: np.random.Generator) -> Conversation:
    """A conversation about this kind of figure; chance gives that of any."""
    wanted = name(FIGURE_CATEGORIES[kind.key], language)
    for _ in range(ATTEMPTS):
        conversation = sample_conversation(scene, rng, task, language, noisy=False)
        if routed_phrases(conversation)[0].phrase == wanted:
            return conversation
    raise RuntimeError(f"{ATTEMPTS} conversations were about other figures than {wanted!r}.")


def _ask(
    extension: SetExtension, scene: Scene, kind: Skeleton, conversation: Conversation, image_id: int, first: int
) -> None:
    """The prompt of a conversation about the figures of this kind; ``first`` is the scene's first annotation."""
    category = FIGURE_CATEGORIES[kind.key]
    meant = tuple(first + index for index in members(scene, category))
    extension.ask(
        conversation.language,
        conversation.task,
        "".join(part.text for part in conversation.turns[0].parts if isinstance(part, Text)),
        image_id=image_id,
        kind=kind.key,
        phrases=tuple(_phrase(part, kind, set_category(category).id, meant) for part in routed_phrases(conversation)),
    )


def _phrase(part: RoutedPhrase, kind: Skeleton, category_id: int, meant: tuple[int, ...]) -> PromptPhrase:
    if part.route != KEYPOINTS:
        return PromptPhrase(phrase=part.phrase, route=part.route, category_id=category_id, annotation_ids=meant)
    [key] = [known.key for known in kind.keypoints if part.phrase in (known.english, known.chinese)]
    return PromptPhrase(phrase=part.phrase, route=part.route, category_id=category_id, keypoint=key)
