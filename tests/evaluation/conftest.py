"""A small scene set with drawn sprites instead of fetched art."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from services.evaluation.scenes_making import make_scene_set
from services.evaluation.scenes_set import SceneSet, load_scene_set
from services.evaluation.set_extension import extend_scene_set
from services.evaluation.tools_making import tool_parts
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


def extend_small_set(folder: Path) -> SceneSet:
    return extend_scene_set(load_scene_set(folder), tool_parts(draw_sprites(), scenes=4, edits=10, drawings=6, poses=6))


@pytest.fixture(scope="session")
def tool_set(scene_set: SceneSet, tmp_path_factory: pytest.TempPathFactory) -> SceneSet:
    """A set that asks for all tools."""
    folder = tmp_path_factory.mktemp("tools") / "scenes"
    shutil.copytree(scene_set.folder, folder)
    return extend_small_set(folder)
