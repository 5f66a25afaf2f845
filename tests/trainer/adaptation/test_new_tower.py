"""A model that keeps its words and learns to see anew: the recipes towers/*, and what towers take of the stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from services.backbones.defocus.tower import SectionedTower
from services.mllm.model import Mllm
from services.trainer.adaptation_stage import AdaptationStage
from services.trainer.commands import find_recipe, find_recipes
from services.trainer.loop import train
from services.trainer.recipe import Recipe, load_recipe
from superlink.configuration import ConfigurationError
from tests.mllm.original_checkpoints import write_original
from tests.trainer.adaptation.small_rows import colour_rows, new_model, small_recipe, write_set

pytestmark = pytest.mark.internvl

SHIPPED = Path(__file__).parents[3] / "weights" / "tiny" / "mllm"
NAMES = [f"towers/{file.stem}" for file in find_recipes("towers/*")]


@pytest.fixture(scope="module")
def meta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("colours")
    return write_set(folder, colour_rows(folder))


def on_rows(meta: Path, name: str, **fields: Any) -> Recipe:
    """The shipped recipe on a few rows, for two steps of all of them."""
    recipe = load_recipe(find_recipe(name))
    assert recipe.adaptation is not None
    return recipe.model_copy(
        update={
            "adaptation": recipe.adaptation.model_copy(
                update={"meta": meta, "held_out": None, "replay": None, **fields}
            ),
            "schedule": recipe.schedule.model_copy(update={"steps": 2, "batch_size": 6, "warmup_steps": 0}),
            "start_from": {"mllm": SHIPPED},
        }
    )


def build(recipe: Recipe) -> AdaptationStage:
    torch.manual_seed(recipe.seed)
    return AdaptationStage(recipe)


@torch.no_grad()
def loss(stage: AdaptationStage) -> float:
    stage.model.eval()
    rows = stage.training_data()
    return stage.losses(stage.collate([rows[number] for number in range(6)]))["language"].item()


def is_sight(name: str) -> bool:
    return any(part in name for part in ("vision_tower", "multi_modal_projector", "region_encoder"))


@pytest.mark.parametrize("name", NAMES)
def test_each_recipe_learns_and_exports_a_model_that_has_the_tower(name: str, meta: Path, tmp_path: Path) -> None:
    recipe = on_rows(meta, name)
    stage = build(recipe)
    before = loss(stage)
    train(recipe, stage, tmp_path)
    after = loss(stage)
    assert after < before
    assert recipe.adaptation is not None
    assert recipe.adaptation.new_tower is not None
    served, _ = Mllm.load(tmp_path / "export")
    assert served.config.vision == recipe.adaptation.new_tower.vision


@pytest.mark.parametrize("name", NAMES)
def test_all_but_sight_begins_as_it_was_shipped(name: str, meta: Path) -> None:
    shipped, words = Mllm.load(SHIPPED)
    stage = build(on_rows(meta, name))
    begun = stage.mllm.state_dict()
    kept = {name: weight for name, weight in shipped.state_dict().items() if not is_sight(name)}
    assert kept.keys() == {name for name in begun if not is_sight(name)}
    assert all(torch.equal(begun[name], weight) for name, weight in kept.items())
    assert stage.tokenizer.encode_text("a penguin") == words.encode_text("a penguin")
    assert stage.mllm.config.routes == shipped.config.routes


def test_a_seed_begins_with_a_tower_of_its_own(meta: Path) -> None:
    first, again, other = (
        build(on_rows(meta, "towers/internvit").model_copy(update={"seed": seed})).mllm.state_dict()
        for seed in (0, 0, 1)
    )
    differing = {name for name, weight in first.items() if not torch.equal(weight, other[name])}
    assert all(torch.equal(weight, again[name]) for name, weight in first.items())
    assert differing
    assert all(is_sight(name) for name in differing)


def test_stochastic_depth_grows_over_the_layers_of_a_defocus_tower(meta: Path) -> None:
    tower = build(on_rows(meta, "towers/defocus", drop_path=0.3)).mllm.internvl.model.vision_tower
    assert isinstance(tower, SectionedTower)
    assert [block.drop_path.rate for block in tower.encoder.blocks] == pytest.approx([0, 0.1, 0.2, 0.3])


def test_what_cannot_be_built_is_named(meta: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"adaptation\.drop_path: only InternViT and De-focus towers"):
        build(on_rows(meta, "towers/piip", drop_path=0.1))
    given = on_rows(meta, "towers/piip")
    with pytest.raises(ConfigurationError, match=r"adaptation\.new_tower: a new model says what its tower is"):
        build(on_rows(meta, "towers/piip", new_model=new_model(meta)).model_copy(update={"start_from": {}}))
    with pytest.raises(ConfigurationError, match=r"exactly one of them says which model learns"):
        build(given.model_copy(update={"start_from": {}}))
    write_original(tmp_path, "internlm2-chat")
    with pytest.raises(ConfigurationError, match=r"adaptation\.new_tower: start_from\.mllm is a public checkpoint"):
        build(given.model_copy(update={"start_from": {"mllm": tmp_path}}))


def test_without_a_new_tower_nothing_begins_anew(meta: Path) -> None:
    shipped, _ = Mllm.load(SHIPPED)
    begun = build(small_recipe(meta, start_from={"mllm": SHIPPED}, drop_path=0.0)).mllm.state_dict()
    assert all(torch.equal(begun[name], weight) for name, weight in shipped.state_dict().items())
