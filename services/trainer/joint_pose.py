"""The pose estimator in joint training."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from services.mllm.conversation import RoutedPhrase
from services.pose.structures import PoseTargets
from services.runtime.decoder import pad_links
from services.trainer.calibration import calibrate, calibration_scenes
from services.trainer.detection_samples import image_targets, pad_targets
from services.trainer.detector_stage import share_targets
from services.trainer.joint_decoder import JointDecoder, LinkCategories, LinkPhrases
from services.trainer.pose_evaluation import evaluate_pose
from services.trainer.pose_samples import ImageKeypoints, choose_figure, image_keypoints, pad_keypoints
from services.trainer.pose_stage import start_pose
from services.trainer.recipe import Recipe
from services.trainer.scenes.answers import FIGURES, KEYPOINTS
from services.trainer.scenes.composer import Composer
from services.trainer.scenes.conversation import Conversation, routed_phrases
from services.trainer.scenes.conversations import draw_conversation
from services.trainer.scenes.figures import FIGURE_CATEGORIES
from services.trainer.scenes.pose_names import FIGURE_NAMES, POSE_NAMES, figure_row
from services.trainer.scenes.referring import members
from services.trainer.scenes.scene import Scene
from services.trainer.scenes.skeletons import SKELETONS
from services.trainer.vocabularies import Vocabulary, pose_row

_TASKS = {"pose": 0.3, "pose_places": 0.35, "pose_fast": 0.35}
# Figures in a scene, at most, where the recipe says nothing else.
_MOST_FIGURES = 3
_CATEGORY_OF_ROW = {figure_row(skeleton.key): FIGURE_CATEGORIES[skeleton.key] for skeleton in SKELETONS}


@dataclass(frozen=True)
class _Sample:
    pixels: Tensor
    # [phrases] bool: which phrases of the conversation name a keypoint; the others name kinds of figures.
    names_keypoint: Tensor
    # Rows of the vocabulary of the groups that follow those of the conversation: kinds of figures.
    beside: list[int]
    targets: tuple[Tensor, Tensor]
    keypoints: ImageKeypoints


@dataclass(frozen=True)
class _Batch:
    pixels: Tensor
    # [batch, groups] bool, also of the groups beside the conversation's.
    names_keypoint: Tensor
    beside: list[list[int]]
    targets: PoseTargets


class JointPose(JointDecoder):
    """See ``JointDecoder``."""

    name = "pose"

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.pose = start_pose(recipe)
        # Links have learned these rows; they may not move.
        self.pose.vocabulary.requires_grad_(False)
        self.parts = {"pose": self.pose}
        self.vocabulary = Vocabulary(self.pose.vocabulary.weight, pose_row)

    def compose(self, composer: Composer, seed: int) -> Scene:
        """See ``JointDecoder``; these scenes show figures."""
        return composer.adapted(most_figures=composer.options.most_figures or _MOST_FIGURES).compose(seed)

    def converse(self, scene: Scene, rng: np.random.Generator) -> Conversation:
        """See ``JointDecoder``; what is asked for may not be there."""
        return draw_conversation(scene, rng, _TASKS)

    def prepare(self, scene: Scene, conversation: Conversation) -> _Sample:
        """Ask for the kinds of figures and the keypoints of the conversation and, beside it, for all other kinds."""
        phrases = routed_phrases(conversation)
        rows = [pose_row(phrase.phrase) for phrase in phrases]
        names_keypoint = [phrase.route == KEYPOINTS for phrase in phrases]
        asked = [row for row, is_keypoint in zip(rows, names_keypoint, strict=True) if not is_keypoint]
        beside = [row for row in range(FIGURE_NAMES) if row not in asked]
        # Conversations are worded without a look at the scene, and say nothing of what their phrases mean there.
        groups = [members(scene, _CATEGORY_OF_ROW[row]) for row in (*asked, *beside)]
        keypoints = [row for row, is_keypoint in zip(rows, names_keypoint, strict=True) if is_keypoint]
        return _Sample(
            pixels=self.pose.prepare(scene.image).pixels,
            names_keypoint=torch.tensor(names_keypoint),
            beside=beside,
            targets=image_targets(scene, groups),
            keypoints=image_keypoints(scene, groups, keypoints),
        )

    def collate(self, samples: Sequence[_Sample]) -> _Batch:
        """See ``JointDecoder``."""
        # Which rows the keypoints are is for the links to say.
        _, _, targets = pad_keypoints(
            [sample.keypoints for sample in samples], pad_targets([sample.targets for sample in samples])
        )
        names_keypoint = [
            torch.cat([sample.names_keypoint, torch.zeros(len(sample.beside), dtype=torch.bool)]) for sample in samples
        ]
        return _Batch(
            pixels=torch.stack([sample.pixels for sample in samples]),
            names_keypoint=pad_sequence(names_keypoint, batch_first=True),
            beside=[sample.beside for sample in samples],
            targets=targets,
        )

    def losses(self, links: Sequence[Tensor], batch: _Batch) -> dict[str, Tensor]:
        """See ``JointDecoder``."""
        rows = self.pose.vocabulary.weight
        asked = [torch.cat([link, rows[beside]]) for link, beside in zip(links, batch.beside, strict=True)]
        padded, link_mask = pad_links(asked)
        targets = share_targets(batch.targets, rows.device)
        features = self.pose.encode(batch.pixels.to(rows.device))
        outputs = self.pose(features, padded, link_mask, batch.names_keypoint.to(rows.device), targets)
        return self.pose.loss(outputs, targets)

    def evaluate(self, link: LinkPhrases, scenes: Sequence[Scene]) -> dict[str, float]:
        """AP over OKS, by kind of figure."""
        return evaluate_pose(self.pose, by_name(link), scenes)

    def export(self, folder: Path, link: LinkPhrases, composer: Composer) -> None:
        """See ``JointDecoder``."""
        scenes = calibration_scenes(partial(self.compose, composer), self.recipe.calibration_scenes)
        calibrate(self.pose, by_name(link), scenes, choose_figure)
        deepcopy(self.pose).half().save(folder)


def by_name(link: LinkPhrases) -> LinkCategories:
    """Links of kinds of figures and of keypoints, in English and Chinese by turns."""

    def links_of(scene: Scene, rows: list[int]) -> Tensor:
        names = [POSE_NAMES[row].english if scene.seed % 2 else POSE_NAMES[row].chinese for row in rows]
        routes = [FIGURES if row < FIGURE_NAMES else KEYPOINTS for row in rows]
        return link(scene, [RoutedPhrase(route, name) for route, name in zip(routes, names, strict=True)])

    return links_of
