"""Makes a scene set with the composer: images, exact annotations, and prompts with the right answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from services.evaluation.scenes_set import (
    IMAGES_FOLDER,
    ChoiceAnswer,
    CountAnswer,
    ExpectedAnswer,
    Prompt,
    PromptPhrase,
    SceneSet,
    SceneSetError,
    SetAnnotation,
    SetCategory,
    SetImage,
    SetInfo,
    YesNoAnswer,
    encode_mask,
    save_scene_set,
)
from services.mllm.conversation import ImagePart, RoutedPhrase, Text
from services.trainer.scenes.categories import CATEGORIES, CATEGORY_INDEX
from services.trainer.scenes.composer import EVALUATION_SEED_START, Composer
from services.trainer.scenes.conversation import Conversation, TaskError
from services.trainer.scenes.conversations import sample_conversation
from services.trainer.scenes.figures import UNLABELLED
from services.trainer.scenes.grounds import GROUND_NAMES
from services.trainer.scenes.scene import Category, Scene, SceneObject
from services.trainer.scenes.skeletons import SKELETONS

# Tasks asked about every scene, and about every second and every fourth one.
_ALWAYS = ("detect", "detect_several", "detect_several", "refer", "count", "presence", "open")
_EVERY_SECOND = ("detect_absent", "compare", "count_without_tools", "presence_without_tools")
_EVERY_FOURTH = ("caption", "talk", "no_image")
_ATTEMPTS = 20
# 23 KB an image; lossless would take 53 KB.
_WEBP_QUALITY = 98
_SKELETONS = {skeleton.key: skeleton for skeleton in SKELETONS}
# Ids of categories in a set: those of sprites, and behind them with room to grow those of figures and of grounds.
_IDS = (
    {category.key: number for number, category in enumerate(CATEGORIES, start=1)}
    | {key: number for number, key in enumerate(_SKELETONS, start=151)}
    | {ground: number for number, ground in enumerate(GROUND_NAMES, start=201)}
)
_EQUAL_WORDINGS = ("equal", "equally", "the same", "neither", "as many", "一样", "相同", "都是")


def make_scene_set(
    folder: Path,
    composers: Sequence[Composer],
    count: int,
    first_seed: int = EVALUATION_SEED_START,
    report: Callable[[int], None] | None = None,
) -> SceneSet:
    """Write ``count`` scenes of consecutive seeds, drawn by the ``composers`` in turn, and return the set.

    The same arguments give the same files. ``report`` hears how many scenes are done. Raises SceneSetError when the
    folder holds a set already.
    """
    images_folder = folder / IMAGES_FOLDER
    if images_folder.exists() and any(images_folder.iterdir()):
        raise SceneSetError(f"{images_folder} holds images already. Name another folder, or remove it first.")
    images_folder.mkdir(parents=True, exist_ok=True)
    images: dict[int, SetImage] = {}
    annotations: dict[int, SetAnnotation] = {}
    prompts: list[Prompt] = []
    for number in range(count):
        scene = composers[number % len(composers)].compose(first_seed + number)
        image = SetImage(
            id=number + 1,
            file_name=f"{number + 1:04}.webp",
            width=scene.width,
            height=scene.height,
            style=scene.style,
            seed=scene.seed,
        )
        Image.fromarray(scene.image).save(images_folder / image.file_name, quality=_WEBP_QUALITY)
        images[image.id] = image
        first_annotation = len(annotations) + 1
        annotations.update((entry.id, entry) for entry in annotations_of(scene, image.id, first_annotation))
        for conversation in _conversations(scene, number):
            prompts.append(_prompt(conversation, scene, len(prompts) + 1, image.id, first_annotation))
        if report:
            report(number + 1)
    categories = {index + 1: set_category(category) for index, category in enumerate(CATEGORIES)}
    info = SetInfo(description="Composed scenes of emoji art; docs/scenes.md", first_seed=first_seed)
    made = SceneSet(folder, info, images, annotations, categories, tuple(prompts))
    save_scene_set(made)
    return made


def set_category(category: Category) -> SetCategory:
    """A category as a set lists it; one of figures has its skeleton."""
    listed = SetCategory(
        id=_IDS[category.key], name=category.english, name_zh=category.chinese, supercategory=category.group
    )
    if category.key not in _SKELETONS:
        return listed
    skeleton = _SKELETONS[category.key]
    bones = [(skeleton.index(first), skeleton.index(second)) for first, second in skeleton.bones]
    return listed.model_copy(
        update={
            "keypoints": tuple(keypoint.key for keypoint in skeleton.keypoints),
            "skeleton": tuple((1 + first, 1 + second) for first, second in bones),
            "sigmas": tuple(keypoint.sigma for keypoint in skeleton.keypoints),
        }
    )


def annotations_of(scene: Scene, image_id: int, first: int) -> Iterator[SetAnnotation]:
    """Annotations of all objects of a scene, with ids from ``first``."""
    for offset, item in enumerate(scene.objects):
        x1, y1, x2, y2 = item.box
        keypoints = _flat_keypoints(item)
        yield SetAnnotation(
            id=first + offset,
            image_id=image_id,
            category_id=_IDS[item.category.key],
            bbox=(x1, y1, x2 - x1, y2 - y1),
            area=item.area,
            segmentation=encode_mask(item.mask),
            keypoints=keypoints,
            num_keypoints=sum(flag > UNLABELLED for flag in keypoints[2::3]) if keypoints else None,
        )


def _flat_keypoints(item: SceneObject) -> tuple[int | float, ...]:
    """COCO's x, y, flag of each keypoint, [3 x keypoints], to a tenth of a pixel; zeros where it is unlabelled."""
    if item.keypoints is None or item.visibility is None:
        return ()
    flat: list[int | float] = []
    for (x, y), flag in zip(item.keypoints.tolist(), item.visibility.tolist(), strict=True):
        flat += (0, 0, flag) if flag == UNLABELLED else (round(x, 1), round(y, 1), flag)
    return tuple(flat)


