"""A scene set that grows: images, annotations and prompts are added, and what was there stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from services.evaluation.scenes_making import annotations_of
from services.evaluation.scenes_set import (
    IMAGES_FOLDER,
    Prompt,
    SceneSet,
    SetAnnotation,
    SetCategory,
    SetImage,
    save_scene_set,
)
from services.trainer.scenes.scene import Scene

LANGUAGES = ("en", "zh")
# How often chance may fail to give what is wanted of a scene.
ATTEMPTS = 40
# Textures of grounds take much room; at 90 the error is still below what the networks see.
_WEBP_QUALITY = 90


class SetExtension:
    """What is added to a set. Images are written at once, the rest by ``save``."""

    def __init__(self, scene_set: SceneSet) -> None:
        self._scene_set = scene_set
        self._images: list[SetImage] = []
        self._annotations: list[SetAnnotation] = []
        self._categories: dict[int, SetCategory] = {}
        self._prompts: list[Prompt] = []
        self._next_image = 1 + max(scene_set.images, default=0)
        self._next_annotation = 1 + max(scene_set.annotations, default=0)
        self._next_prompt = 1 + max((prompt.id for prompt in scene_set.prompts), default=0)

    def name_categories(self, categories: Iterable[SetCategory]) -> None:
        """List categories that the set may not have yet."""
        self._categories.update((category.id, category) for category in categories)

    def add_scene(self, scene: Scene) -> tuple[int, int]:
        """Write the image and list it and its things; returns its id and that of its first annotation."""
        image = SetImage(
            id=self._next_image,
            file_name=f"{self._next_image:04}.webp",
            width=scene.width,
            height=scene.height,
            style=scene.style,
            seed=scene.seed,
        )
        file = self._scene_set.folder / IMAGES_FOLDER / image.file_name
        Image.fromarray(scene.image).save(file, quality=_WEBP_QUALITY)
        first = self._next_annotation
        entries = list(annotations_of(scene, image.id, first))
        self._images.append(image)
        self._annotations.extend(entries)
        self._next_image += 1
        self._next_annotation += len(entries)
        return image.id, first

    def ask(self, language: str, task: str, text: str, **fields: Any) -> None:
        """One more prompt; ``fields`` are the other ones of ``Prompt``."""
        self._prompts.append(Prompt(id=self._next_prompt, language=language, task=task, text=text, **fields))
        self._next_prompt += 1

    def save(self) -> SceneSet:
        """The set with all that was added, after its files are written."""
        before = self._scene_set
        extended = SceneSet(
            before.folder,
            before.info,
            before.images | {image.id: image for image in self._images},
            before.annotations | {annotation.id: annotation for annotation in self._annotations},
            before.categories | self._categories,
            (*before.prompts, *self._prompts),
        )
        save_scene_set(extended)
        return extended


@dataclass(frozen=True)
class Part:
    """Scenes and prompts for some tasks, which a set has or lacks as a whole."""

    # A set that asks any of these has the part.
    tasks: tuple[str, ...]
    add: Callable[[SetExtension], None]


def extend_scene_set(scene_set: SceneSet, parts: Sequence[Part]) -> SceneSet:
    """Add those of ``parts`` that the set lacks, and write the set's files; the same parts add the same."""
    asked = {prompt.task for prompt in scene_set.prompts}
    extension = SetExtension(scene_set)
    for part in parts:
        if asked.isdisjoint(part.tasks):
            part.add(extension)
    return extension.save()
