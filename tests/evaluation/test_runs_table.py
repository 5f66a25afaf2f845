from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from services.evaluation.commands import evaluate


def write_run(folder: Path, *lines: dict[str, object]) -> Path:
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def evaluated(step: int, **figures: float) -> dict[str, object]:
    return {"step": step, "kind": "evaluation", "seconds": 6.0 * step, **figures}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_run(tmp_path / "one", {"step": 20, "kind": "loss", "total": 3.0}, evaluated(50, ap50=0.5, links=0.25))
    write_run(tmp_path / "two", evaluated(25, ap50=0.2, links=0.1), evaluated(50, ap50=0.6, links=0.5, cells=1.0))
    write_run(tmp_path / "two_seed7", evaluated(25, ap50=0.4, links=0.3), evaluated(50, ap50=0.7, links=0.75))
    return tmp_path


def table(*arguments: object) -> list[str]:
    result = CliRunner().invoke(evaluate, ["runs", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def test_runs_are_rows_and_seeds_of_one_recipe_share_one(runs: Path) -> None:
    assert table(runs / "one", runs / "two", runs / "two_seed7") == [
        "| run | seeds | steps | minutes | ap50 | links |",
        "| --- | --- | --- | --- | --- | --- |",
        "| one | 1 | 50 | 5.0 | 0.500 | 0.250 |",
        "| two | 2 | 50 | 5.0 | 0.650 (0.600–0.700) | 0.625 (0.500–0.750) |",
    ]


def test_figures_and_step_can_be_chosen(runs: Path) -> None:
    lines = table(runs / "two", "--figure", "links", "--step", "25")
    assert lines[0] == "| run | seeds | steps | minutes | links |"
    assert lines[2] == "| two | 1 | 25 | 2.5 | 0.100 |"


def test_what_a_resumed_run_evaluates_again_counts_once(tmp_path: Path) -> None:
    run = write_run(tmp_path / "resumed", evaluated(50, ap50=0.5), evaluated(50, ap50=0.6))
    assert table(run)[2].endswith("| 0.600 |")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["one", "--figure", "ap"], "Not all runs have the figures ap. They have: ap50, links."),
        (["two", "--step", "30"], "there is no evaluation after 30 steps, but after 25, 50."),
        (["three"], "there is no such file"),
        (["young"], "this run has not been evaluated yet"),
    ],
)
def test_what_is_missing_is_named(runs: Path, arguments: list[str], message: str) -> None:
    write_run(runs / "young", {"step": 20, "kind": "loss", "total": 3.0})
    result = CliRunner().invoke(evaluate, ["runs", str(runs / arguments[0]), *arguments[1:]])
    assert result.exit_code == 1
    assert message in " ".join(result.output.split())
