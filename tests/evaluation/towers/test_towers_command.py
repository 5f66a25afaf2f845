"""``superlink eval towers``: quality of runs beside what their towers cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from services.evaluation.commands import evaluate
from services.mllm.model import Mllm
from services.mllm.towers import VisionSize
from services.trainer.adaptation_stage import AdaptationStage
from tests.trainer.adaptation.small_rows import colour_rows, small_recipe, write_set

pytestmark = pytest.mark.internvl


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of one recipe with logs, the first with an export."""
    folder = tmp_path_factory.mktemp("runs")
    meta = write_set(folder / "rows", colour_rows(folder / "rows"))
    torch.manual_seed(0)
    for seed, naming in ((0, 0.5), (1, 0.75)):
        run = folder / f"small_seed{seed}"
        AdaptationStage(small_recipe(meta)).export(run / "export")
        lines = [
            *({"step": step, "kind": "loss", "seconds": 0.5 * step, "total": 1.0} for step in (20, 40, 60)),
            {"step": 60, "kind": "evaluation", "seconds": 90.0, "answers_naming": naming, "loss": 1.0},
        ]
        (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def test_quality_stands_beside_the_cost_of_the_tower(runs: Path, tmp_path: Path) -> None:
    file, chart = tmp_path / "towers.json", tmp_path / "towers.svg"
    folders = [str(runs / f"small_seed{seed}") for seed in (0, 1)]
    options = ["--figure", "answers_naming", "--json", str(file), "--chart", str(chart)]
    result = CliRunner().invoke(evaluate, ["towers", *folders, *options])
    assert result.exit_code == 0, result.output
    (row,) = json.loads(file.read_text(encoding="utf-8"))
    assert row["figures"] == {"answers_naming": [0.5, 0.75]}
    assert row["seconds_a_step"] == pytest.approx(0.5)
    mllm, _ = Mllm.load(runs / "small_seed0" / "export")
    inner = mllm.internvl.model
    weights = [*inner.vision_tower.parameters(), *inner.multi_modal_projector.parameters()]
    assert row["cost"]["parameters"] == sum(weight.numel() for weight in weights)
    assert row["cost"]["tokens"] == 4
    assert row["cost"]["milliseconds"] > 0
    assert row["cost"]["mega_macs"] == pytest.approx(expected_macs(mllm) / 1e6, rel=1e-6)
    assert "| small | 2 | 0.625 (0.500–0.750) |" in result.output
    assert "answers_naming" in chart.read_text(encoding="utf-8")


def expected_macs(mllm: Mllm) -> int:
    """By hand: patches, layers with their attention over cells and class token, and the projector."""
    vision = mllm.config.vision
    assert isinstance(vision, VisionSize)
    cells, width = (mllm.config.tile_size // vision.patch_size) ** 2, vision.hidden_size
    seen = cells + 1
    layer = seen * (4 * width**2 + 2 * width * vision.intermediate_size) + 2 * seen**2 * width
    projector = cells // 4 * (4 * width * mllm.hidden_size + mllm.hidden_size**2)
    return cells * 3 * vision.patch_size**2 * width + vision.layers * layer + projector


def test_runs_that_cannot_be_compared_say_why(runs: Path, tmp_path: Path) -> None:
    def told(*arguments: str) -> str:
        result = CliRunner().invoke(evaluate, ["towers", *arguments])
        assert result.exit_code == 1
        return " ".join(result.output.split())

    assert "Not all runs have the figures cells" in told(str(runs / "small_seed0"), "--figure", "cells")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "log.jsonl").write_text('{"step": 3, "kind": "evaluation", "seconds": 1.0, "answers": 0.5}\n')
    assert "there is no such folder of weights" in told(str(bare))
