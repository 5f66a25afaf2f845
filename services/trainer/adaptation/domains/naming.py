"""General data: one thing on a textured ground, as scenes compose it. What is it, and on which side?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from services.trainer.adaptation.converters import Picture, visual_question
from services.trainer.adaptation.rows import ConversationRow
from services.trainer.scenes.categories import CATEGORIES
from services.trainer.scenes.composer import Composer, Composition, Light
from services.trainer.scenes.grounds import paint_ground

# Things that differ in shape and colour.
NAMES = ("pig", "penguin", "banana", "pine tree", "car", "carrot")
SIDE = 64
# Length of a thing relative to the picture's side.
_SIZES = {"smallest_object": 0.5, "largest_object": 0.65}
# A thing stands on a side when its middle is at least so far from the picture's, relative to its width.
_LEAST_OFFSET = 0.06


def draw_naming(composer: Composer, pictures: Path, seeds: range) -> Iterator[ConversationRow]:
    """A row for each of ``seeds``, its picture written into ``pictures``."""
    composer = composer.adapted(**_SIZES)
    numbers = [next(n for n, category in enumerate(CATEGORIES) if category.english == name) for name in NAMES]
    for seed in seeds:
        image, name, side = _draw(composer, numbers, seed)
        file = f"{seed}.png"
        image.save(pictures / file)
        exchanges = [("What is in the picture?", name), ("On which side is it?", side)]
        yield visual_question(str(seed), Picture(file, SIDE, SIDE), exchanges)


def _draw(composer: Composer, numbers: list[int], seed: int) -> tuple[Image.Image, str, str]:
    rng = np.random.default_rng((seed, 7))
    kind = int(rng.integers(len(numbers)))
    style = composer.options.styles[rng.integers(len(composer.options.styles))]
    ground = paint_ground(SIDE, SIDE, rng)
    empty = np.full((SIDE, SIDE), -1, dtype=np.int16)
    while True:
        layer = composer.place(numbers[kind], style, empty, [], rng)
        if layer is None:
            continue
        scene = Composition(ground, (layer,), Light(np.ones(3, dtype=np.float32), None), style, seed).render()
        left, _, right, _ = scene.objects[0].box
        offset = ((left + right) / 2 - SIDE / 2) / SIDE
        if abs(offset) >= _LEAST_OFFSET:
            return Image.fromarray(scene.image), NAMES[kind], "left" if offset < 0 else "right"
