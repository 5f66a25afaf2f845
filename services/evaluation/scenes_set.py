"""A set of scenes to evaluate on: a folder of images, COCO annotations and prompts. docs/scenes.md specifies it.

Nothing here knows how scenes are made, so that any folder in the format can be evaluated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, TypeAdapter, ValidationError

FORMAT_VERSION = 1
ANNOTATIONS_FILE = "annotations.json"
PROMPTS_FILE = "prompts.json"
IMAGES_FOLDER = "images"
# Prompts of this task ask for all keypoints of one kind of figure, which the set has to know.
POSE_TASK = "pose"


class SceneSetError(Exception):
    """A folder is no scene set. The text says which file and what is wrong with it."""


def _is_nothing(value: object) -> bool:
    return not value


def _is_none(value: object) -> bool:
    return value is None


class _Entry(BaseModel):
    """Base of what the files hold: fields that others add are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class SetInfo(_Entry):
    """What the set says about itself."""

    description: str = ""
    version: int = FORMAT_VERSION
    # The seed of the first scene; None for images that no seed makes.
    first_seed: int | None = None


class SetImage(_Entry):
    """One image."""

    id: int
    # Relative to the set's folder of images.
    file_name: str
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    # Drawing style, or any name of the domain that the image comes from.
    style: str = ""
    seed: int | None = None


class RunLengthMask(_Entry):
    """COCO's compressed run-length encoding: ``size`` is height, width."""

    size: tuple[int, int]
    counts: str


class SetAnnotation(_Entry):
    """One thing in an image."""

    id: int
    image_id: int
    category_id: int
    # x, y, width, height in pixels.
    bbox: tuple[float, float, float, float]
    # Pixels of the mask, or of the box where there is none.
    area: float
    iscrowd: int = 0
    segmentation: RunLengthMask | None = None
    # Of a figure: x and y in pixels and COCO's visibility flag (0 unlabelled, 1 hidden, 2 visible) of each keypoint of
    # its category, [3 x keypoints], and how many of them are labelled.
    keypoints: tuple[int | float, ...] = Field(default=(), exclude_if=_is_nothing)
    num_keypoints: int | None = Field(default=None, exclude_if=_is_none)

    def mask(self) -> NDArray[np.bool_]:
        """``[height, width]`` bool. Raises SceneSetError when the annotation has none."""
        if self.segmentation is None:
            raise SceneSetError(f"Annotation {self.id} has no mask.")
        return np.asarray(coco_mask.decode(self.segmentation.model_dump()), dtype=np.bool_)


class SetCategory(_Entry):
    """One kind of thing."""

    id: int
    name: str
    name_zh: str = ""
    supercategory: str = ""
    # Of figures: names of the keypoints, pairs of their places counted from 1 between which a bone lies, and how far
    # annotators scatter around each, relative to the square root of a figure's area.
    keypoints: tuple[str, ...] = Field(default=(), exclude_if=_is_nothing)
    skeleton: tuple[tuple[int, int], ...] = Field(default=(), exclude_if=_is_nothing)
    sigmas: tuple[PositiveFloat, ...] = Field(default=(), exclude_if=_is_nothing)


class PromptPhrase(_Entry):
    """A phrase that the right answer routes, and what it means."""

    phrase: str = Field(min_length=1)
    route: str = "[DET]"
    # None: the phrase names no category, like "make the dog blue" or "dog 2".
    category_id: int | None
    # Empty: it is not in the image.
    annotation_ids: tuple[int, ...] = ()
    # The phrase names this keypoint of ``category_id``, of the things of the phrases before it, and no thing itself.
    keypoint: str | None = Field(default=None, exclude_if=_is_none)


class CountAnswer(_Entry):
    """The right answer is a number."""

    kind: Literal["count"] = "count"
    value: int = Field(ge=0)


class YesNoAnswer(_Entry):
    """The right answer is yes or no."""

    kind: Literal["yes_no"] = "yes_no"
    value: bool


class ChoiceAnswer(_Entry):
    """The right answer is one of several, each of which can be put in several ways."""

    kind: Literal["choice"] = "choice"
    value: str
    # choice -> its wordings: {"dog": ["dog", "dogs"], "equal": ["equally many"]}.
    options: Mapping[str, tuple[str, ...]]


ExpectedAnswer = Annotated[CountAnswer | YesNoAnswer | ChoiceAnswer, Field(discriminator="kind")]


class ExpectedDrawing(_Entry):
    """What a picture has to show."""

    category_ids: tuple[int, ...]


class ExpectedEdit(_Entry):
    """What an edited picture has to show, and which part of it may change."""

    # What is gone afterwards, what is new, and what takes another colour.
    gone: int | None = None
    new: int | None = None
    recoloured: int | None = None
    # The hue 0..1 of what changes, or its mean colour, 0..255 each.
    hue: float | None = None
    colour: tuple[float, float, float] | None = None
    # The pixels that change in an edit that is done exactly.
    changed: RunLengthMask

    def changed_mask(self) -> NDArray[np.bool_]:
        """``[height, width]`` bool."""
        return np.asarray(coco_mask.decode(self.changed.model_dump()), dtype=np.bool_)


