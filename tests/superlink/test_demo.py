"""The tour: a question for every tool that is there, one picture, and a clear word where one is not or fails."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from gateway.chat_schema import AnswerExtension, ChatRequest
from gateway.probes import Ready, ServiceReadiness
from gateway.results import DetectionResult, GeneratedImageResult, PhraseResult, ToolCallResult
from superlink.cli import demo
from superlink.cli.demo import STOPS
from superlink.cli.main import build_app
from superlink.composition import Panel
from superlink.profile import superlink_home
from tests.superlink.conftest import Reply, ScriptedGateway
from tests.superlink.gateway_replies import PROBLEM, completion, png, reply

pytestmark = pytest.mark.surface

DECODERS = ("detection", "segmentation", "pose", "diffusion")


def readiness(*decoders: str) -> Reply:
    names = ("orchestrator", "mllm", *decoders)
    return reply(Ready(services=[ServiceReadiness(name=name, ready=True) for name in names]))


def answer(tool: str, phrase: PhraseResult | None = None, text: str = "Here.") -> Reply:
    phrases = [] if phrase is None else [phrase]
    call = ToolCallResult(id="call_0", tool=tool, status="completed", phrases=phrases)
    return completion(text, AnswerExtension(tool_calls=[call]))


def found(name: str) -> PhraseResult:
    detections = [DetectionResult(bbox=[10, 20, 30, 40], score=0.98)]
    return PhraseResult(phrase=name, route="[DET]", found=True, score=0.98, detections=detections)


def made(seed: int) -> PhraseResult:
    image = GeneratedImageResult(b64_json=base64.b64encode(png(64)).decode(), width=64, height=64, seed=seed)
    return PhraseResult(phrase="a cat", route="[GEN]", images=[image])


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> list[Panel]:
    """The panels of the picture."""
    drawn: list[Panel] = []
    original = demo.captioned_grid

    def remember(given: list[Panel], columns: int) -> Image.Image:
        drawn.extend(given)
        return original(given, columns)

    monkeypatch.setattr(demo, "captioned_grid", remember)
    return drawn


def tour(gateway: ScriptedGateway, folder: Path) -> Result:
    files = ["--out", str(folder / "new" / "tour.png"), "--json", str(folder / "answers.json")]
    return CliRunner().invoke(build_app(["demo"]), ["demo", "--url", gateway.url, *files])


def test_every_tool_is_asked_once_and_has_a_panel(
    gateway: ScriptedGateway, tmp_path: Path, panels: list[Panel]
) -> None:
    finds = [answer(tool, found(name)) for tool, name in zip(DECODERS, ("butterfly", "cow", "person"), strict=False)]
    gateway.answer(readiness(*DECODERS), *finds, answer("diffusion", made(1)), answer("diffusion", made(2)))

    result = tour(gateway, tmp_path)

    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "new" / "tour.png") as picture:
        assert picture.width > 3 * 320
    assert [panel.caption for panel in panels[1:]] == [stop.question for stop in STOPS]
    assert all(isinstance(panel.content, Image.Image) for panel in panels)
    # What was made is shown itself, what was found is drawn on the sample.
    assert [panel.content.size == (64, 64) for panel in panels] == [False] * 4 + [True] * 2
    for stop in STOPS:
        assert f"{stop.tool}: {stop.question}" in result.stdout
    assert "0.98" in result.stdout
    assert "an image of 64 x 64 pixels, seed 2" in result.stdout
    written = json.loads((tmp_path / "answers.json").read_text())
    assert list(written) == [stop.tool for stop in STOPS]
    assert written["editing"]["answer"]["tool_calls"][0]["phrases"][0]["images"][0]["seed"] == 2


def test_what_is_drawn_is_asked_for_without_an_image(gateway: ScriptedGateway, tmp_path: Path) -> None:
    gateway.answer(readiness("diffusion"), answer("diffusion", made(1)))
    assert tour(gateway, tmp_path).exit_code == 0
    drawing, editing = (ChatRequest.model_validate_json(received.body) for received in gateway.received[1:])
    assert [part.type for part in drawing.messages[-1].content] == ["text"]
    assert [part.type for part in editing.messages[-1].content] == ["image_url", "text"]
    assert drawing.superlink.drawing.seed == editing.superlink.drawing.seed == demo.SEED


def test_tools_that_the_deployment_lacks_are_left_out(
    gateway: ScriptedGateway, tmp_path: Path, panels: list[Panel]
) -> None:
    gateway.answer(readiness("detection"), answer("detection", found("butterfly")))

    result = tour(gateway, tmp_path)

    assert result.exit_code == 0, result.output
    assert [received.path for received in gateway.received] == ["/readyz", "/v1/chat/completions"]
    assert result.stderr.count("Left out: this deployment has no ") == 4
    assert [panel.content for panel in panels[2:]] == [
        f"Left out: this deployment has no {stop.service} service." for stop in STOPS[1:]
    ]
    written = json.loads((tmp_path / "answers.json").read_text())
    assert written["pose"]["answer"] is None
    assert "no pose" in written["pose"]["note"]


def test_a_tool_that_fails_says_so_and_the_tour_goes_on(
    gateway: ScriptedGateway, tmp_path: Path, panels: list[Panel]
) -> None:
    problem = PROBLEM.model_copy(update={"service": "detection", "detail": "Out of memory."})
    failed = ToolCallResult(id="call_0", tool="detection", status="failed", phrases=[], error=problem)
    gateway.answer(
        readiness("detection", "segmentation", "pose"),
        completion("Here are the butterflies.", AnswerExtension(tool_calls=[failed])),
        reply(PROBLEM, 413),
        answer("pose", found("person")),
    )

    result = tour(gateway, tmp_path)

    assert result.exit_code == 1
    assert "Here are the butterflies." in result.stdout
    assert result.stderr.count("detection failed: Out of memory.") == 1
    assert "image_too_large [gateway]" in result.stderr
    assert "Not every tool did its work: detection, segmentation." in result.stderr
    assert panels[1].content == "detection failed: Out of memory."
    assert isinstance(panels[3].content, Image.Image)


def test_an_answer_that_does_without_its_tool_is_a_failure(gateway: ScriptedGateway, tmp_path: Path) -> None:
    gateway.answer(readiness("detection"), completion("I see two butterflies.", AnswerExtension(tool_calls=[])))
    result = tour(gateway, tmp_path)
    assert result.exit_code == 1
    assert "The answer did not use detection." in result.stderr


def test_a_stack_whose_orchestrator_is_away_is_not_one_without_tools(gateway: ScriptedGateway, tmp_path: Path) -> None:
    services = [{"name": "orchestrator", "ready": False, "reason": "connection refused"}]
    gateway.answer(Reply(503, json.dumps({"services": services}).encode()))
    result = tour(gateway, tmp_path)
    assert result.exit_code == 1
    assert "orchestrator is not ready: connection refused" in result.stderr
    assert not (tmp_path / "new").exists()


def test_the_sample_is_a_small_picture() -> None:
    with Image.open(superlink_home() / demo.SAMPLE) as sample:
        assert max(sample.size) <= 320
