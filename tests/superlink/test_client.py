"""The SDK against a real HTTP server that answers in the gateway's own schema."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gateway.chat_schema import AnswerExtension, ChatCompletionChunk, ChatRequest, Delta
from gateway.detect_schema import CategoryDetection, CategoryResult, DetectResponse
from gateway.results import ImageSize, ObservationResult, ObservedGroupResult, TimingEntry
from superlink import AsyncClient, Client
from superlink.detections import Box
from superlink.results import Finished, ObservationRead, TextDelta, ToolCallChanged
from tests.superlink.conftest import Reply, ScriptedGateway
from tests.superlink.gateway_replies import COMPLETED, PROBLEM, USAGE, chunk, completion, event_stream, png, reply


def test_chat_returns_text_and_what_the_tools_found(gateway: ScriptedGateway) -> None:
    extension = AnswerExtension(
        tool_calls=[COMPLETED],
        timings=[TimingEntry(service="mllm", phase="compute", milliseconds=12.5)],
        image=ImageSize(width=128, height=96),
    )
    gateway.answer(completion("Here is the dog.", extension))
    with Client(gateway.url) as client:
        answer = client.chat(png(), "Where is the dog?")
    assert answer.text == "Here is the dog."
    (found,) = answer.detections
    assert (found.phrase, found.score, found.box) == ("dog", 0.98, Box(x1=10, y1=20, x2=40, y2=60))
    span = answer.phrases[0].span
    assert span is not None
    assert answer.text[span.start : span.end] == "dog"
    assert answer.usage.prompt_tokens_details.image_tokens == 50
    assert answer.timings[0].milliseconds == 12.5
    assert answer.request_id == "r-1"
    assert answer.errors == ()


def test_a_failed_tool_is_part_of_the_answer(gateway: ScriptedGateway) -> None:
    failed = COMPLETED.model_copy(update={"status": "failed", "error": PROBLEM, "phrases": []})
    gateway.answer(completion("Here is the dog.", AnswerExtension(tool_calls=[failed])))
    with Client(gateway.url) as client:
        answer = client.chat(png(), "Where is the dog?")
    assert answer.text == "Here is the dog."
    assert [error.code for error in answer.errors] == ["image_too_large"]


def test_what_the_sdk_sends_fits_the_gateways_schema(gateway: ScriptedGateway) -> None:
    gateway.answer(completion("No.", AnswerExtension()))
    history = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello"}]
    with Client(gateway.url, timeout_s=7) as client:
        client.chat(
            [png(), png()],
            "Are these the same?",
            history=history,
            max_tokens=20,
            max_rounds=1,
            score_threshold=0.4,
            request_id="mine",
            regions=[{"points": [[3, 4]]}],
        )
    (sent,) = gateway.received
    request = ChatRequest.model_validate_json(sent.body)
    assert [message.role for message in request.messages] == ["user", "assistant", "user"]
    assert [part["type"] for part in sent.json["messages"][-1]["content"]] == [
        "image_url",
        "image_url",
        "region",
        "text",
    ]
    assert request.superlink.max_rounds == 1
    assert request.superlink.score_threshold == 0.4
    assert request.max_tokens == 20
    assert sent.headers["x-request-id"] == "mine"
    assert sent.headers["x-request-timeout-s"] == "7"


def test_a_stream_gives_events_and_then_the_whole_answer(gateway: ScriptedGateway) -> None:
    running = COMPLETED.model_copy(update={"status": "running"})
    observation = ObservationResult(position=12, groups=[ObservedGroupResult(phrase="dog", route="[DET]")])
    usage = ChatCompletionChunk(id="chatcmpl-1", created=0, model="superlink-tiny", choices=[], usage=USAGE)
    gateway.answer(
        event_stream(
            chunk(Delta(role="assistant", content="")),
            chunk(Delta(content="Here is the ")),
            chunk(Delta(superlink=AnswerExtension(tool_calls=[running]))),
            chunk(Delta(content="dog\u2028.")),
            chunk(Delta(superlink=AnswerExtension(tool_calls=[COMPLETED]))),
            chunk(Delta(superlink=AnswerExtension(observations=[observation]))),
            chunk(Delta(superlink=AnswerExtension(rounds=1, image=ImageSize(width=128, height=96))), "stop"),
            usage.model_dump_json(exclude_none=True),
        )
    )
    with Client(gateway.url) as client:
        events = list(client.chat(png(), "Where is the dog?", stream=True))
    kinds = [TextDelta, ToolCallChanged, TextDelta, ToolCallChanged, ObservationRead, Finished]
    assert [type(event) for event in events] == kinds
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.answer.text == "Here is the dog\u2028."
    assert [call.status for call in last.answer.tool_calls] == ["completed"]
    assert last.answer.usage.total_tokens == 79
    assert last.answer.image is not None
    assert last.answer.finish_reason == "stop"
    assert gateway.received[0].json["stream"] is True


def test_detect_uploads_the_image_and_returns_boxes_best_first(gateway: ScriptedGateway) -> None:
    gateway.answer(
        reply(
            DetectResponse(
                model="superlink-tiny",
                image=ImageSize(width=128, height=96),
                categories=[
                    CategoryResult(phrase="dog", found=True, score=0.9),
                    CategoryResult(phrase="小狗", found=False, score=0.1),
                ],
                detections=[CategoryDetection(category="dog", category_index=0, bbox=[1, 2, 3, 4], score=0.9)],
                usage=USAGE,
                timings=[],
            )
        )
    )
    image = png()
    with Client(gateway.url) as client:
        found = client.detect(image, ["dog", "小狗"], score_threshold=0.3)
    assert [entry.box for entry in found.detections] == [Box(x1=1, y1=2, x2=4, y2=6)]
    assert [(entry.phrase, entry.found) for entry in found.presence] == [("dog", True), ("小狗", False)]
    (sent,) = gateway.received
    assert sent.headers["content-type"].startswith("multipart/form-data")
    assert image in sent.body
    assert sent.body.count(b'name="categories"') == 2
    assert "小狗".encode() in sent.body
    assert b'name="score_threshold"' in sent.body


def test_segment_returns_a_mask_for_everything_that_is_found(gateway: ScriptedGateway) -> None:
    # The middle column of a picture of 2 x 3 pixels.
    mask = {"size": [2, 3], "counts": "222"}
    detection = {"category": "dog", "category_index": 0, "bbox": [1, 0, 1, 2], "score": 0.9, "segmentation": mask}
    document = {"categories": [{"phrase": "dog", "found": True, "score": 0.9}], "detections": [detection]}
    gateway.answer(Reply(200, json.dumps(document).encode(), {"content-type": "application/json"}))

    with Client(gateway.url) as client:
        (found,) = client.segment(png(), ["dog"], semantic=True).detections

    assert gateway.received[0].path == "/v1/segment"
    assert b'name="semantic"' in gateway.received[0].body
    assert found.mask is not None
    assert list(found.mask.image().tobytes()) == [0, 255, 0] * 2


def test_pose_returns_the_keypoints_of_everything_that_is_found(gateway: ScriptedGateway) -> None:
    keypoints = [{"name": "nose", "x": 1.5, "y": 2, "score": 0.8}, {"name": "left wrist", "x": 4, "y": 5, "score": 0.1}]
    detection = {"category": "person", "category_index": 0, "bbox": [1, 0, 1, 2], "score": 0.9, "keypoints": keypoints}
    category = {"phrase": "person", "found": True, "score": 0.9, "bones": [["nose", "left wrist"]]}
    document = {"categories": [category], "detections": [detection]}
    gateway.answer(Reply(200, json.dumps(document).encode(), {"content-type": "application/json"}))

    with Client(gateway.url) as client:
        (found,) = client.pose(png(), ["person"], keypoints=["nose", "left wrist"]).detections

    assert gateway.received[0].path == "/v1/pose"
    assert gateway.received[0].body.count(b'name="keypoints"') == 2
    assert [(each.name, each.x, each.y, each.score) for each in found.keypoints] == [
        ("nose", 1.5, 2, 0.8),
        ("left wrist", 4, 5, 0.1),
    ]
    assert found.bones == (("nose", "left wrist"),)


def test_what_is_marked_is_segmented_without_names(gateway: ScriptedGateway) -> None:
    gateway.answer(Reply(200, b'{"categories": [], "detections": []}', {"content-type": "application/json"}))

    with Client(gateway.url) as client:
        client.segment(png(), regions=[{"box": [1, 2, 3, 4]}])

    body = gateway.received[0].body
    assert b'name="regions"' in body
    assert b'[{"box": [1, 2, 3, 4]}]' in body
    assert b'name="categories"' not in body


def test_detect_takes_either_categories_or_a_phrase(gateway: ScriptedGateway) -> None:
    with Client(gateway.url) as client:
        with pytest.raises(ValueError, match="either categories or phrase"):
            client.detect(png())
        with pytest.raises(TypeError, match="phrase"):
            client.detect(png(), "dog")
        with pytest.raises(TypeError, match="keypoints"):
            client.pose(png(), ["person"], keypoints="nose")


@pytest.mark.parametrize("kind", ["bytes", "path", "text", "pillow", "numpy"])
def test_images_come_in_any_form(gateway: ScriptedGateway, tmp_path: Path, kind: str) -> None:
    gateway.answer(completion("Red.", AnswerExtension()))
    file = tmp_path / "red.png"
    file.write_bytes(png())
    given = {
        "bytes": png(),
        "path": file,
        "text": str(file),
        "pillow": Image.open(file),
        "numpy": np.asarray(Image.open(file)),
    }[kind]
    with Client(gateway.url) as client:
        client.chat(given, "Which colour?")
    url = gateway.received[0].json["messages"][0]["content"][0]["image_url"]["url"]
    head, _, content = url.partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as arrived:
        assert arrived.getpixel((0, 0)) == (255, 0, 0)


def test_readiness_names_what_is_missing(gateway: ScriptedGateway) -> None:
    services = [{"name": "mllm", "ready": True}, {"name": "detection", "ready": False, "reason": "starting"}]
    gateway.answer(Reply(503, json.dumps({**PROBLEM.model_dump(), "services": services}).encode()))
    with Client(gateway.url) as client:
        readiness = client.ready()
    assert not readiness.ready
    assert readiness.services[1].reason == "starting"


async def test_the_asynchronous_client_does_the_same(gateway: ScriptedGateway) -> None:
    gateway.answer(completion("Here is the dog.", AnswerExtension(tool_calls=[COMPLETED])))
    async with AsyncClient(gateway.url) as client:
        answer = await client.chat(png(), "Where is the dog?")
        assert answer.detections[0].phrase == "dog"
        gateway.answer(event_stream(chunk(Delta(content="Yes.")), chunk(Delta(), "stop")))
        events = [event async for event in client.chat(png(), "Is there a dog?", stream=True)]
        assert isinstance(events[-1], Finished)
        assert events[-1].answer.text == "Yes."
        for find, path in ((client.detect, "detect"), (client.segment, "segment"), (client.pose, "pose")):
            gateway.answer(Reply(200, b'{"categories": [], "detections": []}'))
            assert (await find(png(), ["dog"])).detections == ()
            assert gateway.received[-1].path == f"/v1/{path}"
        gateway.answer(Reply(200, b'{"services": []}'))
        assert (await client.ready()).ready
