"""The stage ``classification``: De-focus networks on handwritten digits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from services.backbones.defocus.classifier import Classifier
from services.evaluation.over_focus_maps import draw_over_focus
from services.evaluation.runs_chart import draw_runs
from services.evaluation.runs_table import RunsTableError, runs_table
from services.runtime.weights import load_weights, read_config
from services.trainer.checkpoint import newest_checkpoint
from services.trainer.classification.digit_stream import DigitStream, disturbed_passes
from services.trainer.classification.plan import Classification
from services.trainer.classification_stage import ClassificationStage
from services.trainer.commands import find_recipes
from services.trainer.commands import train as train_command
from services.trainer.digits import load_digits
from services.trainer.loop import make_optimiser, train
from services.trainer.recipe import Recipe, Schedule, load_recipe
from superlink.configuration import ConfigurationError

pytestmark = pytest.mark.backbones


def small_recipe(**fields: Any) -> Recipe:
    """Two layers of width 16 on digits of 4 x 4 tokens."""
    network = {
        "classes": 10,
        "encoder": {
            "mixer": {"kind": "retention", "heads": 2, "value_factor": 1},
            "width": 16,
            "depth": 2,
            "image_size": 8,
            "patch_size": 2,
            "channels": 1,
            "initial_deviation": 0.1,
        },
    }
    content: dict[str, Any] = {
        "name": "small",
        "stage": "classification",
        "threads": 1,
        "schedule": {"steps": 4, "batch_size": 16, "learning_rate": 0.003, "warmup_steps": 1},
        "data": {"workers": 0},
        "evaluation": {"every_steps": 100},
        "checkpoints": {"every_steps": 2},
        "classification": {"network": network, "drop_path": {"first": 0.1, "last": 0.5}},
    }
    return Recipe.model_validate(content | fields)


def run(recipe: Recipe, folder: Path, stop_after: int | None = None) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    train(recipe, ClassificationStage(recipe), folder, stop_after)
    newest = newest_checkpoint(folder / "checkpoints")
    assert newest is not None
    return load_file(newest / "model.safetensors")


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    whole = run(small_recipe(), tmp_path / "whole")
    run(small_recipe(), tmp_path / "halves", stop_after=2)
    resumed = run(small_recipe(), tmp_path / "halves")

    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_finished_run_can_be_read_drawn_and_put_in_tables(tmp_path: Path) -> None:
    run(small_recipe(), tmp_path / "small_seed0")
    run(small_recipe(seed=1), tmp_path / "small_seed1")
    runs = [tmp_path / "small_seed0", tmp_path / "small_seed1"]

    folder = runs[0] / "export"
    classifier = Classifier(read_config(folder, Classification).network)
    load_weights(classifier, folder)
    assert classifier(torch.zeros(2, 1, 8, 8)).shape == (2, 10)

    table = runs_table(runs, ["top1", "gradient_pr", "class_pr", "top5_share"])
    assert table.splitlines()[2].startswith("| small | 2 | 4 |")
    ratios = json.loads((runs[0] / "log.jsonl").read_text().splitlines()[-1])
    assert 1.0 <= ratios["gradient_pr_1"] <= 16.0
    assert 5 / 17 <= ratios["top5_share"] <= 1.0

    draw_runs(tmp_path / "runs.svg", runs, ["top1"])
    assert ">small<" in (tmp_path / "runs.svg").read_text()
    draw_over_focus(tmp_path / "maps.png", runs)
    assert (tmp_path / "maps.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(RunsTableError, match="top2"):
        draw_runs(tmp_path / "runs.svg", runs, ["top2"])


def test_layers_are_dropped_more_and_more_often() -> None:
    recipe = small_recipe(schedule={"steps": 750, "batch_size": 16, "learning_rate": 0.003})  # 10 epochs
    stage = ClassificationStage(recipe)
    blocks = stage.classifier.encoder.blocks
    stream = stage.training_data()
    seen = []
    for step in (0, 374, 375, 749):
        stage.losses(stage.collate([stream[step * 16 + place] for place in range(16)]))
        seen.append([block.drop_path.rate for block in blocks])
    expected = [0.1, 0.1 + 0.4 * 4 / 9, 0.1 + 0.4 * 5 / 9, 0.5]
    assert [rates[-1] for rates in seen] == pytest.approx(expected)
    assert [rates[0] for rates in seen] == [0.0] * 4


def test_digits_are_shuffled_by_epoch_and_shifted_by_a_pixel_at_most() -> None:
    training, held_out = load_digits()
    assert (len(training.labels), len(held_out.labels)) == (1200, 597)
    stream = DigitStream(training, seed=0)
    first, second = ([stream[epoch * 1200 + place] for place in range(1200)] for epoch in (0, 1))
    for epoch in (first, second):
        assert sorted(int(sample.labels) for sample in epoch) == sorted(training.labels.tolist())
    assert [int(sample.labels) for sample in first] != [int(sample.labels) for sample in second]
    assert torch.equal(stream[77].pixels, DigitStream(training, seed=0)[77].pixels)

    bright = training.images.copy()
    bright[:] = 0.0
    bright[:, 3, 3] = 100.0
    places = {
        divmod(int(disturbed.argmax()), 8)
        for batch in disturbed_passes(type(training)(bright[:100], training.labels[:100]), 2)
        for disturbed in batch.pixels
    }
    assert places == {(row, column) for row in (2, 3, 4) for column in (2, 3, 4)}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("auxiliary:", "auxilary:", r"network\.auxilary.*Did you mean 'auxiliary'"),
        ("width: 16", "widht: 16", r"encoder\.widht.*Did you mean 'width'"),
        ("width: 16", "width: 17", r"17 does not give 2 heads"),
        ("kind: retention", "kind: retnet", r"mixer.*retnet"),
    ],
)
def test_a_wrong_key_deep_in_a_recipe_is_named_with_the_nearest_right_one(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    text = yaml.safe_dump(small_recipe().model_dump(mode="json"))
    assert old in text
    file = tmp_path / "wrong.yaml"
    file.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigurationError, match=message):
        load_recipe(file)


def test_a_recipe_of_this_stage_says_what_it_trains() -> None:
    with pytest.raises(ConfigurationError, match="missing key 'classification'"):
        ClassificationStage(small_recipe(classification=None))


def test_named_matrices_do_not_decay() -> None:
    model = nn.ModuleDict({"log_rates": nn.Linear(2, 2), "part": nn.Linear(2, 2)})
    model["part"].register_parameter("log_rates", nn.Parameter(torch.ones(2, 2)))
    schedule = Schedule(steps=1, batch_size=1, learning_rate=1.0, weight_decay=0.5, undecayed=("log_rates",))
    decays = {
        id(parameter): group["weight_decay"]
        for group in make_optimiser(model, schedule).param_groups
        for parameter in group["params"]
    }
    by_name = {name: decays[id(parameter)] for name, parameter in model.named_parameters()}
    assert by_name == {
        "log_rates.weight": 0.5,
        "log_rates.bias": 0.0,
        "part.weight": 0.5,
        "part.bias": 0.0,
        "part.log_rates": 0.0,
    }


def test_several_recipes_and_seeds_are_trained_by_one_command(tmp_path: Path) -> None:
    for name in ("one", "two"):
        recipe = small_recipe(name=name, schedule={"steps": 1, "batch_size": 4, "learning_rate": 0.001})
        content = recipe.model_dump(mode="json")
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    app = typer.Typer()
    app.command()(train_command)
    files = [str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml")]
    options = ["--seed", "3", "--seed", "4", "--runs", str(tmp_path), "--json", str(tmp_path / "figures.json")]

    result = CliRunner().invoke(app, [*files, *options])

    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    # All recipes with the first seed come first: whoever stops early has them all.
    assert list(figures) == ["one_seed3", "two_seed3", "one_seed4", "two_seed4"]
    assert all("top1" in each for each in figures.values())


def test_a_pattern_means_all_recipes_that_it_fits() -> None:
    names = [load_recipe(file).name for file in find_recipes("defocus/bandpass_*")]
    assert len(names) == 6
    assert all(name.startswith("defocus/bandpass_") for name in names)
    with pytest.raises(ConfigurationError, match=r"like 'defocus/band\*x'.*defocus/bandpass_none"):
        find_recipes("defocus/band*x")
