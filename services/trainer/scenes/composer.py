"""Composes scenes: emoji art on textured grounds, with exact boxes and masks, reproducible from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from services.trainer.scenes.categories import CATEGORIES
from services.trainer.scenes.grounds import paint_ground
from services.trainer.scenes.scene import Scene, SceneObject
from services.trainer.scenes.sprites import TRAINING_STYLES

# Training draws its seeds below this number; the fixed evaluation set starts there.
EVALUATION_SEED_START = 10_000_000_000
# A thing is drawn only where at least this share of every earlier thing stays visible.
_LEAST_VISIBLE = 0.65
_PLACEMENT_ATTEMPTS = 12
_MOST_OBJECTS = 7


@dataclass(frozen=True)
class ComposerOptions:
    """How scenes look."""

    styles: tuple[str, ...] = TRAINING_STYLES
    # The longer side in pixels; the shorter is 0.75 to 1 of it, and never below the smallest.
    smallest_side: int = 128
    largest_side: int = 320
    # Size of a thing relative to the square root of the scene's area.
    smallest_object: float = 0.15
    largest_object: float = 0.48
    # Categories in a scene, at most.
    most_categories: int = 4


class Composer:
    """Makes scenes from sprites; safe to share between threads since it only reads."""

    def __init__(self, sprites: Mapping[str, NDArray[np.uint8]], options: ComposerOptions | None = None) -> None:
        """``sprites`` maps a style to ``[categories, size, size, 4]`` uint8 RGBA, see ``sprites.load_sprites``."""
        self.options = options or ComposerOptions()
        self._art = {style: [Image.fromarray(sprite) for sprite in sprites[style]] for style in self.options.styles}

    def compose(self, seed: int) -> Scene:
        """The scene of ``seed``; the same seed, options and sprites always give the same pixels."""
        rng = np.random.default_rng(seed)
        options = self.options
        style = options.styles[rng.integers(len(options.styles))]
        longer = int(rng.integers(options.smallest_side, options.largest_side + 1))
        shorter = max(options.smallest_side, round(longer * rng.uniform(0.75, 1.0)))
        width, height = (longer, shorter) if rng.uniform() < 0.5 else (shorter, longer)

        canvas = paint_ground(height, width, rng)
        # Which thing each pixel shows: its drawing order, or -1 for the ground.
        owner = np.full((height, width), -1, dtype=np.int16)
        drawn: list[int] = []
        areas: list[int] = []
        for category in self._choose_categories(rng):
            self._place(self._art[style][category], canvas, owner, areas, rng)
            if len(areas) > len(drawn):
                drawn.append(category)
        image = _light(canvas, rng)
        objects = tuple(_scene_object(category, owner == index) for index, category in enumerate(drawn))
        return Scene(image=image, objects=objects, style=style, seed=seed)

    def _choose_categories(self, rng: np.random.Generator) -> list[int]:
        """Category indices, one a thing to draw, in random order."""
        kinds = rng.choice(len(CATEGORIES), size=rng.integers(1, self.options.most_categories + 1), replace=False)
        chosen: list[int] = []
        for kind in kinds:
            count = int(rng.choice([1, 2, 3, 4, 5], p=[0.5, 0.22, 0.14, 0.08, 0.06]))
            chosen.extend([int(kind)] * count)
        rng.shuffle(chosen)
        return chosen[:_MOST_OBJECTS]

    def _place(
        self,
        art: Image.Image,
        canvas: NDArray[np.float32],
        owner: NDArray[np.int16],
        areas: list[int],
        rng: np.random.Generator,
    ) -> None:
        """Draw one thing where it hides no other too much; draws nothing when no place is found."""
        height, width = owner.shape
        options = self.options
        for attempt in range(_PLACEMENT_ATTEMPTS):
            largest = options.largest_object * (1 - 0.04 * len(areas)) * (1 - 0.04 * attempt)
            relative = rng.uniform(options.smallest_object, max(largest, options.smallest_object + 0.02))
            sprite = _vary(art, relative * np.sqrt(height * width), rng)
            sprite_height, sprite_width = sprite.shape[:2]
            # Up to an eighth may stick out of the scene.
            left = int(rng.integers(-sprite_width // 8, max(1, width - sprite_width + sprite_width // 8)))
            top = int(rng.integers(-sprite_height // 8, max(1, height - sprite_height + sprite_height // 8)))
            x1, y1, x2, y2 = (
                max(left, 0),
                max(top, 0),
                min(left + sprite_width, width),
                min(top + sprite_height, height),
            )
            piece = sprite[y1 - top : y2 - top, x1 - left : x2 - left]
            solid = piece[..., 3] > 127
            region = owner[y1:y2, x1:x2]
            hidden = np.bincount(region[solid & (region >= 0)], minlength=len(areas))
            visible = [(owner == index).sum() - hidden[index] for index in np.flatnonzero(hidden)]
            if solid.sum() < 60 or any(
                left_over < _LEAST_VISIBLE * areas[index]
                for index, left_over in zip(np.flatnonzero(hidden), visible, strict=True)
            ):
                continue
            alpha = piece[..., 3:].astype(np.float32) / 255
            window = canvas[y1:y2, x1:x2]
            window += (piece[..., :3] - window) * alpha
            region[solid] = len(areas)
            areas.append(int(solid.sum()))
            return


def _vary(art: Image.Image, size: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The sprite at ``size`` pixels, perhaps mirrored, turned, stretched, brighter or paler, cropped to its pixels."""
    if rng.uniform() < 0.5:
        art = art.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    stretch = np.exp(rng.normal(0, 0.06))
    box = art.getbbox() or (0, 0, *art.size)
    scale = size / max(box[2] - box[0], box[3] - box[1])
    resized = art.resize(
        (max(8, round((box[2] - box[0]) * scale * stretch)), max(8, round((box[3] - box[1]) * scale / stretch))),
        Image.Resampling.BILINEAR,
        box=box,
        reducing_gap=2.0,
    )
    angle = rng.normal(0, 14) if rng.uniform() < 0.85 else rng.uniform(-60, 60)
    turned = resized.rotate(angle, Image.Resampling.BILINEAR, expand=True)
    turned = turned.crop(turned.getchannel("A").getbbox() or (0, 0, *turned.size))
    alpha = turned.getchannel("A")
    colours = ImageEnhance.Brightness(turned.convert("RGB")).enhance(rng.uniform(0.8, 1.15))
    colours = ImageEnhance.Color(colours).enhance(rng.uniform(0.7, 1.2))
    return np.dstack([np.asarray(colours), np.asarray(alpha)])


def _light(canvas: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Overall brightness, a colour cast and a soft falloff across the scene: ``[height, width, 3]`` uint8."""
    gain = rng.uniform(0.75, 1.1) * (1 + rng.normal(0, 0.04, 3)).astype(np.float32)
    lit = canvas * gain.astype(np.float32)
    if rng.uniform() < 0.4:
        height, width = canvas.shape[:2]
        rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None] * np.float32(rng.uniform(-0.2, 0.2))
        columns = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None] * np.float32(rng.uniform(-0.2, 0.2))
        lit = lit * (1 + rows + columns)
    return np.clip(lit, 0, 255).astype(np.uint8)


def _scene_object(category: int, mask: NDArray[np.bool_]) -> SceneObject:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    return SceneObject(category=CATEGORIES[category], box=box, mask=mask, area=int(mask.sum()))