def _conversations(scene: Scene, number: int) -> Iterator[Conversation]:
    """The conversations about scene ``number`` of the set; languages alternate from prompt to prompt."""
    rng = np.random.default_rng((scene.seed, 11))
    tasks = list(_ALWAYS)
    tasks += [task for place, task in enumerate(_EVERY_SECOND) if (number + place) % 2 == 0]
    tasks += [task for place, task in enumerate(_EVERY_FOURTH) if (number + place) % 4 == 0]
    for place, task in enumerate(tasks):
        language = ("en", "zh")[(number + place) % 2]
        for _ in range(_ATTEMPTS):
            try:
                yield sample_conversation(scene, rng, task, language, noisy=False)
            except TaskError:
                continue
            break


def _prompt(conversation: Conversation, scene: Scene, prompt_id: int, image_id: int, first_annotation: int) -> Prompt:
    user, assistant = conversation.turns
    words = "".join(part.text for part in user.parts if isinstance(part, Text))
    routed = [part for part in assistant.parts if isinstance(part, RoutedPhrase)]
    phrases = tuple(
        PromptPhrase(
            phrase=part.phrase,
            route=part.route,
            category_id=_category_id(part.phrase, targets, scene),
            annotation_ids=tuple(first_annotation + index for index in targets),
        )
        for part, targets in zip(routed, conversation.targets, strict=True)
    )
    shows_image = any(isinstance(part, ImagePart) for part in user.parts)
    return Prompt(
        id=prompt_id,
        image_id=image_id if shows_image else None,
        language=conversation.language,
        task=conversation.task,
        kind=conversation.kind,
        text=words,
        phrases=phrases,
        answer=_expected(conversation),
    )


def _category_id(phrase: str, targets: Sequence[int], scene: Scene) -> int:
    """The category that a phrase means: that of its targets, else the one of this name."""
    if targets:
        return CATEGORY_INDEX[scene.objects[targets[0]].category.key] + 1
    return next(
        index + 1 for index, category in enumerate(CATEGORIES) if phrase in (category.english, category.chinese)
    )


def _expected(conversation: Conversation) -> ExpectedAnswer | None:
    if not conversation.truth:
        return None
    if conversation.truth in ("yes", "no"):
        return YesNoAnswer(value=conversation.truth == "yes")
    if conversation.truth.isdecimal():
        return CountAnswer(value=int(conversation.truth))
    compared = [part.phrase for part in conversation.turns[1].parts if isinstance(part, RoutedPhrase)]
    options = {phrase: _wordings(phrase) for phrase in compared}
    if conversation.kind == "which_more":
        options["equal"] = _EQUAL_WORDINGS
    return ChoiceAnswer(value=conversation.truth, options=options)


def _wordings(name: str) -> tuple[str, ...]:
    category = next(category for category in CATEGORIES if name in (category.english, category.chinese))
    if name == category.chinese:
        return (name,)
    return tuple(dict.fromkeys((category.english, category.english_plural)))
