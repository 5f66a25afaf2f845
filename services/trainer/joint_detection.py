"""The detector in joint training."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from services.grounding.structures import GroundingTargets
from services.mllm.conversation import RoutedPhrase
from services.runtime.decoder import pad_links
from services.trainer.calibration import calibrate, calibration_scenes
from services.trainer.dense_supervision import category_map, detector_cells, detector_dense_term
from services.trainer.detection_evaluation import evaluate_detector
from services.trainer.detection_samples import image_targets, pad_targets
from services.trainer.detector_stage import share_targets, start_detector
from services.trainer.joint_decoder import JointDecoder, LinkCategories, LinkPhrases
from services.trainer.recipe import Recipe
from services.trainer.referring_rows import Meaning, asked_links, choose_referred
from services.trainer.scenes.answers import BOXES
from services.trainer.scenes.categories import CATEGORIES, CATEGORY_INDEX
from services.trainer.scenes.composer import Composer
from services.trainer.scenes.conversation import Conversation, expected_phrases, routed_phrases
from services.trainer.scenes.conversations import draw_conversation
from services.trainer.scenes.referring import members
from services.trainer.scenes.scene import Scene
from services.trainer.stage import save_parts
from services.trainer.vocabularies import Vocabulary, category_of

# Tasks whose answers route phrases, and how often the detector's sample is taken from each.
_TASKS = {
    "fast_path": 0.18,
    "detect": 0.1,
    "detect_several": 0.14,
    # A single category that may be absent is the hardest to judge: nothing beside it could be meant instead.
    "detect_absent": 0.1,
    "refer": 0.2,
    "count": 0.1,
    "presence": 0.14,
    "compare": 0.05,
    "open": 0.05,
}
_DENSE_WEIGHT = 0.5


@dataclass(frozen=True)
class DetectionSample:
    """What the detector learns from a scene."""

    pixels: Tensor
    # Category index of each group that follows those of the conversation, and the expressions that follow these.
    beside: list[int]
    referring: tuple[Meaning, ...]
    cells: tuple[Tensor, ...]
    targets: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Batch:
    pixels: Tensor
    beside: list[list[int]]
    referring: list[tuple[Meaning, ...]]
    cells: tuple[Tensor, ...]
    targets: GroundingTargets


class JointDetection(JointDecoder):
    """See ``JointDecoder``."""

    name = "detection"

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.detector, self.dense = start_detector(recipe)
        # Links have learned these rows; they may not move.
        self.detector.vocabulary.requires_grad_(False)
        self.parts = {"detector": self.detector, "detector_dense": self.dense}
        self.vocabulary = Vocabulary(self.detector.vocabulary.weight, category_of)

    def converse(self, scene: Scene, rng: np.random.Generator) -> Conversation:
        """See ``JointDecoder``."""
        return converse(scene, rng, _TASKS, BOXES)

    def prepare(self, scene: Scene, conversation: Conversation) -> DetectionSample:
        """Ask for what the conversation routes and, beside it, for all that this does not mean."""
        others = categories_beside(scene, conversation)
        referred = choose_referred(scene, others, np.random.default_rng(scene.seed))
        beside = [category for category in others if category not in referred.categories]
        asked = (members(scene, CATEGORIES[category]) for category in beside)
        groups = [*conversation.targets, *asked, *referred.targets]
        return DetectionSample(
            pixels=self.detector.prepare(scene.image).pixels,
            beside=beside,
            referring=referred.meanings,
            cells=detector_cells(category_map(scene), self.recipe.detector.image_side),
            targets=image_targets(scene, groups),
        )

    def collate(self, samples: Sequence[DetectionSample]) -> _Batch:
        """See ``JointDecoder``."""
        return _Batch(
            pixels=torch.stack([sample.pixels for sample in samples]),
            beside=[sample.beside for sample in samples],
            referring=[sample.referring for sample in samples],
            cells=tuple(torch.stack(level) for level in zip(*(sample.cells for sample in samples), strict=True)),
            targets=pad_targets([sample.targets for sample in samples]),
        )

    def losses(self, links: Sequence[Tensor], batch: _Batch) -> dict[str, Tensor]:
        """See ``JointDecoder``."""
        rows = self.detector.vocabulary.weight
        padded, link_mask = pad_links(asked_links(links, rows, batch.beside, batch.referring))
        targets = share_targets(batch.targets, rows.device)
        features = self.detector.encode(batch.pixels.to(rows.device))
        outputs = self.detector(features, padded, link_mask, targets)
        dense = detector_dense_term(self.dense, features, batch.cells)
        return {**self.detector.loss(outputs, targets), "detector_dense": _DENSE_WEIGHT * dense}

    def evaluate(self, link: LinkPhrases, scenes: Sequence[Scene]) -> dict[str, float]:
        """AP of the present categories and the share of right presence answers."""
        return evaluate_detector(self.detector, by_category(link, BOXES), scenes)

    def export(self, folder: Path, link: LinkPhrases, composer: Composer) -> None:
        """See ``JointDecoder``; half precision halves the files and costs no accuracy, services compute in float32."""
        scenes = calibration_scenes(partial(self.compose, composer), self.recipe.calibration_scenes)
        calibrate(self.detector, by_category(link, BOXES), scenes)
        deepcopy(self.detector).half().save(folder)
        save_parts(folder, dense=self.dense)


def converse(scene: Scene, rng: np.random.Generator, tasks: dict[str, float], route: str) -> Conversation:
    """A conversation of one of ``tasks`` that routes phrases, all of them to ``route``."""
    while True:
        conversation = draw_conversation(scene, rng, tasks)
        if conversation.targets and all(phrase.route == route for phrase in routed_phrases(conversation)):
            return conversation


def categories_beside(scene: Scene, conversation: Conversation) -> list[int]:
    """Categories that stand beside the conversation's links: all that these do not mean."""
    named = {category_of(phrase) for phrase in expected_phrases(conversation)}
    meant = {
        CATEGORY_INDEX[scene.objects[index].category.key]
        for group in conversation.targets
        for index in group
        if index < len(scene.objects)
    }
    return [category for category in range(len(CATEGORIES)) if category not in named | meant]


def by_category(link: LinkPhrases, route: str) -> LinkCategories:
    """Links of category names, in English and Chinese by turns."""

    def links_of(scene: Scene, categories: list[int]) -> Tensor:
        names = [CATEGORIES[c].english if scene.seed % 2 else CATEGORIES[c].chinese for c in categories]
        return link(scene, [RoutedPhrase(route, name) for name in names])

    return links_of
