"""Every example of docs/sdk.md runs as it stands there."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from gateway import examples
from gateway.chat_schema import AnswerExtension, Delta
from gateway.results import PhraseResult, Span, ToolCallResult
from superlink.run_length import encode_mask
from tests.superlink.conftest import Received, Reply, ScriptedGateway
from tests.superlink.gateway_replies import chunk, completion, event_stream, png

pytestmark = pytest.mark.surface

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sdk.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
SIDE = 64
# Of the chat answers below.
TEXT = "Here is the dog."


def answer_as_a_gateway(received: Received) -> Reply:
    if received.path == "/v1/chat/completions":
        extension = chat_extension()
        if "response_format" in received.json:
            return completion('{"count": 1}', extension.model_copy(update={"draft": TEXT}))
        if received.json.get("stream"):
            return event_stream(chunk(Delta(content=TEXT)), chunk(Delta(superlink=extension)), chunk(Delta(), "stop"))
        return completion(TEXT, extension)
    if received.path == "/v1/images/edits":
        made = {"b64_json": base64.b64encode(png()).decode(), "width": 8, "height": 8, "seed": 3}
        return Reply(200, json.dumps({"model": "m", "data": [made]}).encode())
    if received.path.startswith(("/v1/files", "/v1/batches")):
        return batch_reply(received.path)
    # Detection and segmentation.
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (10, 10, 30, 30))
    dog: dict[str, Any] = {"category": "dog", "category_index": 0, "bbox": [10, 10, 20, 20], "score": 0.9}
    if received.path == "/v1/segment":
        dog["segmentation"] = {"size": [SIDE, SIDE], "counts": encode_mask(mask)}
    categories = [{"phrase": name, "found": name == "dog", "score": 0.9} for name in ("dog", "cat")]
    size = {"width": SIDE, "height": SIDE}
    return Reply(200, json.dumps({"image": size, "categories": categories, "detections": [dog]}).encode())


def batch_reply(path: str) -> Reply:
    if path.endswith("/content"):
        body = {"image": {"width": SIDE, "height": SIDE}, "categories": [], "detections": []}
        response = {"status_code": 200, "request_id": "1", "body": body}
        rows = [{"id": name, "custom_id": name, "response": response, "error": None} for name in ("scene-1", "scene-2")]
        return Reply(200, b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    if path == "/v1/files":
        return Reply(200, json.dumps(examples.FILE).encode())
    counts = {"total": 2, "completed": 2, "failed": 0}
    over = {**examples.BATCH, "status": "completed", "output_file_id": examples.FILE_ID, "request_counts": counts}
    return Reply(200, json.dumps(over).encode())


def chat_extension() -> AnswerExtension:
    phrase = PhraseResult.model_validate(
        {
            "phrase": "dog",
            "span": Span(start=12, end=15),
            "route": "[DET]",
            "found": True,
            "score": 0.9,
            "detections": [{"bbox": [10, 10, 20, 20], "score": 0.9}],
        }
    )
    call = ToolCallResult(id="call_0", tool="detection", status="completed", phrases=[phrase])
    return AnswerExtension.model_validate({"tool_calls": [call], "image": {"width": SIDE, "height": SIDE}})


def test_the_page_has_examples() -> None:
    assert len(BLOCKS) >= 8


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block-{number}" for number in range(1, len(BLOCKS) + 1)])
def test_an_example_runs(
    block: str,
    gateway: ScriptedGateway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gateway.decide = answer_as_a_gateway
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUPERLINK_URL", gateway.url)
    for name in ("scene.png", "other.png"):
        Image.new("RGB", (SIDE, SIDE), "green").save(name)
    code = block.replace('"http://127.0.0.1:8080"', repr(gateway.url))

    exec(compile(code, str(PAGE), "exec"), {"__name__": "__main__"})  # noqa: S102 (the page's own code)

    assert gateway.received
    said = capsys.readouterr().out
    assert "again in" not in said
    if "annotations.json" in block:
        annotations = json.loads((tmp_path / "annotations.json").read_text())["annotations"]
        assert [entry["id"] for entry in annotations] == [1, 2]
        assert (tmp_path / "dogs-2.png").is_file()
    if "annotated.png" in block:
        assert TEXT in said
        with Image.open(tmp_path / "annotated.png") as picture:
            assert picture.width == SIDE * 4
