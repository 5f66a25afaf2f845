"""What the diffusion tool is asked to draw and to edit, said in a fixed vocabulary of concepts.

A request is a row of eight slots, each one concept. The vocabulary's rows stand in place of the MLLM's link embeddings
while the tool learns alone, one row a link; the MLLM then learns to say the same rows.
"""

from __future__ import annotations

import colorsys
from dataclasses import astuple, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from services.diffusion.placing import THING_SHARE
from services.trainer.scenes.categories import CATEGORIES, CATEGORY_INDEX
from services.trainer.scenes.composer import Composer, ComposerOptions, Composition, Layer, Light, cut_layer
from services.trainer.scenes.edits import COLOURS, EDIT_KINDS, Edit, NamedColour, draw_edit
from services.trainer.scenes.grounds import GROUND_NAMES, paint_named_ground
from services.trainer.scenes.scene import Category, Scene
from services.trainer.scenes.sprites import TRAINING_STYLES
from services.trainer.scenes.wording import pick

NOTHING = "nothing"
DRAW = "draw"
OPERATIONS = (DRAW, *EDIT_KINDS)
COUNTS = ("one", "two", "three")
RELATIONS = ("beside", "above")
COLOUR_NAMES = tuple(colour.english for colour in COLOURS)

# In a fixed order: a concept's row in the tool's vocabulary is its place here.
CONCEPTS: tuple[str, ...] = (
    NOTHING,
    *OPERATIONS,
    *COUNTS,
    *(category.key for category in CATEGORIES),
    *COLOUR_NAMES,
    *RELATIONS,
    *GROUND_NAMES,
)
CONCEPT_INDEX: dict[str, int] = {concept: index for index, concept in enumerate(CONCEPTS)}

# One style of art, upright, on a calm ground: what varies without being asked for is learnt at the cost of what is.
_STYLE = "noto"
_DRAWING_SIDE = 128
# Where the middles of the things are by their relation and number: shares of the image's width and height. They are
# whole latents apart, so that a thing has the same latents at each.
_PLACES = {
    (NOTHING, 1): ((0.5, 0.5),),
    (NOTHING, 2): ((0.25, 0.5), (0.75, 0.5)),
    (NOTHING, 3): ((0.25, 0.25), (0.75, 0.25), (0.5, 0.75)),
    ("beside", 2): ((0.25, 0.5), (0.75, 0.5)),
    ("above", 2): ((0.5, 0.25), (0.5, 0.75)),
}
# Shares of the drawings: one thing, several of a kind; the rest shows two kinds in a relation.
_ONE, _SEVERAL = 0.45, 0.2
# Shares of the drawings whose ground is asked for: by a colour, by a name.
_COLOURED_GROUND, _NAMED_GROUND = 0.25, 0.25
# Behind a thing that an edit puts into an image, of 0..255.
_GREY = 160.0
# Most things in a scene that is edited.
_MOST_EDITED = 3

# Scenes that are edited: a few things, large enough to be seen at 128 px.
DRAWING_OPTIONS = ComposerOptions(
    styles=TRAINING_STYLES,
    smallest_side=_DRAWING_SIDE,
    largest_side=_DRAWING_SIDE,
    smallest_object=0.3,
    largest_object=0.55,
    most_categories=2,
)


@dataclass(frozen=True)
class Slots:
    """A request: eight concepts in the order of the fields; "nothing" where a slot says nothing."""

    # One of OPERATIONS.
    operation: str
    # How many of ``category`` to draw, one of COUNTS; edits change all that there are and say nothing here.
    count: str = NOTHING
    # Key of the category that is drawn, or that the edit is about.
    category: str = NOTHING
    # One of RELATIONS: where ``category`` is, seen from ``other``.
    relation: str = NOTHING
    # Key of the second category of a drawing, or of what replaces ``category``.
    other: str = NOTHING
    # One of COLOUR_NAMES: the new colour of ``category``.
    colour: str = NOTHING
    # What the ground is or becomes: one of COLOUR_NAMES or GROUND_NAMES.
    ground: str = NOTHING
    unused: str = NOTHING

    @property
    def concepts(self) -> tuple[str, ...]:
        """The eight concepts in order."""
        return astuple(self)

    @property
    def indices(self) -> tuple[int, ...]:
        """The vocabulary's row of each concept."""
        return tuple(CONCEPT_INDEX[concept] for concept in self.concepts)


@dataclass(frozen=True)
class Drawing:
    """What is asked, in slots, and an image that does it."""

    slots: Slots
    target: Scene
    # What an edit starts from; None where something is drawn.
    source: Scene | None = None
    # Boxes x1, y1, x2, y2 in pixels that a user would mark to say what an edit is about; none for grounds and drawings.
    regions: tuple[tuple[float, float, float, float], ...] = ()


