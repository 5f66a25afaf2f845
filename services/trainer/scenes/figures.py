"""Draws articulated figures with exact keypoints: people and deer in random poses, builds and clothes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from services.trainer.scenes.canvas import PartCanvas, Pose
from services.trainer.scenes.deer import pose_deer
from services.trainer.scenes.people import pose_person
from services.trainer.scenes.scene import Category, Scene
from services.trainer.scenes.skeletons import DEER, PERSON, Skeleton

_POSES: dict[str, Callable[[np.random.Generator], Pose]] = {PERSON.key: pose_person, DEER.key: pose_deer}
# COCO's visibility flags.
UNLABELLED, HIDDEN, VISIBLE = 0, 1, 2


def _category(skeleton: Skeleton, emoji: str, measure_word: str) -> Category:
    names = skeleton.english, skeleton.english_plural, skeleton.chinese
    return Category(skeleton.key, "figures", emoji, *names, measure_word)


# By the skeleton's key. Figures are drawn, not set from emoji art, and stand apart from the sprites' categories.
FIGURE_CATEGORIES = {PERSON.key: _category(PERSON, "🧍", "个"), DEER.key: _category(DEER, "🦌", "头")}


def without_figures(scene: Scene) -> Scene:
    """The scene with sprites alone among its objects: what is said of figures is their pose and nothing else."""
    kept = tuple(thing for thing in scene.objects if thing.category.key not in FIGURE_CATEGORIES)
    return replace(scene, objects=kept)


@dataclass(frozen=True)
class Figure:
    """A drawn figure, cropped to its pixels."""

    skeleton: Skeleton
    # [height, width, 4] uint8 RGBA.
    pixels: NDArray[np.uint8]
    # [keypoints, 2] float32: x, y in pixels, in the skeleton's order.
    keypoints: NDArray[np.float32]
    # [keypoints] uint8: VISIBLE, or HIDDEN where another part of the body covers it.
    visibility: NDArray[np.uint8]


def draw_figure(skeleton: Skeleton, size: float, rng: np.random.Generator) -> Figure:
    """A figure whose longer side is about ``size`` pixels, in a random pose."""
    pose = _POSES[skeleton.key](rng)
    canvas = PartCanvas(pose.parts, np.radians(rng.normal(0, 7)), size)
    names = [name.key for name in skeleton.keypoints]
    places = canvas.places([pose.keypoints[name] for name in names])
    is_seen = [
        name not in pose.turned_away and owner in pose.bearers[name]
        for name, owner in zip(names, canvas.owners_at(places), strict=True)
    ]
    return Figure(skeleton, canvas.pixels, places, np.where(is_seen, VISIBLE, HIDDEN).astype(np.uint8))
