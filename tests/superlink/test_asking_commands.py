"""The commands that ask a gateway: what they send, what they print for people, and what they print for programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from gateway.chat_schema import AnswerExtension, ChatRequest, Delta
from superlink.cli.main import build_app
from tests.superlink.conftest import Reply, ScriptedGateway
from tests.superlink.gateway_replies import COMPLETED, chunk, event_stream, png

pytestmark = pytest.mark.surface

ASKING = ("ask", "detect", "segment", "pose", "generate", "edit")
FOUND = {
    "model": "m",
    "categories": [{"phrase": "dog", "found": True, "score": 0.9}, {"phrase": "cat", "found": False, "score": 0.1}],
    "detections": [{"category": "dog", "category_index": 0, "bbox": [1, 2, 30, 40], "score": 0.9}],
}
DRAWN = {"model": "m", "data": [{"b64_json": "aWNvbg==", "width": 8, "height": 8, "seed": 3}]}


def answered() -> Reply:
    call = chunk(Delta(superlink=AnswerExtension(tool_calls=[COMPLETED])))
    return event_stream(chunk(Delta(content="Here is the dog.")), call, chunk(Delta(), "stop"))


def drawn() -> Reply:
    event = {"type": "image_generation.completed", "model": "m", "timings": [], **DRAWN["data"][0]}  # type: ignore[dict-item]
    return event_stream(json.dumps(event))


def found() -> Reply:
    return Reply(200, json.dumps(FOUND).encode())


# Command -> arguments besides the image, and what the gateway answers.
CALLS: dict[str, tuple[list[str], Any]] = {
    "ask": (["IMAGE", "Where is the dog?"], answered),
    "detect": (["IMAGE", "dog", "cat"], found),
    "segment": (["IMAGE", "dog", "cat"], found),
    "pose": (["IMAGE", "dog", "cat"], found),
    "generate": (["a cat"], drawn),
    "edit": (["IMAGE", "make it blue"], drawn),
}


def superlink(
    gateway: ScriptedGateway, *arguments: str, stdin: bytes = b"", environment: dict[str, str] | None = None
) -> Result:
    command = arguments[0]
    return CliRunner().invoke(
        build_app([command]), [*arguments, "--url", gateway.url], input=stdin, env=environment, catch_exceptions=False
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with IMAGE in it."""
    Image.new("RGB", (64, 64), "green").save(tmp_path / "IMAGE", format="PNG")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", ASKING)
def test_json_on_standard_output_is_nothing_but_json(gateway: ScriptedGateway, folder: Path, command: str) -> None:
    arguments, answer = CALLS[command]
    gateway.answer(answer())
    result = superlink(gateway, command, *arguments, "--json", "-", "--timings")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    if command in ("generate", "edit"):
        assert document["images"][0]["seed"] == 3
        assert "b64_json" not in document["images"][0]
        assert (folder / document["images"][0]["file"]).read_bytes() == b"icon"
    else:
        assert "dog" in result.stderr
        assert "dog" in json.dumps(document)


@pytest.mark.parametrize("command", ASKING)
def test_the_api_key_comes_from_the_option_or_the_environment(
    gateway: ScriptedGateway, folder: Path, command: str
) -> None:
    arguments, answer = CALLS[command]
    gateway.answer(answer())
    for options, environment, sent in (
        (("--api-key", "sl-option"), {"SUPERLINK_API_KEY": "sl-environment"}, "sl-option"),
        ((), {"SUPERLINK_API_KEY": "sl-environment"}, "sl-environment"),
    ):
        result = superlink(gateway, command, *arguments, *options, environment=environment)
        assert result.exit_code == 0, result.output
        assert gateway.received[-1].headers["authorization"] == f"Bearer {sent}"
        assert sent not in result.output


@pytest.mark.parametrize("command", ASKING)
def test_help_names_the_environment_and_never_what_is_in_it(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {"SUPERLINK_API_KEY": "sl-secret", "SUPERLINK_URL": "http://here", "COLUMNS": "120"}
    result = CliRunner().invoke(build_app([command]), [command, "--help"], env=environment)
    assert "SUPERLINK_API_KEY" in result.output
    assert "SUPERLINK_URL" in result.output
    assert "sl-secret" not in result.output
    for option in ("--api-key", "--json", "--out", "--timeout"):
        assert option in result.output


def test_an_image_may_come_from_standard_input(gateway: ScriptedGateway) -> None:
    gateway.answer(found())
    result = superlink(gateway, "detect", "-", "dog", stdin=png(17))
    assert result.exit_code == 0, result.output
    assert png(17) in gateway.received[0].body


def test_several_images_keep_their_order_and_the_last_is_drawn_on(gateway: ScriptedGateway, folder: Path) -> None:
    gateway.answer(answered())
    (folder / "first.png").write_bytes(png(17))
    result = superlink(
        gateway, "ask", "IMAGE", "Same?", "--before", "first.png", "--max-tokens", "9", "--max-detections", "3",
        "--temperature", "0.5", "--out", "out.png",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    request = ChatRequest.model_validate_json(gateway.received[0].body)
    parts = gateway.received[0].json["messages"][0]["content"]
    assert [part["type"] for part in parts] == ["image_url", "image_url", "text"]
    assert (request.max_tokens, request.temperature, request.superlink.max_detections) == (9, 0.5, 3)
    with Image.open(folder / "out.png") as picture:
        assert picture.size == (256, 256)


@pytest.mark.parametrize("command", ["detect", "segment", "pose"])
def test_a_phrase_is_taken_as_it_is(gateway: ScriptedGateway, folder: Path, command: str) -> None:
    gateway.answer(found())
    result = superlink(gateway, command, "IMAGE", "--phrase", "the dog, left of the tree", "--max-detections", "2")
    assert result.exit_code == 0, result.output
    body = gateway.received[0].body
    assert b'name="phrase"\r\n\r\nthe dog, left of the tree' in body
    assert b'name="max_detections"\r\n\r\n2' in body
    assert b'name="categories"' not in body


@pytest.mark.parametrize("command", ["detect", "segment", "pose"])
@pytest.mark.parametrize("arguments", [(), ("dog", "--phrase", "the dog")])
def test_what_to_look_for_is_said_in_one_way(
    gateway: ScriptedGateway, folder: Path, command: str, arguments: tuple[str, ...]
) -> None:
    result = superlink(gateway, command, "IMAGE", *arguments)
    assert result.exit_code == 2
    assert "--phrase" in result.stderr
    assert gateway.received == []


def test_a_file_that_cannot_be_written_is_named(gateway: ScriptedGateway, folder: Path) -> None:
    gateway.answer(found())
    (folder / "taken").write_bytes(b"")
    result = superlink(gateway, "detect", "IMAGE", "dog", "--out", "taken/out.png")
    assert result.exit_code == 1
    assert "taken/out.png cannot be written" in result.stderr


def test_what_is_no_image_is_not_drawn_on(gateway: ScriptedGateway) -> None:
    gateway.answer(found())
    result = superlink(gateway, "detect", "-", "dog", "--out", "out.png", stdin=b"text")
    assert result.exit_code == 1
    assert "cannot be drawn on" in result.stderr
