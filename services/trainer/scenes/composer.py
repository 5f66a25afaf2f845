"""Composes scenes: emoji art and articulated figures on textured grounds, with exact boxes, masks and keypoints.

Every scene is reproducible from its seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from services.trainer.scenes.categories import CATEGORIES
from services.trainer.scenes.figures import FIGURE_CATEGORIES, HIDDEN, UNLABELLED, Figure, draw_figure
from services.trainer.scenes.grounds import paint_ground, paint_some_named
from services.trainer.scenes.scene import Category, Scene, SceneObject
from services.trainer.scenes.skeletons import SKELETONS, Skeleton
from services.trainer.scenes.sprites import TRAINING_STYLES

# Training draws its seeds below this number; the fixed evaluation set starts there.
EVALUATION_SEED_START = 10_000_000_000
# A thing is drawn only where at least this share of every earlier thing stays visible, and so many pixels of its own.
LEAST_VISIBLE = 0.65
_LEAST_PIXELS = 60
_PLACEMENT_ATTEMPTS = 12
_MOST_OBJECTS = 7
# Sprites beside figures, at most: a scene with figures is about them.
_MOST_BESIDE_FIGURES = 4


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
    # Share of the scenes whose ground has a name.
    named_grounds: float = 0.0
    # People and deer in a scene, at most; 0: sprites alone. Every scene has one at least where there may be any.
    most_figures: int = 0
    # Length of a figure relative to the square root of the scene's area.
    smallest_figure: float = 0.35
    largest_figure: float = 0.85


@dataclass(frozen=True)
class Layer:
    """One thing as it is drawn."""

    category: Category
    # [height, width, 4] uint8 RGBA, cut to the scene.
    piece: NDArray[np.uint8]
    left: int
    top: int
    # What the piece was cut from, if that is a figure, and where its left upper corner would lie in the scene.
    figure: Figure | None = None
    corner: tuple[int, int] = (0, 0)

    @property
    def window(self) -> tuple[slice, slice]:
        """The rows and columns of the scene that the piece covers."""
        height, width = self.piece.shape[:2]
        return slice(self.top, self.top + height), slice(self.left, self.left + width)

    @cached_property
    def solid(self) -> NDArray[np.bool_]:
        """Pixels of the piece that hide what lies below."""
        return self.piece[..., 3] > 127


@dataclass(frozen=True)
class Light:
    """How bright a scene is in each colour, and the falloff across it, if there is one."""

    gain: NDArray[np.float32]
    falloff: NDArray[np.float32] | None

    def shine(self, canvas: NDArray[np.float32]) -> NDArray[np.uint8]:
        """The canvas ``[height, width, 3]`` in this light, as uint8."""
        lit = canvas * self.gain
        if self.falloff is not None:
            lit = lit * self.falloff
        return np.clip(lit, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Composition:
    """What a scene is made of; replace a part and render again, and all the rest stays as it was, pixel by pixel."""

    # [height, width, 3] float32 in 0..255.
    ground: NDArray[np.float32]
    # Bottom to top.
    layers: tuple[Layer, ...]
    light: Light
    style: str
    seed: int
    # Name and pixels [height, width] bool of each named ground, also below the layers.
    grounds: tuple[tuple[str, NDArray[np.bool_]], ...] = ()

    def render(self) -> Scene:
        """Draw it, with exact boxes and masks of what stays visible."""
        canvas, owner = self.ground.copy(), self.owners()
        for layer in self.layers:
            window = canvas[layer.window]
            window += (layer.piece[..., :3] - window) * (layer.piece[..., 3:].astype(np.float32) / 255)
        objects = tuple(_scene_object(layer, owner, index) for index, layer in enumerate(self.layers))
        grounds = tuple((name, pixels & (owner < 0)) for name, pixels in self.grounds)
        return Scene(self.light.shine(canvas), objects, self.style, self.seed, grounds)

    def owners(self) -> NDArray[np.int16]:
        """Which layer each pixel shows, ``[height, width]``; -1 for the ground."""
        owner = np.full(self.ground.shape[:2], -1, dtype=np.int16)
        for index, layer in enumerate(self.layers):
            owner[layer.window][layer.solid] = index
        return owner


class Composer:
    """Makes scenes from sprites; safe to share between threads since it only reads."""

    def __init__(self, sprites: Mapping[str, NDArray[np.uint8]], options: ComposerOptions | None = None) -> None:
        """``sprites`` maps a style to ``[categories, size, size, 4]`` uint8 RGBA, see ``sprites.load_sprites``."""
        self.options = options or ComposerOptions()
        self._art = {style: [Image.fromarray(sprite) for sprite in sprites[style]] for style in self.options.styles}

    def adapted(self, **changes: Any) -> Composer:
        """The same art composed with other options: ``adapted(most_figures=3)``; styles can't be added."""
        other = copy(self)
        other.options = replace(self.options, **changes)
        return other

    def compose(self, seed: int) -> Scene:
        """The scene of ``seed``; the same seed, options and sprites always give the same pixels."""
        return self.arrange(seed).render()

    def arrange(self, seed: int) -> Composition:
        """What the scene of ``seed`` is made of."""
        rng = np.random.default_rng(seed)
        options = self.options
        style = options.styles[rng.integers(len(options.styles))]
        longer = int(rng.integers(options.smallest_side, options.largest_side + 1))
        shorter = max(options.smallest_side, round(longer * rng.uniform(0.75, 1.0)))
        width, height = (longer, shorter) if rng.uniform() < 0.5 else (shorter, longer)

        # Without named grounds no chance is drawn for them: seeds keep the pixels that they have always had.
        if options.named_grounds and rng.uniform() < options.named_grounds:
            ground, grounds = paint_some_named(height, width, rng)
        else:
            ground, grounds = paint_ground(height, width, rng), ()
        # Which thing each pixel shows: its drawing order, or -1 for the ground.
        owner = np.full((height, width), -1, dtype=np.int16)
        layers: list[Layer] = []
        for thing in self._choose_things(rng):
            if isinstance(thing, Skeleton):
                layer = self._place_figure(thing, owner, layers, rng)
            else:
                layer = self.place(thing, style, owner, layers, rng)
            if layer is not None:
                owner[layer.window][layer.solid] = len(layers)
                layers.append(layer)
        return Composition(ground, tuple(layers), _light(height, width, rng), style, seed, grounds)

    def draw_sprite(self, category: int, style: str, size: float, rng: np.random.Generator) -> NDArray[np.uint8]:
        """A category's art, its longer side ``size`` pixels before it is turned and stretched: uint8 RGBA."""
        return _vary(self._art[style][category], size, rng)

    def upright_sprite(self, category: int, style: str, size: float) -> NDArray[np.uint8]:
        """A category's art as its artist drew it, its longer side ``size`` pixels: uint8 RGBA."""
        art = self._art[style][category]
        box = art.getbbox() or (0, 0, *art.size)
        scale = size / max(box[2] - box[0], box[3] - box[1])
        extent = max(8, round((box[2] - box[0]) * scale)), max(8, round((box[3] - box[1]) * scale))
        return np.asarray(art.resize(extent, Image.Resampling.BILINEAR, box=box, reducing_gap=2.0))

    def _choose_things(self, rng: np.random.Generator) -> list[int | Skeleton]:
        """Category indices and skeletons, one a thing to draw, in random order."""
        things: list[int | Skeleton] = [*self._choose_categories(rng)]
        if self.options.most_figures:
            count = int(rng.integers(1, self.options.most_figures + 1))
            figures = [SKELETONS[kind] for kind in rng.integers(len(SKELETONS), size=count)]
            things = [*things[: rng.integers(_MOST_BESIDE_FIGURES + 1)], *figures]
            things = [things[place] for place in rng.permutation(len(things))]
        return things

    def _choose_categories(self, rng: np.random.Generator) -> list[int]:
        """Category indices, one a thing to draw, in random order."""
        kinds = rng.choice(len(CATEGORIES), size=rng.integers(1, self.options.most_categories + 1), replace=False)
        chosen: list[int] = []
        for kind in kinds:
            count = int(rng.choice([1, 2, 3, 4, 5], p=[0.5, 0.22, 0.14, 0.08, 0.06]))
            chosen.extend([int(kind)] * count)
        rng.shuffle(chosen)
        return chosen[:_MOST_OBJECTS]

    def place(
        self,
        category: int,
        style: str,
        owner: NDArray[np.int16],
        layers: Sequence[Layer],
        rng: np.random.Generator,
    ) -> Layer | None:
        """A thing at a random place where it hides no other too much; None when no place is found.

        ``owner`` says which of ``layers`` each pixel of the scene shows.
        """
        options = self.options

        def draw(size: float) -> tuple[NDArray[np.uint8], None]:
            return self.draw_sprite(category, style, size, rng), None

        sizes = options.smallest_object, options.largest_object
        return _find_place(CATEGORIES[category], draw, sizes, owner, layers, rng)

    def _place_figure(
        self, skeleton: Skeleton, owner: NDArray[np.int16], layers: Sequence[Layer], rng: np.random.Generator
    ) -> Layer | None:
        """As ``place``, of a figure."""

        def draw(size: float) -> tuple[NDArray[np.uint8], Figure]:
            figure = draw_figure(skeleton, size, rng)
            return figure.pixels, figure

        sizes = self.options.smallest_figure, self.options.largest_figure
        return _find_place(FIGURE_CATEGORIES[skeleton.key], draw, sizes, owner, layers, rng)


