"""Answers to conversation rows: what counts as right, the command, and the replay study on small recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from services.evaluation.adaptation.accuracy import is_right
from services.evaluation.adaptation.answering import Answered
from services.evaluation.adaptation.drivelm import DrivelmAnswer
from services.evaluation.commands import evaluate
from services.trainer.adaptation_stage import AdaptationStage
from tests.trainer.adaptation.small_rows import colour_rows, small_recipe, write_set

pytestmark = pytest.mark.internvl

DOG = "<ref>dog</ref><box>[[100, 100, 300, 300]]</box>"
TWO = "<ref>dog</ref><box>[[100, 100, 300, 300], [500, 500, 700, 700]]</box>"


@pytest.mark.parametrize(
    ("answer", "prediction", "right"),
    [
        ("Drive on", " drive  on.", True),
        ("drive on", "drive", False),
        ("B", "B. stop", False),
        (DOG, "There: <ref>Dog</ref> <box>[[100,100,300,301]]</box>", True),
        # Moved by a third of its width, its IoU is 0.5; a little further it is less.
        (DOG, "<ref>dog</ref><box>[[166, 100, 366, 300]]</box>", True),
        (DOG, "<ref>dog</ref><box>[[168, 100, 368, 300]]</box>", False),
        (DOG, "<ref>cat</ref><box>[[100, 100, 300, 300]]</box>", False),
        (DOG, "dog", False),
        (DOG, TWO, False),
        (TWO, "<ref>dog</ref><box>[[500, 500, 700, 700], [100, 100, 300, 300]]</box>", True),
        (TWO, "<ref>dog</ref><box>[[500, 500, 700, 700], [500, 500, 700, 700]]</box>", False),
    ],
)
def test_what_counts_as_right(answer: str, prediction: str, right: bool) -> None:
    assert is_right(Answered("set", 1, "?", answer, prediction, 10, 0.1)) is right


def test_drivelm_reads_places_as_models_write_them() -> None:
    """The published vector: the middle of CAM_FRONT, in thousandths of the picture and in pixels of the camera."""
    told = "The car <c1,CAM_FRONT,[500,250]> stands."
    answer = DrivelmAnswer(frame="a", question="?", answer=told, prediction=told, tag=(3,))
    assert answer.answer == answer.prediction == "The car <c1,CAM_FRONT,800.0,450.0> stands."


def run(*arguments: object) -> Result:
    return CliRunner().invoke(evaluate, [str(argument) for argument in arguments], terminal_width=200)


def test_a_model_is_asked_by_the_command(tmp_path: Path) -> None:
    torch.manual_seed(0)
    meta = write_set(tmp_path, colour_rows(tmp_path))
    AdaptationStage(small_recipe(meta)).export(tmp_path / "model")
    result = run(
        "conversations", meta, "--weights", tmp_path / "model", "--max-tiles", 2, "--json", tmp_path / "figures.json",
        "--answers", tmp_path / "answers.jsonl",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == 7
    share = sum(line["right"] for line in lines) / 7
    assert json.loads((tmp_path / "figures.json").read_text()) == {"colours": share}
    failed = run("conversations", meta, "--weights", tmp_path / "nowhere")
    assert failed.exit_code == 1
    assert "nowhere" in failed.output


def test_the_replay_study_goes_on_where_it_stopped(tmp_path: Path) -> None:
    rows, pool = colour_rows(tmp_path / "a"), colour_rows(tmp_path / "b", 12)
    meta, general = write_set(tmp_path / "a", rows), write_set(tmp_path / "b", pool, name="general")
    replay = {"meta": general, "ratio": 0.5}
    start = small_recipe(general, name="start", steps=1, held_out=general)
    domain = small_recipe(meta, name="domain", replay=replay, held_out=meta, start_from={"mllm": tmp_path})
    for recipe in (start, domain):
        content = recipe.model_dump(mode="json", exclude_defaults=True)
        (tmp_path / f"{recipe.name}.yaml").write_text(json.dumps(content))
    command = [
        "replay", "--general", tmp_path / "start.yaml", "--domain", tmp_path / "domain.yaml", "--seed", 1,
        "--runs", tmp_path / "runs", "--json", tmp_path / "figures.json", "--chart", tmp_path / "chart.svg",
    ]  # fmt: skip
    first = run(*command, "--ratio", 0)
    assert first.exit_code == 0, first.output
    both = run(*command, "--ratio", 0, "--ratio", 1)
    assert both.exit_code == 0, both.output
    figures = json.loads((tmp_path / "figures.json").read_text())
    # Six rows in batches of four, and as many general ones.
    assert [(entry["ratio"], entry["steps"]) for entry in figures] == [(0.0, 2), (1.0, 3)]
    assert len((tmp_path / "runs" / "results.jsonl").read_text().splitlines()) == 2
    assert "<svg" in (tmp_path / "chart.svg").read_text()
    assert "domain_r1_seed1" in both.output
    assert "domain_r0_seed1" not in both.output
