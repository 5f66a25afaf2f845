"""A small scene set with drawn sprites instead of fetched art."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.evaluation.scenes_making import make_scene_set
from services.evaluation.scenes_set import SceneSet
from services.trainer.scenes.composer import EVALUATION_SEED_START, Composer, ComposerOptions
from tests.trainer.conftest import draw_sprites

SCENES = 8


def make_small_set(folder: Path) -> SceneSet:
    sprites = draw_sprites()
    composers = [Composer(sprites, ComposerOptions(styles=(style,))) for style in ("noto", "twemoji")]
    return make_scene_set(folder, composers, SCENES, EVALUATION_SEED_START + 500)


@pytest.fixture(scope="session")
def scene_set(tmp_path_factory: pytest.TempPathFactory) -> SceneSet:
    return make_small_set(tmp_path_factory.mktemp("scenes"))
