"""Trains the pose estimator alone: it takes over a detector, with its boxes, and learns where keypoints are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from services.detection.model import Detector
from services.pose.configuration import SkeletonConfig
from services.pose.model import PoseEstimator
from services.pose.structures import PoseTargets
from services.runtime.weights import load_weights
from services.trainer.calibration import calibrate, calibration_scenes
from services.trainer.detection_samples import image_targets, pad_targets
from services.trainer.detector_stage import noisy_links, share_targets
from services.trainer.keypoint_maps import KeypointMapHead, keypoint_map_term, keypoint_maps
from services.trainer.pose_evaluation import evaluate_pose
from services.trainer.pose_samples import (
    ImageKeypoints,
    choose_figure,
    choose_keypoints,
    image_keypoints,
    pad_keypoints,
)
from services.trainer.recipe import Recipe
from services.trainer.scenes.figures import FIGURE_CATEGORIES
from services.trainer.scenes.pose_names import FIGURE_NAMES, POSE_NAMES
from services.trainer.scenes.referring import members
from services.trainer.scenes.scene import Scene
from services.trainer.scenes.skeletons import SKELETONS
from services.trainer.stage import SceneStage, make_composer
from services.trainer.vocabularies import fill_vocabulary

_MAPS_WEIGHT = 1.0


@dataclass(frozen=True)
class _Sample:
    pixels: Tensor
    targets: tuple[Tensor, Tensor]
    keypoints: ImageKeypoints
    # See ``keypoint_maps``.
    maps: Tensor


@dataclass(frozen=True)
class _Batch:
    pixels: Tensor
    # [batch, groups] int64: rows of the vocabulary that are asked for, and which are real.
    rows: Tensor
    mask: Tensor
    targets: PoseTargets
    # [batch, cells, keypoints], see ``keypoint_maps``.
    maps: Tensor


class PoseStage(SceneStage):
    """See the module's docstring."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.pose = start_pose(recipe)
        # Not kept: a run that goes on soon has another.
        self.maps = KeypointMapHead(recipe.pose.width)
        self.model = nn.ModuleDict({"pose": self.pose, "maps": self.maps})

    def prepare(self, scene: Scene, seed: int) -> _Sample:
        """Ask for every kind of figure, present or not, and for keypoints in random order."""
        groups = [members(scene, FIGURE_CATEGORIES[skeleton.key]) for skeleton in SKELETONS]
        rows = choose_keypoints(scene, np.random.default_rng((seed, 5)))
        return _Sample(
            pixels=self.pose.prepare(scene.image).pixels,
            targets=image_targets(scene, groups),
            keypoints=image_keypoints(scene, groups, rows),
            maps=keypoint_maps(scene, self.pose.config.image_side),
        )

    def collate(self, samples: Sequence[_Sample]) -> _Batch:
        """See ``Stage``."""
        rows, mask, targets = pad_keypoints(
            [sample.keypoints for sample in samples], pad_targets([sample.targets for sample in samples])
        )
        figures = torch.arange(FIGURE_NAMES).expand(len(samples), -1)
        return _Batch(
            pixels=torch.stack([sample.pixels for sample in samples]),
            rows=torch.cat([figures, rows], dim=1),
            mask=torch.cat([torch.ones_like(figures, dtype=torch.bool), mask], dim=1),
            targets=targets,
            maps=torch.stack([sample.maps for sample in samples]),
        )

    def losses(self, batch: _Batch) -> dict[str, Tensor]:
        """See ``Stage``."""
        device = self.pose.logit_bias.device
        targets = share_targets(batch.targets, device)
        links = noisy_links(self.pose.vocabulary(batch.rows.to(device)))
        names_keypoint = (batch.rows >= FIGURE_NAMES).to(device)
        features = self.pose.encode(batch.pixels.to(device))
        outputs = self.pose(features, links, batch.mask.to(device), names_keypoint, targets)
        maps = keypoint_map_term(self.maps, outputs.grounding.memory, batch.maps.to(device), targets.normaliser)
        return {**self.pose.loss(outputs, targets), "maps": _MAPS_WEIGHT * maps}

    def evaluate(self, scenes: Sequence[Scene]) -> dict[str, float]:
        """AP over OKS, by kind of figure."""
        rows = self.pose.vocabulary.weight
        return evaluate_pose(self.pose, lambda _, names: rows[names], scenes)

    def export(self, folder: Path) -> None:
        """Weights as the service loads them, with scores that are probabilities of figures."""
        rows, composer = self.pose.vocabulary.weight, make_composer(self.recipe.data)
        scenes = calibration_scenes(composer.compose, self.recipe.calibration_scenes)
        calibrate(self.pose, lambda _, names: rows[names], scenes, choose_figure)
        self.pose.save(folder)


def start_pose(recipe: Recipe) -> PoseEstimator:
    """The estimator of an earlier run (``start_from.pose``), or one that takes over ``start_from.detector``.

    ``start_from.vocabulary`` gives it its rows ``[len(POSE_NAMES), link_width]``, see ``read_vocabulary``. An MLLM that
    learns to speak to this estimator can then learn at the same time.
    """
    config = recipe.pose.model_copy(
        update={"vocabulary": len(POSE_NAMES), "rows_beside": FIGURE_NAMES, "skeletons": known_skeletons()}
    )
    estimator = PoseEstimator(config)
    if "pose" in recipe.start_from:
        load_weights(estimator, recipe.start_from["pose"])
    elif "detector" in recipe.start_from:
        weights = Detector.load(recipe.start_from["detector"]).state_dict()
        # Its categories are others.
        del weights["vocabulary.weight"]
        estimator.load_state_dict(weights, strict=False)
    if "vocabulary" in recipe.start_from:
        fill_vocabulary(estimator.vocabulary, recipe.start_from["vocabulary"])
    return estimator


def known_skeletons() -> tuple[SkeletonConfig, ...]:
    """The scenes' skeletons in both languages, as a deployed estimator tells them."""
    return tuple(
        SkeletonConfig(
            names=tuple(dict.fromkeys(names)),
            keypoints=keypoints,
            bones=tuple((skeleton.index(first), skeleton.index(second)) for first, second in skeleton.bones),
        )
        for skeleton in SKELETONS
        for names, keypoints in (
            (
                (skeleton.english, skeleton.english_plural),
                tuple(keypoint.english for keypoint in skeleton.keypoints),
            ),
            ((skeleton.chinese,), tuple(keypoint.chinese for keypoint in skeleton.keypoints)),
        )
    )
