"""What a composed scene is: an image with complete ground truth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Category:
    """One kind of thing that scenes show."""

    # Stable identifier: the English singular in lower_snake_case, "hot_dog".
    key: str
    # "animals", "food" ...
    group: str
    # The emoji whose art is drawn.
    emoji: str
    english: str
    english_plural: str
    chinese: str
    # The Chinese measure word: 只, 辆 ...
    measure_word: str


@dataclass(frozen=True)
class SceneObject:
    """One thing in a scene, as far as it is visible."""

    category: Category
    # Tight box of the visible pixels: x1, y1, x2, y2 in pixels, x2 and y2 exclusive.
    box: tuple[float, float, float, float]
    # [height, width] bool: the visible pixels.
    mask: NDArray[np.bool_]
    # Visible pixels.
    area: int
    # Of a figure: [keypoints, 2] float32, x and y in pixels, in its skeleton's order.
    keypoints: NDArray[np.float32] | None = None
    # [keypoints] uint8 flags of COCO: 2 visible, 1 hidden by something, 0 outside the image.
    visibility: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Scene:
    """A composed image and everything in it."""

    # [height, width, 3] uint8 RGB.
    image: NDArray[np.uint8]
    # In drawing order: later ones lie on top.
    objects: tuple[SceneObject, ...]
    # "noto", "twemoji", "openmoji" (and for generalisation only: "fluent", "blobmoji").
    style: str
    # The seed that reproduces it.
    seed: int
    # Name (``grounds.NAMED_GROUNDS``) and visible pixels [height, width] bool of each ground that has a name.
    grounds: tuple[tuple[str, NDArray[np.bool_]], ...] = ()

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.image.shape[0])

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.image.shape[1])
