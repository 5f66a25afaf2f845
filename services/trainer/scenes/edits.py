"""Edit pairs: an instruction, a scene, and exactly what the scene should look like afterwards.

Only what the instruction names changes; every other pixel is the same before and after.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from services.trainer.scenes.categories import CATEGORY_INDEX
from services.trainer.scenes.choosing import absent
from services.trainer.scenes.composer import LEAST_VISIBLE, Composer, Composition, cut_layer
from services.trainer.scenes.edit_templates import INSTRUCTIONS
from services.trainer.scenes.grounds import NAMED_GROUNDS, NamedGround, paint_ground, paint_named_ground
from services.trainer.scenes.scene import Category, Scene
from services.trainer.scenes.templates import ENGLISH, LANGUAGES
from services.trainer.scenes.wording import name, pick, vary, with_article

# Saturation 0..255 that a recoloured thing has at least, so that white and grey ones take the colour as well.
_LEAST_SATURATION = 120
# Share of new grounds that have a name; the others have a colour.
_NAMED_GROUND = 0.5


@dataclass(frozen=True)
class NamedColour:
    """A colour that people name."""

    english: str
    chinese: str
    # 0..1
    hue: float


COLOURS = (
    NamedColour("red", "红色", 0.0),
    NamedColour("orange", "橙色", 0.08),
    NamedColour("yellow", "黄色", 0.15),
    NamedColour("green", "绿色", 0.34),
    NamedColour("blue", "蓝色", 0.6),
    NamedColour("purple", "紫色", 0.77),
    NamedColour("pink", "粉色", 0.9),
)


@dataclass(frozen=True)
class Edit:
    """What is asked, what there was, and what there should be."""

    # "recolour", "replace", "remove", "add" or "ground".
    kind: str
    # "en" or "zh".
    language: str
    instruction: str
    # The canonical words of the instruction, which the routed phrase carries: "make the dog blue".
    phrase: str
    before: Scene
    after: Scene
    # What the instruction is about; None for the ground.
    category: Category | None = None
    # What stands there afterwards; of "replace" only.
    replacement: Category | None = None
    # Of "recolour", and of "ground" unless that is a named one.
    colour: NamedColour | None = None
    # Of "ground" where it is a named one.
    ground: NamedGround | None = None

    @property
    def changed(self) -> NDArray[np.bool_]:
        """Pixels ``[height, width]`` that differ between before and after."""
        different: NDArray[np.bool_] = (self.before.image != self.after.image).any(axis=2)
        return different


def draw_edit(
    composer: Composer, composition: Composition, rng: np.random.Generator, language: str | None = None
) -> Edit:
    """A random edit that ``composition`` allows; ``composer`` made it. Without ``language`` that is drawn."""
    while True:
        edit = make_edit(pick(rng, EDIT_KINDS), composer, composition, rng, language)
        if edit is not None:
            return edit


def make_edit(
    kind: str, composer: Composer, composition: Composition, rng: np.random.Generator, language: str | None = None
) -> Edit | None:
    """An edit of ``kind``, or None when there is nothing to edit or no room for it. Raises KeyError: unknown kind."""
    before = composition.render()
    change = _KINDS[kind](composer, composition, before, rng)
    if change is None:
        return None
    language = language or pick(rng, LANGUAGES)
    wording = kind if change.ground is None else "named_ground"
    wordings, words = INSTRUCTIONS[wording][language], _words(change, language)
    instruction = pick(rng, wordings).format(**words)
    phrase = wordings[0].rstrip(".。").format(**words)
    return Edit(
        kind=kind,
        language=language,
        instruction=vary(instruction, language, rng),
        phrase=phrase[0].lower() + phrase[1:],
        before=before,
        after=change.after.render(),
        category=change.category,
        replacement=change.replacement,
        colour=change.colour,
        ground=change.ground,
    )


@dataclass(frozen=True)
class _Change:
    after: Composition
    category: Category | None = None
    # Things of the category that the change is about.
    count: int = 1
    replacement: Category | None = None
    colour: NamedColour | None = None
    ground: NamedGround | None = None


def _words(change: _Change, language: str) -> dict[str, str]:
    words = {}
    if change.category is not None:
        one = name(change.category, language)
        several = change.category.english_plural if change.count > 1 else one
        words["it"] = f"the {several}" if language == ENGLISH else one
        words["a"] = with_article(one) if language == ENGLISH else f"一{change.category.measure_word}{one}"
    if change.replacement is not None:
        other = name(change.replacement, language)
        if language != ENGLISH:
            words["other"] = other
        else:
            words["other"] = change.replacement.english_plural if change.count > 1 else with_article(other)
    if change.colour is not None:
        words["colour"] = change.colour.english if language == ENGLISH else change.colour.chinese
        words["a_colour"] = with_article(change.colour.english)
    if change.ground is not None:
        words["ground"] = change.ground.english if language == ENGLISH else change.ground.chinese
    return words


def _recolour(
    _composer: Composer, composition: Composition, _before: Scene, rng: np.random.Generator
) -> _Change | None:
    chosen = _choose(composition, rng)
    if chosen is None:
        return None
    category, places = chosen
    colour = pick(rng, COLOURS)
    layers = list(composition.layers)
    for place in places:
        layers[place] = replace(layers[place], piece=_in_colour(layers[place].piece, colour))
    return _Change(replace(composition, layers=tuple(layers)), category, len(places), colour=colour)


def _in_colour(piece: NDArray[np.uint8], colour: NamedColour) -> NDArray[np.uint8]:
    """Every pixel in the colour's hue, with its own brightness."""
    shades = np.array(Image.fromarray(piece[..., :3].copy()).convert("HSV"))
    shades[..., 0] = round(255 * colour.hue)
    shades[..., 1] = np.maximum(shades[..., 1], _LEAST_SATURATION)
    return np.dstack([np.asarray(Image.fromarray(shades, "HSV").convert("RGB")), piece[..., 3]])


