"""From pictures to a table: the set, what is asked at each limit of tiles, and what the report says of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from services.evaluation.resolution.chart import draw_resolution
from services.evaluation.resolution.report import ResolutionReport, SetFigures
from services.mllm.tiling import choose_grid
from services.trainer.adaptation.meta_file import check, load_meta
from services.trainer.adaptation.rows import read_rows
from services.trainer.commands import find_recipe
from services.trainer.scenes.sized_shapes import SHAPES
from superlink.cli.main import build_app

pytestmark = pytest.mark.internvl


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(build_app(arguments[:1]), list(arguments))
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("here") / "runs" / "resolution" / "set"
    counts = ["--close", "6", "--training", "6", "--test", "6"]
    code, output = run("scenes", "shapes", "--out", str(folder), *counts, "--tiles", "1", "--tiles", "40")
    assert code == 0, output
    return folder


@pytest.fixture(scope="module")
def weights(shapes: Path) -> Path:
    """What both recipes make of a model in one step each; its answers end where its context does."""
    files = []
    for name in ("close", "all_limits"):
        recipe = yaml.safe_load(find_recipe(f"resolution/{name}").read_text())
        recipe["schedule"] |= {"steps": 1, "batch_size": 2}
        recipe["evaluation"]["scenes"] = 1
        if "new_model" in recipe["adaptation"]:
            recipe["adaptation"]["new_model"]["language"]["max_positions"] = 200
        files.append(shapes.parent / f"{name}.yaml")
        files[-1].write_text(yaml.safe_dump(recipe))
    here = Path.cwd()
    os.chdir(shapes.parents[2])
    try:
        code, output = run("train", *map(str, files), "--seed", "7")
    finally:
        os.chdir(here)
    assert code == 0, output
    return shapes.parents[2] / "runs" / "resolution" / "all_limits_seed7" / "export"


def test_a_set_is_complete_and_asks_in_both_languages(shapes: Path) -> None:
    training, test = (load_meta(shapes / part / "meta.json") for part in ("train", "test"))
    assert not [*check(training, lambda _: None), *check(test, lambda _: None)]
    assert {name: each.max_dynamic_patch for name, each in training.items()} == {"tiles_1": 1, "tiles_40": 40}
    # Those that cost most come half as often.
    assert [each.used_rows for each in training.values()] == [6, 3]
    assert {each.length for each in training.values()} == {6}
    assert list(test) == ["small_en", "small_zh", "medium_en", "medium_zh", "large_en", "large_zh"]
    answers = {"en": {shape.english for shape in SHAPES}, "zh": {shape.chinese for shape in SHAPES}}
    for name, each in test.items():
        rows = list(read_rows(Path(each.annotation)))
        assert len(rows) == each.length == 2
        assert all(row.conversations[1].value in answers[name[-2:]] for row in rows)
    conversations = list(read_rows(Path(training["tiles_40"].annotation)))
    assert {row.conversations[1].value for row in conversations} <= answers["en"] | answers["zh"]
    # Those seen from near are others.
    close = load_meta(shapes / "close" / "meta.json")
    assert {name: each.max_dynamic_patch for name, each in close.items()} == {"close": 1}
    assert len({path.read_bytes() for path in shapes.rglob("*.jpg")}) == 18


def test_the_same_picture_has_the_same_answer_in_both_languages(shapes: Path) -> None:
    chinese = {shape.english: shape.chinese for shape in SHAPES}
    test = load_meta(shapes / "test" / "meta.json")
    for size in ("small", "medium", "large"):
        rows = [read_rows(Path(test[f"{size}_{language}"].annotation)) for language in ("en", "zh")]
        for english, other in zip(*rows, strict=True):
            assert english.image == other.image
            assert chinese[english.conversations[1].value] == other.conversations[1].value


def test_a_set_is_never_written_over(shapes: Path) -> None:
    code, output = run("scenes", "shapes", "--out", str(shapes))
    assert code == 1
    assert "exists already" in output


def test_the_command_counts_tiles_and_judges_every_set(shapes: Path, weights: Path, tmp_path: Path) -> None:
    meta, figures, chart = shapes / "test" / "meta.json", tmp_path / "figures.json", tmp_path / "chart.svg"
    options = ["--tiles", "1", "--tiles", "12", "--rows", "2", "--json", str(figures), "--chart", str(chart)]
    code, output = run("eval", "resolution", str(weights), "--meta", str(meta), *options)
    assert code == 0, output
    report = ResolutionReport.model_validate({"figures": json.loads(figures.read_text())["figures"]})
    assert report.limits == [1, 12]
    assert report.sets == list(load_meta(meta))
    assert all(each.questions == 2 and 0 <= each.accuracy <= 1 and each.seconds > 0 for each in report.figures)
    # Four tokens a tile of 64 pixels: the difference is that of the tiles of the first two pictures.
    rows = list(read_rows(Path(load_meta(meta)["small_en"].annotation)))[:2]
    tiles = [choose_grid(row.width or 0, row.height or 0, 12, 64).tiles for row in rows]
    one, twelve = (report.of("small_en", limit)[0].tokens for limit in (1, 12))
    assert twelve - one == pytest.approx(4 * (sum(tiles) - 2) / 2)
    assert "small_zh" in output
    assert all(word in chart.read_text() for word in ("English", "Chinese", "small", "seconds a question"))


def test_what_cannot_be_asked_is_named(shapes: Path, weights: Path, tmp_path: Path) -> None:
    meta = str(shapes / "test" / "meta.json")
    for arguments, named in (
        ((str(weights), "--meta", str(tmp_path / "none.json")), "none.json"),
        ((str(tmp_path), "--meta", meta), str(tmp_path)),
    ):
        code, output = run("eval", "resolution", *arguments)
        assert code == 1
        assert named in output


def test_a_report_has_means_and_spreads_over_seeds(tmp_path: Path) -> None:
    report = ResolutionReport(
        figures=[
            SetFigures(
                weights=f"seed{seed}",
                max_tiles=limit,
                name="small",
                questions=10,
                accuracy=accuracy,
                tokens=100 * limit,
                seconds=0.5 * limit,
            )
            for seed, limit, accuracy in ((0, 1, 0.2), (1, 1, 0.4), (2, 1, 0.3), (0, 4, 0.9))
        ]
    )
    first, second = report.summary
    assert (first.accuracy, first.deviation) == pytest.approx((0.3, 0.1))
    assert (first.lowest, first.highest) == (0.2, 0.4)
    assert (second.accuracy, second.deviation) == (0.9, 0.0)
    assert [(cost.tokens, cost.seconds) for cost in report.costs] == [(100, 0.5), (400, 2.0)]
    draw_resolution(tmp_path / "chart.png", report)
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
