"""The command: help that teaches, clear errors, and what it prints and writes."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from gateway.chat_schema import AnswerExtension, Delta
from superlink.cli.main import OWN_COMMANDS, build_app
from superlink.cli.options import parse_settings
from superlink.cli.rooms import add_room_commands, room_commands
from superlink.configuration import ConfigurationError
from tests.superlink.conftest import Reply, ScriptedGateway
from tests.superlink.gateway_replies import COMPLETED, chunk, event_stream

pytestmark = pytest.mark.surface


def superlink(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "superlink", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "scene.png"
    Image.new("RGB", (64, 64), "green").save(file)
    return file


@pytest.mark.parametrize("command", sorted(OWN_COMMANDS))
def test_every_help_teaches_with_an_example(command: str) -> None:
    result = CliRunner().invoke(build_app([command]), [command, "--help"])
    assert result.exit_code == 0
    assert f"Example: superlink {command}" in " ".join(result.output.split())


def test_the_list_of_commands_holds_those_of_the_rooms() -> None:
    result = superlink("--help")
    assert result.returncode == 0
    for name in (*OWN_COMMANDS, *(entry.name for entry in room_commands())):
        assert name in result.stdout


def test_a_room_that_cannot_be_imported_says_which_extra_to_install() -> None:
    app = typer.Typer()
    app.command("other")(lambda: None)
    entry = EntryPoint("train", "no_such_room.commands:train [trainer]", "superlink.commands")
    add_room_commands(app, [entry])
    result = CliRunner().invoke(app, ["train", "--any", "option"])
    assert result.exit_code == 1
    assert "'.[trainer]'" in result.stderr


def test_ask_prints_the_answer_and_the_boxes_and_writes_files(
    gateway: ScriptedGateway, picture: Path, tmp_path: Path
) -> None:
    gateway.answer(
        event_stream(
            chunk(Delta(content="Here is the dog.")),
            chunk(Delta(superlink=AnswerExtension(tool_calls=[COMPLETED]))),
            chunk(Delta(), "stop"),
        )
    )
    out, written = tmp_path / "new" / "annotated.png", tmp_path / "answer.json"
    arguments = ["ask", str(picture), "Where is the dog?", "--url", gateway.url, "--out", str(out)]
    result = superlink(*arguments, "--json", str(written))
    assert result.returncode == 0, result.stderr
    assert "Here is the dog." in result.stdout
    assert "0.98" in result.stdout
    with Image.open(out) as annotated:
        assert annotated.size == (256, 256)
    answer = json.loads(written.read_text())
    assert answer["text"] == "Here is the dog."
    assert answer["tool_calls"][0]["phrases"][0]["detections"][0]["bbox"] == [10, 20, 30, 40]


def test_detect_says_what_was_not_found(gateway: ScriptedGateway, picture: Path) -> None:
    document = {"model": "m", "categories": [{"phrase": "cat", "found": False, "score": 0.04}], "detections": []}
    gateway.answer(Reply(200, json.dumps(document).encode()))
    result = superlink("detect", str(picture), "cat", "--url", gateway.url)
    assert result.returncode == 0, result.stderr
    assert "cat: not found" in result.stdout


def test_pose_prints_where_keypoints_are(gateway: ScriptedGateway, picture: Path) -> None:
    keypoints = [{"name": "nose", "x": 3, "y": 4, "score": 0.8}]
    detection = {"category": "person", "bbox": [1, 2, 3, 4], "score": 0.9, "keypoints": keypoints}
    document = {"categories": [{"phrase": "person", "found": True, "score": 0.9}], "detections": [detection]}
    gateway.answer(Reply(200, json.dumps(document).encode()))

    result = superlink("pose", str(picture), "person", "--keypoints", "nose", "--url", gateway.url)

    assert result.returncode == 0, result.stderr
    assert "person 1: nose 3,4 (0.80)" in result.stdout


def test_segment_takes_marks_instead_of_names(gateway: ScriptedGateway, picture: Path) -> None:
    gateway.answer(Reply(200, b'{"model": "m", "categories": [], "detections": []}'))

    result = superlink(
        "segment", str(picture), "--point", "3,4.5", "--box", "1,2,30,40", "--point", "5,6", "--url", gateway.url
    )

    assert result.returncode == 0, result.stderr
    assert b'[{"points": [[3.0, 4.5]]}, {"points": [[5.0, 6.0]]}, {"box": [1.0, 2.0, 30.0, 40.0]}]' in (
        gateway.received[0].body
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--point", "3"), "--point 3: expected 2 numbers"),
        (("--box", "1,2,a,4"), "--box 1,2,a,4: expected 4 numbers"),
        ((), "Say what to cut out"),
    ],
)
def test_marks_that_are_no_numbers_are_named(arguments: tuple[str, ...], message: str, picture: Path) -> None:
    result = superlink("segment", str(picture), *arguments, "--url", "http://127.0.0.1:9")
    assert result.returncode == 2
    assert message in " ".join(result.stderr.split())


def test_a_problem_is_one_clear_line_and_not_a_traceback(gateway: ScriptedGateway, picture: Path) -> None:
    document = {"code": "unsupported_image", "detail": "Not a PNG.", "service": "gateway", "request_id": "r-9"}
    gateway.answer(Reply(415, json.dumps(document).encode()))
    result = superlink("ask", str(picture), "What?", "--url", gateway.url)
    assert result.returncode == 1
    assert "unsupported_image [gateway]: Not a PNG. (request r-9)" in result.stderr
    assert "Traceback" not in result.stderr


def test_without_a_stack_ask_says_how_to_start_one(picture: Path) -> None:
    result = superlink("ask", str(picture), "What?", "--url", "http://127.0.0.1:9")
    assert result.returncode == 1
    assert "superlink up" in result.stderr


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    result = superlink("ask", str(tmp_path / "no.png"), "What?", "--url", "http://127.0.0.1:9")
    assert result.returncode == 2
    assert "no.png cannot be read" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--profile", "tinny"), "Known profiles: tiny"),
        (("--set", "gateway.prot=1"), "Did you mean 'port'?"),
        (("--set", "gateway"), "expected KEY=VALUE"),
    ],
)
def test_a_wrong_configuration_is_answered_with_what_would_be_right(arguments: tuple[str, str], message: str) -> None:
    result = superlink("up", *arguments)
    assert result.returncode == 2
    assert message in result.stderr


def test_up_with_missing_weights_says_where_they_should_be(tmp_path: Path) -> None:
    result = superlink("up", "--free-ports", "--set", f"mllm.weights={tmp_path}")
    assert result.returncode == 1
    assert f"mllm: no {tmp_path / 'config.json'}" in result.stderr


def test_settings_are_read_as_yaml_values() -> None:
    assert parse_settings(["gateway.port=9000", "name=other"]) == {"gateway.port": 9000, "name": "other"}
    with pytest.raises(ConfigurationError):
        parse_settings(["=1"])


def test_status_of_a_stack_that_is_not_ready(gateway: ScriptedGateway) -> None:
    services = [{"name": "detection", "ready": False, "reason": "starting"}]
    gateway.answer(Reply(503, json.dumps({"services": services}).encode()))
    result = superlink("status", "--url", gateway.url)
    assert result.returncode == 1
    assert "starting" in result.stdout