def draw_drawing(composer: Composer, rng: np.random.Generator) -> Drawing:
    """Something to draw: one thing, two or three of a kind, or two kinds in a relation, on any or a named ground."""
    side = composer.options.largest_side
    chance = rng.random()
    colour = pick(rng, COLOURS) if chance < _COLOURED_GROUND else None
    named = pick(rng, GROUND_NAMES) if _COLOURED_GROUND <= chance < _COLOURED_GROUND + _NAMED_GROUND else None
    chance = rng.random()
    first, second = (CATEGORIES[int(index)] for index in rng.choice(len(CATEGORIES), 2, replace=False))
    if chance < _ONE + _SEVERAL:
        count = 1 if chance < _ONE else int(rng.integers(2, len(COUNTS) + 1))
        categories = [first] * count
        slots = Slots(DRAW, COUNTS[count - 1], first.key)
    else:
        categories = [first, second]
        slots = Slots(DRAW, COUNTS[0], first.key, pick(rng, RELATIONS), second.key)
    if colour is not None:
        slots = replace(slots, ground=colour.english)
    if named is not None:
        slots = replace(slots, ground=named)
    composition = Composition(
        ground=paint_named_ground(named, side, side, rng) if named else _calm_ground(side, rng, colour),
        layers=_arrange(composer, categories, slots.relation),
        light=Light(np.ones(3, dtype=np.float32), None),
        style=_STYLE,
        seed=0,
    )
    return Drawing(slots=slots, target=composition.render())


def draw_picture(composer: Composer, category: Category) -> Scene:
    """One thing of ``category`` in the middle of a grey ground: what an edit puts in."""
    side = composer.options.largest_side
    composition = Composition(
        ground=np.full((side, side, 3), _GREY, dtype=np.float32),
        layers=_arrange(composer, [category], NOTHING),
        light=Light(np.ones(3, dtype=np.float32), None),
        style=_STYLE,
        seed=0,
    )
    return composition.render()


def draw_edit_drawing(composer: Composer, seed: int, rng: np.random.Generator) -> Drawing:
    """A random edit of the scene of ``seed``, at most three things in it."""
    composition = composer.arrange(seed)
    return edit_drawing(draw_edit(composer, replace(composition, layers=composition.layers[:_MOST_EDITED]), rng))


def edit_drawing(edit: Edit) -> Drawing:
    """What an edit asks for, in slots."""
    colour = edit.colour.english if edit.colour else NOTHING
    slots = Slots(
        operation=edit.kind,
        category=edit.category.key if edit.category else NOTHING,
        other=edit.replacement.key if edit.replacement else NOTHING,
        colour=NOTHING if edit.kind == "ground" else colour,
        ground=edit.ground.key if edit.ground else colour if edit.kind == "ground" else NOTHING,
    )
    shown = edit.after if edit.kind == "add" else edit.before
    regions = tuple(thing.box for thing in shown.objects if edit.category and thing.category.key == edit.category.key)
    return Drawing(slots=slots, target=edit.after, source=edit.before, regions=regions)


def _calm_ground(side: int, rng: np.random.Generator, colour: NamedColour | None) -> NDArray[np.float32]:
    """One colour, a little lighter towards one edge, ``[side, side, 3]`` float32 in 0..255."""
    if colour is None:
        base = rng.uniform(90, 250, 3)
        base += 0.6 * (base.mean() - base)
    else:
        base = np.asarray(colorsys.hsv_to_rgb(colour.hue, rng.uniform(0.5, 0.8), rng.uniform(0.7, 1.0))) * 255
    across = np.linspace(-1, 1, side)
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.sin(angle) * across[:, None, None] + np.cos(angle) * across[None, :, None]
    return np.clip(base * (1 + rng.uniform(0, 0.12) * slope), 0, 255).astype(np.float32)


def _arrange(composer: Composer, categories: list[Category], relation: str) -> tuple[Layer, ...]:
    """A layer for each category, whole and apart from the others, in the places that their number has."""
    side = composer.options.largest_side
    layers = []
    for category, place in zip(categories, _PLACES[relation, len(categories)], strict=True):
        sprite = composer.upright_sprite(CATEGORY_INDEX[category.key], _STYLE, side * THING_SHARE)
        left, top = (
            round(side * middle - extent / 2)
            for middle, extent in zip(place, (sprite.shape[1], sprite.shape[0]), strict=True)
        )
        layers.append(cut_layer(category, sprite, left, top, (side, side)))
    return tuple(layers)
