"""Small worlds for trainer tests: drawn sprites instead of fetched art."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from services.trainer.scenes.categories import CATEGORIES
from services.trainer.scenes.composer import Composer, ComposerOptions
from services.trainer.scenes.sprites import SPRITE_SIZE, TRAINING_STYLES


def draw_sprites() -> dict[str, np.ndarray]:
    """A coloured ellipse a category, the same in every style."""
    rows, columns = np.mgrid[-1 : 1 : SPRITE_SIZE * 1j, -1 : 1 : SPRITE_SIZE * 1j]
    rng = np.random.default_rng(0)
    sprites = np.zeros((len(CATEGORIES), SPRITE_SIZE, SPRITE_SIZE, 4), dtype=np.uint8)
    for sprite in sprites:
        inside = (rows / rng.uniform(0.5, 0.95)) ** 2 + (columns / rng.uniform(0.5, 0.95)) ** 2 < 1
        sprite[inside, :3] = rng.integers(0, 256, 3)
        sprite[inside, 3] = 255
    return dict.fromkeys(TRAINING_STYLES, sprites)


@pytest.fixture(scope="session")
def sprite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sprites") / "sprites.safetensors"
    save_file({name: array.copy() for name, array in draw_sprites().items()}, str(path))
    return path


@pytest.fixture(scope="session")
def composer() -> Composer:
    return Composer(draw_sprites(), ComposerOptions())
