"""Extends a scene set by prompts for the tools beside detection: masks, marks, drawings, edits and dialogues."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from services.evaluation.scenes_making import annotations_of, set_category
from services.evaluation.scenes_set import (
    IMAGES_FOLDER,
    ExpectedDrawing,
    ExpectedEdit,
    Prompt,
    PromptPhrase,
    SceneSet,
    SetAnnotation,
    SetCategory,
    SetImage,
    encode_mask,
    save_scene_set,
)
from services.mllm.conversation import ImagePart, RoutedPhrase, Text
from services.trainer.scenes.answers import EDITS, MASKS
from services.trainer.scenes.categories import CATEGORIES, CATEGORY_INDEX
from services.trainer.scenes.composer import EVALUATION_SEED_START, Composer, ComposerOptions
from services.trainer.scenes.conversation import Conversation, TaskError
from services.trainer.scenes.conversations import sample_conversation
from services.trainer.scenes.drawings import CONCEPTS, DRAWING_OPTIONS
from services.trainer.scenes.edits import EDIT_KINDS, Edit, make_edit
from services.trainer.scenes.grounds import GROUND_CATEGORIES, paint_named_ground, with_grounds
from services.trainer.scenes.marks import MARK_KINDS, draw_mark, markable
from services.trainer.scenes.referring import leftmost_first
from services.trainer.scenes.scene import Scene
from services.trainer.scenes.wording import name
from superlink.v1 import types_pb2

# First seeds of the two kinds of scenes that are added.
_GROUNDS_SEED = EVALUATION_SEED_START + 10_000
_EDITS_SEED = EVALUATION_SEED_START + 20_000
_ATTEMPTS = 40
# Things in a scene that is edited, as in training.
_MOST_EDITED = 3
# Textures of grounds take much room; at 90 the error is still below what the networks see.
_WEBP_QUALITY = 90
_LANGUAGES = ("en", "zh")
# Asked about every scene on named grounds, and about every second one.
_TASKS = ("segment", "segment_referred", "several_tools")
_EVERY_SECOND = ("segment_several", "boxes_and_masks", "refer_back")


@dataclass
class _Additions:
    """What is added to a set."""

    next_annotation: int
    next_prompt: int
    images: list[SetImage] = field(default_factory=list)
    annotations: list[SetAnnotation] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)

    def ask(self, language: str, task: str, text: str, **fields: Any) -> None:
        """One more prompt."""
        self.prompts.append(Prompt(id=self.next_prompt, language=language, task=task, text=text, **fields))
        self.next_prompt += 1


def tool_composers(sprites: Mapping[str, NDArray[np.uint8]]) -> tuple[Composer, Composer]:
    """The composers of scenes on named grounds and of scenes that are edited, of ``sprites.load_sprites``."""
    return Composer(sprites, ComposerOptions(largest_side=224, named_grounds=1.0)), Composer(sprites, DRAWING_OPTIONS)


def extend_scene_set(
    scene_set: SceneSet, grounds: Composer, sources: Composer, scenes: int = 40, edits: int = 40, drawings: int = 60
) -> SceneSet:
    """Add ``scenes`` of ``grounds``, ``edits`` of scenes of ``sources`` and ``drawings``, and write the set's files.

    What was in the set stays as it is. The same arguments add the same.
    """
    known = {category.id: category for category in ground_categories()}
    added = _Additions(1 + max(scene_set.annotations, default=0), 1 + max((p.id for p in scene_set.prompts), default=0))
    first_image = 1 + max(scene_set.images, default=0)
    for number in range(scenes):
        _add_scene(scene_set, added, grounds.compose(_GROUNDS_SEED + number), first_image + number, number)
    for number in range(edits):
        _add_edit(scene_set, added, sources, first_image + scenes + number, number)
    rng = np.random.default_rng(_GROUNDS_SEED)
    for number in range(drawings):
        _add_drawing(added, number, rng)
    extended = SceneSet(
        scene_set.folder,
        scene_set.info,
        scene_set.images | {image.id: image for image in added.images},
        scene_set.annotations | {annotation.id: annotation for annotation in added.annotations},
        scene_set.categories | known,
        (*scene_set.prompts, *added.prompts),
    )
    save_scene_set(extended)
    return extended


def ground_categories() -> Iterator[SetCategory]:
    """Named grounds as a set lists them, with ids behind those of all things."""
    for category in GROUND_CATEGORIES.values():
        yield set_category(category)


def _add_scene(scene_set: SceneSet, added: _Additions, scene: Scene, image_id: int, number: int) -> None:
    everything = with_grounds(scene)
    first = _add_image(scene_set, added, everything, image_id)
    rng = np.random.default_rng((scene.seed, 13))
    tasks = [*_TASKS, *(task for place, task in enumerate(_EVERY_SECOND) if (number + place) % 2 == 0)]
    for place, task in enumerate(tasks):
        conversation = _conversation(scene, task, _LANGUAGES[(number // 2 + place) % 2], rng)
        if conversation is not None:
            _ask(added, conversation, everything, image_id, first)
    language = _LANGUAGES[number % 2]
    shown = leftmost_first(everything)
    phrases = [
        PromptPhrase(
            phrase=name(category, language),
            route=MASKS,
            category_id=set_category(category).id,
            annotation_ids=tuple(
                first + index for index, thing in enumerate(everything.objects) if thing.category.key == category.key
            ),
        )
        for category in shown
    ]
    words = ", ".join(phrase.phrase for phrase in phrases)
    added.ask(language, "semantic", words, image_id=image_id, phrases=tuple(phrases))
    things = markable(scene)
    if things:
        thing = things[int(rng.integers(len(things)))]
        meant = PromptPhrase(
            phrase=name(scene.objects[thing].category, language),
            route=MASKS,
            category_id=set_category(scene.objects[thing].category).id,
            annotation_ids=(first + thing,),
        )
        for kind in MARK_KINDS:
            mark = _wire_mark(draw_mark(scene.objects[thing], kind, rng))
            added.ask(
                language, "interactive", meant.phrase, image_id=image_id, kind=kind, phrases=(meant,), marks=(mark,)
            )


def _conversation(scene: Scene, task: str, language: str, rng: np.random.Generator) -> Conversation | None:
    """One whose last answer routes something and that names things which can be told from the scene."""
    for _ in range(_ATTEMPTS):
        try:
            conversation = sample_conversation(scene, rng, task, language, noisy=False)
        except TaskError:
            continue
        if any(isinstance(part, RoutedPhrase) for part in conversation.turns[-1].parts):
            return conversation
    return None


def _ask(added: _Additions, conversation: Conversation, scene: Scene, image_id: int | None, first: int) -> None:
    """The prompt of a conversation of one question or two; the targets are those of the last answer."""
    routed = [part for part in conversation.turns[-1].parts if isinstance(part, RoutedPhrase)]
    meant = conversation.targets[len(conversation.targets) - len(routed) :]
    questions = [
        "".join(part.text for part in turn.parts if isinstance(part, Text))
        for turn in conversation.turns
        if turn.role == "user"
    ]
    shows_image = any(isinstance(part, ImagePart) for turn in conversation.turns for part in turn.parts)
    added.ask(
        conversation.language,
        conversation.task,
        questions[-1],
        earlier=questions[0] if len(questions) > 1 else "",
        image_id=image_id if shows_image else None,
        kind=conversation.kind,
        phrases=tuple(
            PromptPhrase(
                phrase=part.phrase,
                route=part.route,
                category_id=_category_id(part.phrase, targets, scene),
                annotation_ids=tuple(first + index for index in targets),
            )
            for part, targets in zip(routed, meant, strict=True)
        ),
        drawing=_expected_drawing(conversation) if conversation.task == "draw" else None,
    )


def _category_id(phrase: str, targets: tuple[int, ...], scene: Scene) -> int | None:
    if targets:
        return set_category(scene.objects[targets[0]].category).id
    named = [
        category
        for category in (*CATEGORIES, *GROUND_CATEGORIES.values())
        if phrase in (category.english, category.chinese)
    ]
    return set_category(named[0]).id if named else None


def _expected_drawing(conversation: Conversation) -> ExpectedDrawing:
    concepts = [CONCEPTS[row] for row in conversation.drawings[0]]
    return ExpectedDrawing(category_ids=tuple(CATEGORY_INDEX[key] + 1 for key in concepts if key in CATEGORY_INDEX))


def _add_drawing(added: _Additions, number: int, rng: np.random.Generator) -> None:
    nothing = Scene(np.zeros((1, 1, 3), dtype=np.uint8), (), "", 0)
    while True:
        conversation = sample_conversation(nothing, rng, "draw", _LANGUAGES[number % 2])
        if not any(isinstance(part, ImagePart) for part in conversation.turns[0].parts):
            _ask(added, conversation, nothing, None, 0)
            return


def _add_edit(scene_set: SceneSet, added: _Additions, composer: Composer, image_id: int, number: int) -> None:
    kind, language = EDIT_KINDS[number % len(EDIT_KINDS)], _LANGUAGES[number // len(EDIT_KINDS) % 2]
    for attempt in range(_ATTEMPTS):
        seed = _EDITS_SEED + number * _ATTEMPTS + attempt
        composition = composer.arrange(seed)
        composition = replace(composition, layers=composition.layers[:_MOST_EDITED])
        edit = make_edit(kind, composer, composition, np.random.default_rng((seed, 17)), language)
        if edit is None:
            continue
        first = _add_image(scene_set, added, edit.before, image_id)
        about = edit.category or edit.replacement
        phrase = PromptPhrase(
            phrase=edit.phrase,
            route=EDITS,
            category_id=None if about is None else set_category(about).id,
            annotation_ids=tuple(
                first + index
                for index, thing in enumerate(edit.before.objects)
                if about is not None and thing.category.key == about.key
            ),
        )
        expected = _expected_edit(edit)
        added.ask(language, "edit", edit.instruction, image_id=image_id, kind=kind, phrases=(phrase,), edit=expected)
        return


def _expected_edit(edit: Edit) -> ExpectedEdit:
    about = None if edit.category is None else set_category(edit.category).id
    return ExpectedEdit(
        gone=about if edit.kind in ("remove", "replace") else None,
        new=about if edit.kind == "add" else None if edit.replacement is None else set_category(edit.replacement).id,
        recoloured=about if edit.kind == "recolour" else None,
        hue=None if edit.colour is None else edit.colour.hue,
        colour=None if edit.ground is None else _mean_colour(edit.ground.key),
        changed=encode_mask(edit.changed),
    )


def _mean_colour(ground: str) -> tuple[float, float, float]:
    painted = [paint_named_ground(ground, 64, 64, np.random.default_rng(seed)) for seed in range(32)]
    red, green, blue = np.mean(painted, axis=(0, 1, 2)).round(1).tolist()
    return red, green, blue


def _add_image(scene_set: SceneSet, added: _Additions, scene: Scene, image_id: int) -> int:
    """Write the image and list it and its things; returns the id of its first annotation."""
    image = SetImage(
        id=image_id,
        file_name=f"{image_id:04}.webp",
        width=scene.width,
        height=scene.height,
        style=scene.style,
        seed=scene.seed,
    )
    Image.fromarray(scene.image).save(scene_set.folder / IMAGES_FOLDER / image.file_name, quality=_WEBP_QUALITY)
    first = added.next_annotation
    entries = list(annotations_of(scene, image_id, first))
    added.images.append(image)
    added.annotations.extend(entries)
    added.next_annotation += len(entries)
    return first


def _wire_mark(region: types_pb2.Region) -> dict[str, Any]:
    """A mark as the gateway takes it."""
    if region.HasField("points"):
        return {"points": _places(region.points.points)}
    if region.HasField("box"):
        box = region.box
        return {"box": [round(side, 1) for side in (box.x1, box.y1, box.x2, box.y2)]}
    if region.HasField("stroke"):
        return {"stroke": {"points": _places(region.stroke.points)}}
    mask = region.mask
    return {"mask": {"size": [mask.height, mask.width], "counts": mask.counts.decode("ascii")}}


def _places(points: Any) -> list[list[float]]:
    return [[round(point.x, 1), round(point.y, 1)] for point in points]