class Prompt(_Entry):
    """One question and what is right."""

    id: int
    # None: the question comes without an image.
    image_id: int | None
    # "en" or "zh".
    language: str
    task: str
    # A finer kind within the task: "leftmost", "which_more" ...
    kind: str = Field(default="", exclude_if=_is_nothing)
    text: str = Field(min_length=1)
    phrases: tuple[PromptPhrase, ...] = ()
    answer: ExpectedAnswer | None = Field(default=None, exclude_if=_is_none)
    # What is asked before ``text`` in a dialogue of two questions; ``phrases`` are those of the second answer.
    earlier: str = Field(default="", exclude_if=_is_nothing)
    # What is marked on the image, each as the gateway takes it: {"box": [x1, y1, x2, y2]}, {"points": [[x, y]]} ...
    marks: tuple[Mapping[str, Any], ...] = Field(default=(), exclude_if=_is_nothing)
    drawing: ExpectedDrawing | None = Field(default=None, exclude_if=_is_nothing)
    edit: ExpectedEdit | None = Field(default=None, exclude_if=_is_nothing)


class _AnnotationsFile(_Entry):
    info: SetInfo = SetInfo()
    images: tuple[SetImage, ...]
    annotations: tuple[SetAnnotation, ...]
    categories: tuple[SetCategory, ...]


class _PromptsFile(_Entry):
    version: int = FORMAT_VERSION
    prompts: tuple[Prompt, ...]


class SceneSet:
    """A loaded set. Everything refers to something that is there."""

    def __init__(
        self,
        folder: Path,
        info: SetInfo,
        images: Mapping[int, SetImage],
        annotations: Mapping[int, SetAnnotation],
        categories: Mapping[int, SetCategory],
        prompts: tuple[Prompt, ...],
    ) -> None:
        self.folder = folder
        self.info = info
        self.images = dict(images)
        self.annotations = dict(annotations)
        self.categories = dict(categories)
        self.prompts = prompts

    def image_file(self, image_id: int) -> Path:
        """Where the image lies."""
        return self.folder / IMAGES_FOLDER / self.images[image_id].file_name

    def annotations_of(self, image_id: int) -> tuple[SetAnnotation, ...]:
        """Everything annotated in an image."""
        return tuple(annotation for annotation in self.annotations.values() if annotation.image_id == image_id)


def load_scene_set(folder: Path) -> SceneSet:
    """Read and check a set. Raises SceneSetError naming the file and the entry that is wrong."""
    annotations_file = folder / ANNOTATIONS_FILE
    described = _read(annotations_file, TypeAdapter(_AnnotationsFile))
    prompts = _read(folder / PROMPTS_FILE, TypeAdapter(_PromptsFile))
    for version, file in ((described.info.version, annotations_file), (prompts.version, folder / PROMPTS_FILE)):
        if version != FORMAT_VERSION:
            raise SceneSetError(f"{file}: format version {version} is unknown; this program reads {FORMAT_VERSION}.")
    loaded = SceneSet(
        folder,
        described.info,
        _by_id(described.images, annotations_file, "image"),
        _by_id(described.annotations, annotations_file, "annotation"),
        _by_id(described.categories, annotations_file, "category"),
        prompts.prompts,
    )
    _check(loaded)
    return loaded


def save_scene_set(scene_set: SceneSet) -> None:
    """Write the two JSON files of a set into its folder; the images are there already."""
    described = {
        "info": scene_set.info.model_dump(),
        "images": [image.model_dump() for image in scene_set.images.values()],
        "annotations": [annotation.model_dump() for annotation in scene_set.annotations.values()],
        "categories": [category.model_dump() for category in scene_set.categories.values()],
    }
    _write(scene_set.folder / ANNOTATIONS_FILE, described)
    prompts = [prompt.model_dump() for prompt in scene_set.prompts]
    _write(scene_set.folder / PROMPTS_FILE, {"version": FORMAT_VERSION, "prompts": prompts})


def encode_mask(mask: NDArray[np.bool_]) -> RunLengthMask:
    """``[height, width]`` bool as COCO's compressed run lengths."""
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return RunLengthMask(size=tuple(encoded["size"]), counts=encoded["counts"].decode("ascii"))


def _read(file: Path, adapter: TypeAdapter[Any]) -> Any:
    try:
        return adapter.validate_json(file.read_bytes())
    except FileNotFoundError as error:
        raise SceneSetError(f"{file} is missing. A scene set has {ANNOTATIONS_FILE} and {PROMPTS_FILE}.") from error
    except OSError as error:
        raise SceneSetError(f"{file} cannot be read ({error.strerror}).") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise SceneSetError(f"{file}: {place}: {first['msg']}") from error


