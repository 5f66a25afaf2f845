"""The parts that a scene set of boxes can be extended by: masks, marks, drawings, edits, dialogues and poses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.evaluation.poses_making import POSE_OPTIONS, POSE_TASKS, add_poses
from services.evaluation.scenes_making import set_category
from services.evaluation.scenes_set import ExpectedDrawing, ExpectedEdit, PromptPhrase, encode_mask
from services.evaluation.set_extension import ATTEMPTS, LANGUAGES, Part, SetExtension
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

# First seeds of the scenes on named grounds, and of those that are edited.
_GROUNDS_SEED = EVALUATION_SEED_START + 10_000
_EDITS_SEED = EVALUATION_SEED_START + 20_000
# Things in a scene that is edited, as in training.
_MOST_EDITED = 3
# Asked about every scene on named grounds, and about every second one.
_TASKS = ("segment", "segment_referred", "several_tools")
_EVERY_SECOND = ("segment_several", "boxes_and_masks", "refer_back")


def tool_parts(
    sprites: Mapping[str, NDArray[np.uint8]], scenes: int = 80, edits: int = 40, drawings: int = 60, poses: int = 60
) -> tuple[Part, ...]:
    """All that a set of boxes can be extended by, with so many images each; ``sprites`` of ``sprites.load_sprites``."""
    grounds = Composer(sprites, ComposerOptions(largest_side=224, named_grounds=1.0))
    sources = Composer(sprites, DRAWING_OPTIONS)
    figures = Composer(sprites, POSE_OPTIONS)
    return (
        Part((*_TASKS, *_EVERY_SECOND, "semantic", "interactive"), lambda added: add_grounds(added, grounds, scenes)),
        Part(("edit",), lambda added: add_edits(added, sources, edits)),
        Part(("draw",), lambda added: add_drawings(added, drawings)),
        Part(POSE_TASKS, lambda added: add_poses(added, figures, poses)),
    )


def add_grounds(extension: SetExtension, composer: Composer, count: int) -> None:
    """``count`` scenes on named grounds: masks, marks, several tools and dialogues."""
    extension.name_categories(map(set_category, GROUND_CATEGORIES.values()))
    for number in range(count):
        _add_scene(extension, composer.compose(_GROUNDS_SEED + number), number)


def add_edits(extension: SetExtension, composer: Composer, count: int) -> None:
    """``count`` small scenes that are to be edited."""
    for number in range(count):
        _add_edit(extension, composer, number)


def add_drawings(extension: SetExtension, count: int) -> None:
    """``count`` requests for drawings."""
    rng = np.random.default_rng(_GROUNDS_SEED)
    for number in range(count):
        _add_drawing(extension, number, rng)


def _add_scene(extension: SetExtension, scene: Scene, number: int) -> None:
    everything = with_grounds(scene)
    image_id, first = extension.add_scene(everything)
    rng = np.random.default_rng((scene.seed, 13))
    tasks = [*_TASKS, *(task for place, task in enumerate(_EVERY_SECOND) if (number + place) % 2 == 0)]
    for place, task in enumerate(tasks):
        conversation = _conversation(scene, task, LANGUAGES[(number // 2 + place) % 2], rng)
        if conversation is not None:
            _ask(extension, conversation, everything, image_id, first)
    language = LANGUAGES[number % 2]
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
    extension.ask(language, "semantic", words, image_id=image_id, phrases=tuple(phrases))
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
            extension.ask(
                language, "interactive", meant.phrase, image_id=image_id, kind=kind, phrases=(meant,), marks=(mark,)
            )


def _conversation(scene: Scene, task: str, language: str, rng: np.random.Generator) -> Conversation | None:
    """One whose last answer routes something and that names things which can be told from the scene."""
    for _ in range(ATTEMPTS):
        try:
            conversation = sample_conversation(scene, rng, task, language, noisy=False)
        except TaskError:
            continue
        if any(isinstance(part, RoutedPhrase) for part in conversation.turns[-1].parts):
            return conversation
    return None


def _ask(extension: SetExtension, conversation: Conversation, scene: Scene, image_id: int | None, first: int) -> None:
    """The prompt of a conversation of one question or two; the targets are those of the last answer."""
    routed = [part for part in conversation.turns[-1].parts if isinstance(part, RoutedPhrase)]
    meant = conversation.targets[len(conversation.targets) - len(routed) :]
    questions = [
        "".join(part.text for part in turn.parts if isinstance(part, Text))
        for turn in conversation.turns
        if turn.role == "user"
    ]
    shows_image = any(isinstance(part, ImagePart) for turn in conversation.turns for part in turn.parts)
    extension.ask(
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


def _add_drawing(extension: SetExtension, number: int, rng: np.random.Generator) -> None:
    nothing = Scene(np.zeros((1, 1, 3), dtype=np.uint8), (), "", 0)
    while True:
        conversation = sample_conversation(nothing, rng, "draw", LANGUAGES[number % 2])
        if not any(isinstance(part, ImagePart) for part in conversation.turns[0].parts):
            _ask(extension, conversation, nothing, None, 0)
            return


def _add_edit(extension: SetExtension, composer: Composer, number: int) -> None:
    kind, language = EDIT_KINDS[number % len(EDIT_KINDS)], LANGUAGES[number // len(EDIT_KINDS) % 2]
    for attempt in range(ATTEMPTS):
        seed = _EDITS_SEED + number * ATTEMPTS + attempt
        composition = composer.arrange(seed)
        composition = replace(composition, layers=composition.layers[:_MOST_EDITED])
        edit = make_edit(kind, composer, composition, np.random.default_rng((seed, 17)), language)
        if edit is None:
            continue
        image_id, first = extension.add_scene(edit.before)
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
        extension.ask(
            language, "edit", edit.instruction, image_id=image_id, kind=kind, phrases=(phrase,), edit=expected
        )
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
