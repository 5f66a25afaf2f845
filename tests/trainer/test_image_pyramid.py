"""The stage that shows what an inverted image pyramid is good for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from services.trainer.checkpoint import newest_checkpoint
from services.trainer.image_pyramid.pattern_fields import CELL, CLASSES, ORIENTATIONS, PatternFields
from services.trainer.image_pyramid.plan import ImagePyramidPlan
from services.trainer.image_pyramid_stage import ImagePyramidStage
from services.trainer.loop import train
from services.trainer.recipe import Checkpoints, Data, Evaluation, Recipe, Schedule, load_recipe
from services.trainer.stages import make_stage
from superlink.configuration import ConfigurationError

pytestmark = pytest.mark.backbones

RECIPES = Path(__file__).resolve().parents[2] / "services" / "trainer" / "recipes" / "piip"
BRANCH = {"depth": 1, "heads": 2, "patch_size": 8}


def small_recipe(readout: str = "merged", stages: int = 1) -> Recipe:
    plan = {
        "readout": readout,
        "piip": {
            "branches": [BRANCH | {"resolution": 16, "width": 64}, BRANCH | {"resolution": 64, "width": 32}],
            "interaction": {"stages": stages, "heads": 4, "drop_path": 0},
        },
    }
    return Recipe(
        name="small",
        stage="image_pyramid",
        threads=1,
        schedule=Schedule(steps=4, batch_size=4, learning_rate=2e-3, warmup_steps=1),
        data=Data(workers=0),
        evaluation=Evaluation(every_steps=100, scenes=16),
        checkpoints=Checkpoints(every_steps=2),
        image_pyramid=ImagePyramidPlan.model_validate(plan),
    )


def run(recipe: Recipe, folder: Path, stop_after: int | None = None) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    train(recipe, ImagePyramidStage(recipe), folder, stop_after)
    newest = newest_checkpoint(folder / "checkpoints")
    assert newest is not None
    return load_file(newest / "model.safetensors")


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    whole = run(small_recipe(), tmp_path / "whole")
    run(small_recipe(), tmp_path / "halves", stop_after=2)
    resumed = run(small_recipe(), tmp_path / "halves")

    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (tmp_path / "whole" / "export" / "model.safetensors").is_file()


def test_fields_show_stripes_that_shrinking_wipes_out_and_one_grating() -> None:
    fields = PatternFields(0)
    field = fields[3]
    marked = field.classes > 0

    orientations = (field.classes[marked] - 1) % ORIENTATIONS
    assert len(orientations.unique()) == 1
    assert int(field.classes.max()) < CLASSES
    assert torch.equal(field.pixels, fields[3].pixels)
    assert not torch.equal(field.pixels, PatternFields(1)[3].pixels)
    for stripes in torch.from_numpy(fields.stripes):
        assert not stripes.unflatten(0, (CELL // 2, 2)).unflatten(2, (CELL // 2, 2)).mean(dim=(1, 3)).any()


def test_the_finest_branch_alone_learns_of_the_others_through_interactions_only() -> None:
    for stages, reached in ((1, True), (0, False)):
        torch.manual_seed(0)
        stage = ImagePyramidStage(small_recipe("finest", stages))
        for module in stage.classifier.modules():
            if hasattr(module, "attention_gate"):
                torch.nn.init.constant_(module.attention_gate, 1.0)
        batch = stage.collate(stage.held_out()[:2])
        torch.stack(list(stage.losses(batch).values())).sum().backward()
        coarse = stage.classifier.pyramid.branches[0].patch_embedding.weight.grad
        assert (coarse is not None and bool(coarse.any())) is reached


def test_the_pair_read_from_its_finest_branch_differs_in_its_interactions_alone() -> None:
    met, apart = (load_recipe(RECIPES / f"finest_{name}.yaml").model_dump() for name in ("met", "apart"))
    assert met["schedule"].pop("learning_rate_factors").keys() == {"classifier.pyramid.units"}
    del apart["schedule"]["learning_rate_factors"]
    assert met["image_pyramid"]["piip"]["interaction"].pop("stages") > 0
    assert apart["image_pyramid"]["piip"]["interaction"].pop("stages") == 0
    assert met.pop("name") != apart.pop("name")
    assert met == apart


def test_no_branch_sees_more_than_its_resolution() -> None:
    stage = ImagePyramidStage(load_recipe(RECIPES / "direct.yaml"))
    sides = []
    for branch in stage.classifier.pyramid.branches:
        branch.patch_embedding.register_forward_pre_hook(lambda _, inputs: sides.append(tuple(inputs[0].shape[2:])))
    stage.classifier(torch.randn(1, 3, 64, 64))
    assert sides == [(16, 16), (16, 16), (32, 32)]


@pytest.mark.slow
def test_an_inverted_pyramid_beats_its_opposite(tmp_path: Path) -> None:
    figures = {}
    for name in ("inverted", "direct"):
        recipe = load_recipe(RECIPES / f"{name}.yaml")
        torch.manual_seed(recipe.seed)
        figures[name] = train(recipe, ImagePyramidStage(recipe), tmp_path / name)
    assert figures["direct"]["mega_macs"] == pytest.approx(figures["inverted"]["mega_macs"], rel=0.1)
    assert figures["inverted"]["foreground_accuracy"] >= 0.9
    assert figures["inverted"]["foreground_accuracy"] - figures["direct"]["foreground_accuracy"] >= 0.2


@pytest.mark.slow
def test_context_arrives_in_the_finest_branch_through_interactions_only(tmp_path: Path) -> None:
    figures = {}
    for name in ("finest_met", "finest_apart"):
        recipe = load_recipe(RECIPES / f"{name}.yaml")
        figures[name] = train(recipe, make_stage(recipe), tmp_path / name)
    assert figures["finest_met"]["context_accuracy"] >= 0.5
    assert figures["finest_apart"]["context_accuracy"] <= 0.35


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("width: 128", "widht: 128"), r"'image_pyramid.piip.branches.0.widht'. Did you mean 'width'\?"),
        (("stages: 4", "stages: 5"), "shortest branch has only 4 blocks"),
        (("resolution: 16", "kind: convnext, widhts: 3"), r"branches.0.widhts'. Did you mean 'widths'\?"),
    ],
)
def test_bad_recipes_name_the_key(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    shipped = RECIPES / "inverted.yaml"
    file = tmp_path / "bad.yaml"
    file.write_text(shipped.read_text(encoding="utf-8").replace(*change), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=message):
        load_recipe(file)


def test_a_recipe_without_its_section_says_so() -> None:
    with pytest.raises(ConfigurationError, match="missing key 'image_pyramid'"):
        ImagePyramidStage(small_recipe().model_copy(update={"image_pyramid": None}))