def _write(file: Path, content: Mapping[str, Any]) -> None:
    """One entry a line: readable by people, and small differences stay small."""
    parts = []
    for key, value in content.items():
        if isinstance(value, list):
            lines = ",\n".join(json.dumps(entry, ensure_ascii=False, separators=(",", ":")) for entry in value)
            parts.append(f"{json.dumps(key)}: [\n{lines}\n]")
        else:
            parts.append(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    file.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def _by_id(entries: tuple[Any, ...], file: Path, kind: str) -> dict[int, Any]:
    table = {entry.id: entry for entry in entries}
    if len(table) != len(entries):
        raise SceneSetError(f"{file}: two entries share one {kind} id.")
    return table


def _check(loaded: SceneSet) -> None:
    for category in loaded.categories.values():
        _check_skeleton(loaded, category)
    for annotation in loaded.annotations.values():
        if annotation.image_id not in loaded.images or annotation.category_id not in loaded.categories:
            raise SceneSetError(f"Annotation {annotation.id} refers to an image or a category that is not there.")
        expected = 3 * len(loaded.categories[annotation.category_id].keypoints)
        if annotation.keypoints and len(annotation.keypoints) != expected:
            place = f"{loaded.folder / ANNOTATIONS_FILE}: annotation {annotation.id}"
            raise SceneSetError(f"{place} has {len(annotation.keypoints)} numbers as keypoints, not {expected}.")
    for image in loaded.images.values():
        if not loaded.image_file(image.id).is_file():
            raise SceneSetError(f"{loaded.image_file(image.id)} is missing, which {ANNOTATIONS_FILE} names.")
    if len({prompt.id for prompt in loaded.prompts}) != len(loaded.prompts):
        raise SceneSetError(f"{loaded.folder / PROMPTS_FILE}: two prompts share one id.")
    for prompt in loaded.prompts:
        _check_prompt(loaded, prompt)


def _check_skeleton(loaded: SceneSet, category: SetCategory) -> None:
    place = f"{loaded.folder / ANNOTATIONS_FILE}: category {category.id}"
    count = len(category.keypoints)
    if len(set(category.keypoints)) != count:
        raise SceneSetError(f"{place}: two keypoints share one name.")
    if category.sigmas and len(category.sigmas) != count:
        raise SceneSetError(f"{place} has {len(category.sigmas)} sigmas for {count} keypoints.")
    if any(not 1 <= end <= count for bone in category.skeleton for end in bone):
        raise SceneSetError(f"{place}: a bone of its skeleton ends beyond its keypoints, which are 1 to {count}.")


def _check_prompt(loaded: SceneSet, prompt: Prompt) -> None:
    place = f"{loaded.folder / PROMPTS_FILE}: prompt {prompt.id}"
    if prompt.image_id is not None and prompt.image_id not in loaded.images:
        raise SceneSetError(f"{place} refers to image {prompt.image_id}, which is not there.")
    for phrase in prompt.phrases:
        if phrase.category_id is not None and phrase.category_id not in loaded.categories:
            raise SceneSetError(f"{place} refers to category {phrase.category_id}, which is not there.")
        if phrase.keypoint is not None and phrase.keypoint not in _keypoints_of(loaded, phrase):
            raise SceneSetError(f"{place} refers to keypoint {phrase.keypoint!r}, which its category has not.")
        for annotation_id in phrase.annotation_ids:
            annotation = loaded.annotations.get(annotation_id)
            if annotation is None or annotation.image_id != prompt.image_id:
                raise SceneSetError(f"{place} refers to annotation {annotation_id}, which is not in its image.")
    if prompt.task == POSE_TASK:
        _check_pose(loaded, prompt, place)
    asked = prompt.drawing.category_ids if prompt.drawing else ()
    if prompt.edit:
        asked += tuple(id for id in (prompt.edit.gone, prompt.edit.new, prompt.edit.recoloured) if id is not None)
    for category_id in asked:
        if category_id not in loaded.categories:
            raise SceneSetError(f"{place} refers to category {category_id}, which is not there.")
    if isinstance(prompt.answer, ChoiceAnswer) and prompt.answer.value not in prompt.answer.options:
        raise SceneSetError(f"{place}: the right answer {prompt.answer.value!r} is not among its options.")


def _check_pose(loaded: SceneSet, prompt: Prompt, place: str) -> None:
    things = [phrase for phrase in prompt.phrases if phrase.keypoint is None]
    if prompt.image_id is None or len(things) != 1:
        raise SceneSetError(f"{place} of task {POSE_TASK!r} has to ask for one kind of figure in an image.")
    [thing] = things
    named = [(phrase.category_id, phrase.keypoint) for phrase in prompt.phrases if phrase is not thing]
    expected = {(thing.category_id, keypoint) for keypoint in _keypoints_of(loaded, thing)}
    if not expected or set(named) != expected or len(named) != len(expected):
        raise SceneSetError(f"{place} of task {POSE_TASK!r} has to ask for each keypoint of its category once.")
    if thing.category_id is not None and not loaded.categories[thing.category_id].sigmas:
        raise SceneSetError(f"{place}: category {thing.category_id} has no sigmas, which judging poses takes.")
    for annotation_id in thing.annotation_ids:
        if not loaded.annotations[annotation_id].keypoints:
            raise SceneSetError(f"{place}: annotation {annotation_id} has no keypoints.")


def _keypoints_of(loaded: SceneSet, phrase: PromptPhrase) -> tuple[str, ...]:
    return () if phrase.category_id is None else loaded.categories[phrase.category_id].keypoints