def _find_place(
    category: Category,
    draw: Callable[[float], tuple[NDArray[np.uint8], Figure | None]],
    sizes: tuple[float, float],
    owner: NDArray[np.int16],
    layers: Sequence[Layer],
    rng: np.random.Generator,
) -> Layer | None:
    """A random place for what ``draw`` makes of a length in pixels; see ``Composer.place``.

    ``sizes`` are the smallest and largest length, relative to the square root of the scene's area.
    """
    height, width = owner.shape
    smallest, largest = sizes
    areas = [int(layer.solid.sum()) for layer in layers]
    for attempt in range(_PLACEMENT_ATTEMPTS):
        shrunk = largest * (1 - 0.04 * len(layers)) * (1 - 0.04 * attempt)
        relative = rng.uniform(smallest, max(shrunk, smallest + 0.02))
        pixels, figure = draw(relative * np.sqrt(height * width))
        own_height, own_width = pixels.shape[:2]
        # Up to an eighth may stick out of the scene.
        left = int(rng.integers(-own_width // 8, max(1, width - own_width + own_width // 8)))
        top = int(rng.integers(-own_height // 8, max(1, height - own_height + own_height // 8)))
        layer = cut_layer(category, pixels, left, top, owner.shape, figure)
        region = owner[layer.window]
        hidden = np.bincount(region[layer.solid & (region >= 0)], minlength=len(areas))
        if layer.solid.sum() >= _LEAST_PIXELS and all(
            (owner == index).sum() - hidden[index] >= LEAST_VISIBLE * areas[index] for index in np.flatnonzero(hidden)
        ):
            return layer
    return None


def cut_layer(
    category: Category,
    pixels: NDArray[np.uint8],
    left: int,
    top: int,
    scene: tuple[int, ...],
    figure: Figure | None = None,
) -> Layer:
    """The part of a sprite or figure that lies in a scene of this height and width."""
    height, width = scene
    x1, y1 = max(left, 0), max(top, 0)
    return Layer(category, pixels[y1 - top : height - top, x1 - left : width - left], x1, y1, figure, (left, top))


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


def _light(height: int, width: int, rng: np.random.Generator) -> Light:
    """Overall brightness, a colour cast and perhaps a soft falloff across the scene."""
    gain = rng.uniform(0.75, 1.1) * (1 + rng.normal(0, 0.04, 3)).astype(np.float32)
    falloff = None
    if rng.uniform() < 0.4:
        rows = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None] * np.float32(rng.uniform(-0.2, 0.2))
        columns = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None] * np.float32(rng.uniform(-0.2, 0.2))
        falloff = 1 + rows + columns
    return Light(gain.astype(np.float32), falloff)


def _scene_object(layer: Layer, owner: NDArray[np.int16], index: int) -> SceneObject:
    """What stays visible of layer ``index``, where ``owner`` says which layer each pixel shows."""
    mask = owner == index
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
    keypoints, visibility = None, None
    if layer.figure is not None:
        keypoints = layer.figure.keypoints + np.array(layer.corner, dtype=np.float32)
        visibility = _visibility(keypoints, layer.figure.visibility, owner, index)
    return SceneObject(layer.category, box, mask, int(mask.sum()), keypoints, visibility)


def _visibility(
    keypoints: NDArray[np.float32], drawn: NDArray[np.uint8], owner: NDArray[np.int16], index: int
) -> NDArray[np.uint8]:
    """Flags of a figure's keypoints in a scene, from those it was drawn with; only later layers hide it."""
    height, width = owner.shape
    places = np.floor(keypoints).astype(int)
    is_inside = ((places >= 0) & (places < (width, height))).all(axis=1)
    columns, rows = places.clip(0, (width - 1, height - 1)).T
    flags = np.where(owner[rows, columns] > index, HIDDEN, drawn)
    return np.where(is_inside, flags, UNLABELLED).astype(np.uint8)
