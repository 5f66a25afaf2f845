from __future__ import annotations

import io
import json
import time
from pathlib import Path

import pytest
import typer
from PIL import Image
from safetensors.numpy import save_file
from typer.testing import CliRunner

from services.evaluation.commands import bench, evaluate, scenes
from services.evaluation.latency import measure_latency
from services.evaluation.scenes_evaluation import evaluate_scenes, write_failures
from services.evaluation.scenes_set import SceneSet
from superlink.client import Client
from superlink.client_errors import GatewayUnreachable
from tests.evaluation.oracle_gateway import Oracle, serve
from tests.superlink.conftest import Reply, scripted_gateway
from tests.trainer.conftest import draw_sprites


@pytest.fixture
def oracle(scene_set: SceneSet) -> Oracle:
    return Oracle(scene_set)


def evaluated(oracle: Oracle, concurrency: int = 4):
    with serve(oracle) as url, Client(url, max_retries=0) as client:
        return evaluate_scenes(client, oracle.scene_set, concurrency)


def test_right_answers_score_one_everywhere(oracle: Oracle) -> None:
    report, outcomes = evaluated(oracle)
    assert report.routing.accuracy == report.routing.accuracy_several == 1.0
    assert set(report.routing.by_language.values()) == set(report.routing.by_task.values()) == {1.0}
    detection = report.detection
    assert detection.ap == detection.ap50 == detection.ap_teacher_forced == pytest.approx(1.0)
    assert detection.presence_accuracy == 1.0
    for figures in (report.presence, report.counting):
        assert (figures.accuracy, figures.without_tools) == (1.0, 1.0)
    assert report.refer.accuracy == report.compare.accuracy == report.open.f1 == report.open.exact == 1.0
    assert report.failed_prompts == 0
    assert report.prompts == len(outcomes) == len(oracle.scene_set.prompts)
    assert report.seed == oracle.scene_set.info.first_seed
    assert set(report.by_style) == {"noto", "twemoji"}
    assert report.by_language["zh"].ap == pytest.approx(1.0)


def test_wrong_answers_cost_exactly_their_own_figures(oracle: Oracle) -> None:
    oracle.wrong_tasks = {"count", "presence_without_tools", "open"}
    report, _ = evaluated(oracle)
    assert report.counting.accuracy == 0.0
    assert report.counting.without_tools == 1.0
    assert report.presence.without_tools == 0.0
    assert report.presence.accuracy == 1.0
    assert report.open.f1 == 0.0
    assert report.routing.by_task["count"] == 0.0
    assert report.routing.by_task["detect"] == 1.0
    assert report.detection.ap == pytest.approx(1.0)


def test_wrong_phrases_lose_free_running_but_not_teacher_forced_precision(oracle: Oracle) -> None:
    oracle.wrong_tasks = {"detect", "detect_several"}
    report, _ = evaluated(oracle)
    assert report.detection.ap == 0.0
    assert report.detection.ap_teacher_forced == pytest.approx(1.0)
    assert report.routing.accuracy_several < 1.0


def test_failed_requests_are_wrong_and_counted(oracle: Oracle) -> None:
    oracle.failing_tasks = {"presence"}
    report, outcomes = evaluated(oracle)
    asked = sum(prompt.task == "presence" for prompt in oracle.scene_set.prompts)
    assert report.failed_prompts == asked > 0
    assert report.presence.accuracy == 0.0
    listing = io.StringIO()
    assert write_failures(oracle.scene_set, outcomes, listing) == asked
    assert "broken" in listing.getvalue()


def test_a_gateway_that_is_not_there_is_an_error_and_not_a_score(scene_set: SceneSet) -> None:
    with Client("http://127.0.0.1:9", max_retries=0) as client, pytest.raises(GatewayUnreachable):
        evaluate_scenes(client, scene_set)


def test_an_evaluation_that_is_stopped_asks_nothing_more(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict] = []
    answer = oracle.chat

    def answer_slowly(request: dict) -> tuple[int, dict]:
        asked.append(request)
        time.sleep(0.05)
        return answer(request)

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(oracle, "chat", answer_slowly)
    with serve(oracle) as url, Client(url, max_retries=0) as client, pytest.raises(KeyboardInterrupt):
        evaluate_scenes(client, oracle.scene_set, report=stop)
    assert 0 < len(asked) < len(oracle.scene_set.prompts) / 4


