"""Pose targets of scenes, as the pose estimator's losses want them, and what is asked for in training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.grounding.structures import GroundingTargets
from services.pose.structures import PoseTargets
from services.trainer.detection_samples import meant_objects
from services.trainer.scenes.figures import FIGURE_CATEGORIES, UNLABELLED, VISIBLE
from services.trainer.scenes.pose_names import POSE_NAMES, figure_row, keypoint_rows
from services.trainer.scenes.scene import Category, Scene, SceneObject
from services.trainer.scenes.skeletons import SKELETONS

_ROWS = {skeleton.key: keypoint_rows(skeleton) for skeleton in SKELETONS}
_SIGMAS = torch.tensor([name.sigma or 1.0 for name in POSE_NAMES])
_ALL_SKELETONS = 0.2
_ALL_KEYPOINTS = 0.5


@dataclass(frozen=True)
class ImageKeypoints:
    """The keypoints of one image's things, in the order in which they are asked for."""

    # [keypoints] int64: their rows in the vocabulary.
    rows: Tensor
    # [objects, keypoints, 2] x, y relative to the padded square.
    places: Tensor
    # [objects, keypoints] uint8 flags of COCO.
    visibility: Tensor
    # [objects] relative to the padded square.
    areas: Tensor


def choose_figure(_scene: Scene, rng: np.random.Generator) -> tuple[int, Category]:
    """A kind of figure, as its row and as its category; of those that scenes show, about every third is not there."""
    skeleton = SKELETONS[rng.integers(len(SKELETONS))]
    return figure_row(skeleton.key), FIGURE_CATEGORIES[skeleton.key]


def choose_keypoints(scene: Scene, rng: np.random.Generator) -> list[int]:
    """Rows of keypoints to ask for, shuffled: half of the time all of a skeleton, or of all, else some of them.

    As in VisionLLM v2, so that no keypoint relies on its place in the request or on its company.
    """
    present = [skeleton for skeleton in SKELETONS if any(thing.category.key == skeleton.key for thing in scene.objects)]
    asked = SKELETONS if not present or rng.random() < _ALL_SKELETONS else [present[rng.integers(len(present))]]
    rows = rng.permutation(sorted({row for skeleton in asked for row in _ROWS[skeleton.key]})).tolist()
    if rng.random() >= _ALL_KEYPOINTS:
        rows = rows[: rng.integers(1, len(rows) + 1)]
    return rows


def image_keypoints(scene: Scene, groups: Sequence[Sequence[int]], rows: Sequence[int]) -> ImageKeypoints:
    """Keypoints ``rows`` of the objects of ``image_targets``; those that a thing has not count as unlabelled."""
    things = [scene.objects[index] for index in meant_objects(groups)]
    places = np.zeros((len(things), len(rows), 2), dtype=np.float32)
    visibility = np.full((len(things), len(rows)), UNLABELLED, dtype=np.uint8)
    for index, thing in enumerate(things):
        known, flags = _keypoints(thing)
        own = {row: place for place, row in enumerate(_ROWS[thing.category.key])}
        for column, row in enumerate(rows):
            if row in own:
                places[index, column] = known[own[row]]
                visibility[index, column] = flags[own[row]]
    side = max(scene.height, scene.width)
    return ImageKeypoints(
        rows=torch.tensor(rows),
        places=torch.from_numpy(places / side),
        visibility=torch.from_numpy(visibility),
        areas=torch.tensor([thing.area / side**2 for thing in things]),
    )


def pad_keypoints(images: Sequence[ImageKeypoints], targets: GroundingTargets) -> tuple[Tensor, Tensor, PoseTargets]:
    """Rows ``[batch, keypoints]`` int64, which of them are real, and ``targets`` with keypoints."""
    batch, objects = targets.mask.shape
    keypoints = max(len(image.rows) for image in images)
    rows = torch.zeros(batch, keypoints, dtype=torch.long)
    mask = torch.zeros(batch, keypoints, dtype=torch.bool)
    places = torch.zeros(batch, objects, keypoints, 2)
    visibility = torch.full((batch, objects, keypoints), UNLABELLED, dtype=torch.uint8)
    areas = torch.ones(batch, objects)
    for place, image in enumerate(images):
        count, asked = image.visibility.shape
        rows[place, :asked] = image.rows
        mask[place, :asked] = True
        places[place, :count, :asked] = image.places
        visibility[place, :count, :asked] = image.visibility
        areas[place, :count] = image.areas
    return (
        rows,
        mask,
        PoseTargets(
            boxes=targets.boxes,
            groups=targets.groups,
            mask=targets.mask,
            normaliser=targets.normaliser,
            keypoints=places,
            labelled=visibility != UNLABELLED,
            visible=visibility == VISIBLE,
            areas=areas,
            sigmas=_SIGMAS[rows],
        ),
    )


def _keypoints(figure: SceneObject) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    if figure.keypoints is None or figure.visibility is None:
        raise ValueError(f"A {figure.category.english} has no keypoints; ask for figures.")
    return figure.keypoints, figure.visibility