def _remove(_composer: Composer, composition: Composition, _before: Scene, rng: np.random.Generator) -> _Change | None:
    chosen = _choose(composition, rng)
    if chosen is None:
        return None
    category, places = chosen
    layers = tuple(layer for number, layer in enumerate(composition.layers) if number not in places)
    return _Change(replace(composition, layers=layers), category, len(places))


def _replace(composer: Composer, composition: Composition, before: Scene, rng: np.random.Generator) -> _Change | None:
    chosen = _choose(composition, rng)
    if chosen is None:
        return None
    category, places = chosen
    replacement = absent(before, rng)
    layers = list(composition.layers)
    for place in places:
        old = layers[place]
        height, width = old.piece.shape[:2]
        sprite = composer.draw_sprite(CATEGORY_INDEX[replacement.key], composition.style, max(height, width), rng)
        left = old.left + (width - sprite.shape[1]) // 2
        top = old.top + (height - sprite.shape[0]) // 2
        layers[place] = cut_layer(replacement, sprite, left, top, composition.ground.shape[:2])
    after = replace(composition, layers=tuple(layers))
    return _Change(after, category, len(places), replacement) if _all_visible(after) else None


def _add(composer: Composer, composition: Composition, before: Scene, rng: np.random.Generator) -> _Change | None:
    category = absent(before, rng)
    owner = composition.owners()
    index = CATEGORY_INDEX[category.key]
    layer = composer.place(index, composition.style, owner, composition.layers, rng)
    if layer is None:
        return None
    return _Change(replace(composition, layers=(*composition.layers, layer)), category)


def _change_ground(_composer: Composer, composition: Composition, _before: Scene, rng: np.random.Generator) -> _Change:
    height, width = composition.ground.shape[:2]
    if rng.random() < _NAMED_GROUND:
        shown = {name for name, _ in composition.grounds}
        ground = pick(rng, [ground for ground in NAMED_GROUNDS if ground.key not in shown])
        painted = paint_named_ground(ground.key, height, width, rng)
        everywhere = np.ones((height, width), dtype=np.bool_)
        return _Change(replace(composition, ground=painted, grounds=((ground.key, everywhere),)), ground=ground)
    colour = pick(rng, COLOURS)
    painted = paint_ground(height, width, rng, colour.hue)
    return _Change(replace(composition, ground=painted, grounds=()), colour=colour)


def _choose(composition: Composition, rng: np.random.Generator) -> tuple[Category, list[int]] | None:
    """A category of the scene and the places of all its layers."""
    if not composition.layers:
        return None
    category = pick(rng, composition.layers).category
    return category, [place for place, layer in enumerate(composition.layers) if layer.category.key == category.key]


def _all_visible(composition: Composition) -> bool:
    owner = composition.owners()
    areas = [int(layer.solid.sum()) for layer in composition.layers]
    return all(area > 0 and (owner == place).sum() >= LEAST_VISIBLE * area for place, area in enumerate(areas))


_KINDS: dict[str, Callable[[Composer, Composition, Scene, np.random.Generator], _Change | None]] = {
    "recolour": _recolour,
    "replace": _replace,
    "remove": _remove,
    "add": _add,
    "ground": _change_ground,
}
EDIT_KINDS = tuple(_KINDS)