def test_latency_counts_every_request_and_names_its_parts(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    # Fresh images are unknown to the oracle, so they are taken for the first.
    monkeypatch.setattr(oracle, "image_id", lambda content: 1)
    monkeypatch.setattr(oracle, "chat", lambda request: (200, oracle.completion(oracle.scene_set.prompts[0], False)))
    with serve(oracle) as url, Client(url) as client:
        report = measure_latency(client, oracle.scene_set, requests=7)
    assert set(report.endpoints) == {"detect", "detect_same_image", "chat_one_tool", "chat_with_observation"}
    for figures in report.endpoints.values():
        assert figures.requests == 7
        assert 0 < figures.p50_ms <= figures.p90_ms <= figures.p99_ms
        assert figures.parts["mllm compute"].p50_ms == 0.25
        assert figures.parts["client"].p50_ms > 0


def application() -> typer.Typer:
    app = typer.Typer()
    app.add_typer(evaluate, name="eval")
    app.add_typer(bench, name="bench")
    app.add_typer(scenes, name="scenes")
    return app


def test_the_command_writes_figures_and_failures(oracle: Oracle, tmp_path: Path) -> None:
    oracle.wrong_tasks = {"count"}
    figures, failures = tmp_path / "figures.json", tmp_path / "wrong.txt"
    options = ["--scenes", str(oracle.scene_set.folder), "--json", str(figures), "--failures", str(failures)]
    with serve(oracle) as url:
        result = CliRunner().invoke(application(), ["eval", "scenes", "--url", url, *options])
    assert result.exit_code == 0, result.output
    assert "routing accuracy" in result.output
    written = json.loads(figures.read_text(encoding="utf-8"))
    assert {"accuracy", "accuracy_multi"} <= set(written["routing"])
    assert {"ap", "ap50", "ap_teacher_forced"} <= set(written["detection"])
    assert {"presence", "counting", "by_language", "scenes", "seed", "seconds"} <= set(written)
    assert "prompt" in failures.read_text(encoding="utf-8")


@pytest.mark.parametrize("command", [["eval", "scenes", "--limit", "1"], ["bench", "latency", "--requests", "1"]])
def test_a_gateway_that_wants_a_key_is_given_one(scene_set: SceneSet, command: list[str]) -> None:
    with scripted_gateway() as gateway:
        gateway.answer(Reply(401))
        where = ["--scenes", str(scene_set.folder), "--url", gateway.url]
        CliRunner().invoke(application(), [*command, *where, "--api-key", "sl-option"])
    assert {received.headers.get("authorization") for received in gateway.received} == {"Bearer sl-option"}


def test_a_folder_without_a_set_is_a_clear_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(application(), ["eval", "scenes", "--scenes", str(tmp_path)])
    assert result.exit_code == 1


def test_the_show_command_writes_a_picture(scene_set: SceneSet, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    result = CliRunner().invoke(application(), ["scenes", "show", str(scene_set.folder), "--out", str(sheet)])
    assert result.exit_code == 0, result.output
    assert sheet.stat().st_size > 1000


def test_the_figures_command_draws_the_kinds_that_were_asked_for(tmp_path: Path) -> None:
    sheet = tmp_path / "figures.png"
    command = ["scenes", "figures", "--kind", "deer", "--count", "4", "--columns", "2", "--out", str(sheet)]
    result = CliRunner().invoke(application(), command)
    assert result.exit_code == 0, result.output
    with Image.open(sheet) as picture:
        assert picture.width == picture.height
        assert len(picture.getcolors(1_000_000) or ()) > 20
    result = CliRunner().invoke(application(), ["scenes", "figures", "--kind", "dear", "--out", str(sheet)])
    assert result.exit_code == 1
    assert "No kind dear. There are: deer, person." in result.output


def test_the_edits_command_needs_art_and_draws_pairs(tmp_path: Path) -> None:
    sheet = tmp_path / "edits.png"
    sprites = tmp_path / "sprites.safetensors"
    command = ["scenes", "edits", "--count", "3", "--sprites", str(sprites), "--out", str(sheet)]
    result = CliRunner().invoke(application(), command)
    assert result.exit_code == 1
    assert "make sprites" in result.output
    save_file({style: art.copy() for style, art in draw_sprites().items()}, str(sprites))
    result = CliRunner().invoke(application(), command)
    assert result.exit_code == 0, result.output
    with Image.open(sheet) as picture:
        assert picture.width > picture.height
