from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from services.detection.configuration import DetectorConfig
from services.trainer.checkpoint import CheckpointError, newest_checkpoint
from services.trainer.commands import find_recipe
from services.trainer.commands import train as train_command
from services.trainer.detector_stage import DetectorStage
from services.trainer.loop import learning_rate, make_optimiser, train
from services.trainer.recipe import Checkpoints, Data, Evaluation, Recipe, Schedule, load_recipe
from superlink.configuration import ConfigurationError

RECIPES = Path(__file__).resolve().parents[2] / "services" / "trainer" / "recipes"
SHIPPED = sorted(file.relative_to(RECIPES).with_suffix("").as_posix() for file in RECIPES.rglob("*.yaml"))


def small_recipe(sprites: Path, name: str = "small", **schedule: object) -> Recipe:
    return Recipe(
        name=name,
        stage="detector",
        threads=1,
        schedule=Schedule(**({"steps": 4, "batch_size": 2, "learning_rate": 1e-3, "warmup_steps": 1} | schedule)),
        data=Data(sprites=sprites, workers=0, largest_side=160),
        evaluation=Evaluation(every_steps=100, scenes=2),
        checkpoints=Checkpoints(every_steps=2),
        detector=DetectorConfig(
            image_side=64,
            width=32,
            heads=2,
            backbone_base_channels=16,
            feed_forward_width=32,
            encoder_layers=1,
            decoder_layers=2,
            sampling_points=1,
            queries=10,
            denoising_queries=8,
            link_width=16,
        ),
    )


def run(recipe: Recipe, folder: Path, stop_after: int | None = None) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    train(recipe, DetectorStage(recipe), folder, stop_after)
    newest = newest_checkpoint(folder / "checkpoints")
    assert newest is not None
    return load_file(newest / "model.safetensors")


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path: Path, sprite_file: Path) -> None:
    recipe = small_recipe(sprite_file)

    whole = run(recipe, tmp_path / "whole")
    run(recipe, tmp_path / "halves", stop_after=2)
    resumed = run(recipe, tmp_path / "halves")

    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (tmp_path / "whole" / "export" / "model.safetensors").is_file()
    # Training flushes denormal numbers to zero, which would be wrong for the rest of the process.
    assert sys.float_info.min / 2 > 0


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path, sprite_file: Path) -> None:
    run(small_recipe(sprite_file), tmp_path, stop_after=2)

    with pytest.raises(CheckpointError, match="different recipe"):
        run(small_recipe(sprite_file, learning_rate=2e-3), tmp_path)


def test_a_killed_write_leaves_no_half_checkpoint(tmp_path: Path, sprite_file: Path) -> None:
    run(small_recipe(sprite_file), tmp_path, stop_after=2)
    (tmp_path / "checkpoints" / ".partial_00000003").mkdir()

    newest = newest_checkpoint(tmp_path / "checkpoints")

    assert newest is not None
    assert newest.name == "step_00000002"


def test_factors_apply_to_paths_and_never_to_substrings() -> None:
    model = nn.ModuleDict({"mllm": nn.Linear(2, 2), "mllm_mapper": nn.Linear(2, 2)})
    schedule = Schedule(steps=10, batch_size=1, learning_rate=1.0, learning_rate_factors={"mllm": 0.1})

    groups = make_optimiser(model, schedule).param_groups
    factors = {id(parameter): group["factor"] for group in groups for parameter in group["params"]}

    assert {factors[id(parameter)] for parameter in model["mllm"].parameters()} == {0.1}
    assert {factors[id(parameter)] for parameter in model["mllm_mapper"].parameters()} == {1.0}


def test_the_schedule_warms_up_and_ends_at_its_share() -> None:
    schedule = Schedule(steps=100, batch_size=1, learning_rate=1.0, warmup_steps=10, final_learning_rate=0.1)

    assert learning_rate(0, schedule) == pytest.approx(0.1)
    assert learning_rate(10, schedule) == pytest.approx(1.0)
    assert learning_rate(100, schedule) == pytest.approx(0.1)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_are_valid(name: str) -> None:
    assert load_recipe(find_recipe(name)).name == name


def test_an_unknown_recipe_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match=r"tiny_detector, .*ablations/queries_4"):
        find_recipe("tiny_detecto")


def test_another_seed_is_another_run(tmp_path: Path, sprite_file: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(small_recipe(sprite_file, steps=1).model_dump_json(), encoding="utf-8")
    app = typer.Typer()
    app.command()(train_command)

    for options in ([], ["--seed", "3"]):
        result = CliRunner().invoke(app, [str(file), "--runs", str(tmp_path), *options])
        assert result.exit_code == 0, result.output

    first, other = (load_file(tmp_path / name / "export" / "model.safetensors") for name in ("small", "small_seed3"))
    assert first.keys() == other.keys()
    assert not torch.equal(first["query_content.weight"], other["query_content.weight"])


def test_a_wrong_recipe_key_is_named_with_the_nearest_right_one(tmp_path: Path) -> None:
    text = (RECIPES / "tiny_detector.yaml").read_text()
    file = tmp_path / "typo.yaml"
    file.write_text(text.replace("batch_size", "batchsize"))

    with pytest.raises(ConfigurationError, match=r"schedule\.batchsize.*'batch_size'"):
        load_recipe(file)


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path: Path, sprite_file: Path) -> None:
    """Under a launcher's environment both ranks end with the same weights, written once."""
    recipe = small_recipe(sprite_file)
    script = (
        "import sys, json, torch; from pathlib import Path\n"
        "from services.trainer.recipe import Recipe\n"
        "from services.trainer.detector_stage import DetectorStage\n"
        "from services.trainer.loop import train\n"
        "recipe = Recipe.model_validate(json.loads(sys.argv[1]))\n"
        "stage = DetectorStage(recipe)\n"
        "train(recipe, stage, Path(sys.argv[2]))\n"
        "print(json.dumps(sum(float(p.double().sum()) for p in stage.model.parameters())))\n"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", script, recipe.model_dump_json(), str(tmp_path)],
            env=os.environ
            | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    sums = [json.loads(process.communicate(timeout=240)[0].strip().splitlines()[-1]) for process in processes]

    assert [process.returncode for process in processes] == [0, 0]
    assert sums[0] == sums[1]
