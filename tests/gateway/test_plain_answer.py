"""``/v1/answer``: one question, one document with the answer and what the tools found for it."""

import asyncio
import base64
import io
import json
from typing import Any

import grpc
import httpx
import pytest
from api_key_maker import expect_problem
from live_gateway import LiveGateway
from PIL import Image
from request_bodies import data_url, encode_picture
from scripted_workers import (
    detection,
    detections,
    finish,
    group,
    made_images,
    observe,
    text,
    usage,
)

from superlink.errors import SuperlinkError

pytestmark = pytest.mark.surface

ROUND = [text("Here are the dog"), group("dog", 13), text(" and the cat"), group("cat", 25), text("."), usage(9, 4, 7)]


async def ask(gateway: LiveGateway, **body: Any) -> httpx.Response:
    return await gateway.http.post("/v1/answer", json={"prompt": "What is here?", **body})


async def test_the_answer_is_a_text_and_what_was_found_in_coco_boxes(gateway: LiveGateway, png: bytes) -> None:
    gateway.workers.mllm.rounds = [[*ROUND, finish()]]
    gateway.workers.detection.script = lambda request: [
        detections([detection(0, 0.5), detection(0, 0.9, (0, 0, 10.5, 20))], 2, absent=[1])
    ]

    response = await ask(gateway, image=data_url(png))

    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["text"] == "Here are the dog and the cat."
    assert (answer["model"], answer["finish_reason"]) == ("superlink-scripted", "stop")
    assert answer["image"] == {"width": 200, "height": 100}
    assert answer["categories"] == [
        {"phrase": "dog", "found": True, "score": 0.9, "tool": "detection", "span": {"start": 13, "end": 16}},
        {"phrase": "cat", "found": False, "score": 0.1, "tool": "detection", "span": {"start": 25, "end": 28}},
    ]
    assert answer["detections"] == [
        {"category": "dog", "category_index": 0, "bbox": [0.0, 0.0, 10.5, 20.0], "score": 0.9},
        {"category": "dog", "category_index": 0, "bbox": [20.0, 10.0, 40.0, 40.0], "score": 0.5},
    ]
    assert (answer["images"], answer["failures"]) == ([], [])
    assert answer["usage"]["prompt_tokens_details"] == {"image_tokens": 4}
    assert ("gateway", "total") in {(entry["service"], entry["phase"]) for entry in answer["timings"]}
    assert "gateway_total;dur=" in response.headers["server-timing"]
    assert not {"overlay", "coco"} & answer.keys()


async def test_every_kind_of_body_asks_the_same(gateway: LiveGateway, png: bytes) -> None:
    prompt = "What is in region 1?"
    regions = [{"points": [[40, 60]]}]
    options = {"max_rounds": 0, "score_threshold": 0.25, "max_detections": 3, "max_tokens": 20, "seed": 5}
    texts = {name: str(value) for name, value in options.items()}
    fields = {"prompt": prompt, "regions": json.dumps(regions), "drawing": '{"steps": 3}', **texts}
    attempts: list[dict[str, Any]] = [
        {"json": {"prompt": prompt, "image": data_url(png), "regions": regions, "drawing": {"steps": 3}, **options}},
        {"files": {"image": png}, "data": fields},
        {"content": png, "headers": {"content-type": "image/png"}, "params": fields},
    ]
    for attempt in attempts:
        gateway.workers.mllm.reset()
        response = await gateway.http.post("/v1/answer", **attempt)
        assert response.status_code == 200, response.text
        [request] = gateway.workers.mllm.generate_requests
        [message] = request.messages
        assert [part.WhichOneof("part") for part in message.parts] == ["image", "region", "text"]
        assert (message.parts[0].image.encoded, message.parts[2].text) == (png, prompt)
        assert (request.sampling.max_new_tokens, request.sampling.seed) == (20, 5)


async def test_several_images_or_none_may_be_asked_about(gateway: LiveGateway, png: bytes) -> None:
    jpeg = encode_picture("JPEG")
    several: list[dict[str, Any]] = [
        {"json": {"prompt": "Which?", "image": [data_url(png), data_url(jpeg, "image/jpeg")]}},
        {"files": [("image", png), ("image", jpeg)], "data": {"prompt": "Which?"}},
    ]
    for attempt in several:
        gateway.workers.mllm.reset()
        assert (await gateway.http.post("/v1/answer", **attempt)).status_code == 200
        parts = gateway.workers.mllm.generate_requests[0].messages[0].parts
        assert [part.image.encoded for part in parts[:2]] == [png, jpeg]
    for attempt in ({"json": {"prompt": "Hi"}}, {"json": {"prompt": "Hi", "image": []}}):
        response = await gateway.http.post("/v1/answer", **attempt)
        assert response.status_code == 200, response.text
        assert response.json()["image"] is None
    many = {"prompt": "Which?", "image": [data_url(png)] * 5}
    expect_problem(await gateway.http.post("/v1/answer", json=many), 400, "too_many_images")


async def test_a_tool_that_fails_is_told_beside_the_text(gateway: LiveGateway, png: bytes) -> None:
    full = SuperlinkError("queue_full", "Full.", status=grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_ms=1500)
    gateway.workers.detection.script = lambda request: [full]
    gateway.workers.mllm.rounds = [[*ROUND, observe()], [text(" I could not look."), finish()]]

    answer = (await ask(gateway, image=data_url(png))).json()

    assert answer["text"].endswith("I could not look.")
    assert (answer["categories"], answer["detections"]) == ([], [])
    [failure] = answer["failures"]
    assert (failure["tool"], failure["phrases"]) == ("detection", ["dog", "cat"])
    error = failure["error"]
    assert (error["code"], error["service"], error["hop"]) == ("queue_full", "detection", "orchestrator>detection")
    assert (error["status"], error["retryable"], error["retry_after_ms"]) == (429, True, 1500)
    # The model knew it before it went on.
    read = gateway.workers.mllm.generate_requests[1].messages[-1].parts[-1].observation
    assert [each.failed for each in read.groups] == [True, True]


async def test_images_that_were_made_name_the_words_that_asked_for_them(gateway: LiveGateway) -> None:
    gateway.workers.mllm.rounds = [[text("A cat"), group("a cat", 0, "[GEN]"), text("."), finish()]]
    gateway.workers.diffusion.script = lambda request: [made_images(b"an image")]

    answer = (await ask(gateway, drawing={"seed": 3})).json()

    assert answer["images"] == [
        {
            "prompt": "a cat",
            "b64_json": base64.b64encode(b"an image").decode(),
            "width": 200,
            "height": 100,
            "seed": 0,
        }
    ]
    assert gateway.workers.diffusion.requests[0].diffusion.seed == 3


async def test_names_of_keypoints_are_no_categories(gateway: LiveGateway, png: bytes) -> None:
    words = [text("The person"), group("person", 4, "[POSE_OBJECT]"), text("'s nose"), group("nose", 13, "[POSE]")]
    gateway.workers.mllm.rounds = [[*words, text("."), finish()]]

    answer = (await ask(gateway, image=data_url(png))).json()

    assert [each["phrase"] for each in answer["categories"]] == ["person"]
    [found] = answer["detections"]
    assert [point["name"] for point in found["keypoints"]] == ["nose"]


async def test_the_picture_of_the_answer_is_one_of_the_last_image(gateway: LiveGateway, png: bytes) -> None:
    gateway.workers.mllm.rounds = [[*ROUND, finish()]]
    other = encode_picture(size=(60, 40))

    answer = (await ask(gateway, image=[data_url(other), data_url(png)], overlay=True, coco=True)).json()

    drawn = Image.open(io.BytesIO(base64.b64decode(answer["overlay"].partition(",")[2])))
    assert drawn.width / drawn.height == 2
    assert [each["name"] for each in answer["coco"]["categories"]] == ["dog", "cat"]
    assert len(answer["coco"]["annotations"]) == 2
    headers = {"accept": "image/webp"}
    body = {"prompt": "What is here?", "image": data_url(png)}
    picture = await gateway.http.post("/v1/answer", json=body, headers=headers)
    assert (picture.status_code, picture.headers["content-type"]) == (200, "image/webp")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"prompt": None}, "invalid_request"),
        ({"prompt": ""}, "invalid_request"),
        ({"prompt": "  "}, "empty_prompt"),
        ({"prompt": "x" * 501}, "prompt_too_long"),
        ({"messages": []}, "invalid_request"),
        ({"image": 5}, "invalid_request"),
        ({"masks": "svg"}, "invalid_request"),
        ({"overlay": "true"}, "invalid_request"),
        ({"overlay": True}, "no_image"),
        ({"max_tokens": 0}, "invalid_request"),
        ({"drawing": {"seeds": 1}}, "invalid_request"),
        ({"regions": [{"points": [[1, 1]]}]}, "region_without_image"),
    ],
)
async def test_bad_questions_say_what_is_wrong(gateway: LiveGateway, body: dict[str, Any], code: str) -> None:
    expect_problem(await ask(gateway, **body), 400, code)
    assert not gateway.workers.mllm.generate_requests


async def test_a_picture_needs_an_image_to_draw_on(gateway: LiveGateway) -> None:
    response = await gateway.http.post("/v1/answer", json={"prompt": "Hi"}, headers={"accept": "image/png"})
    expect_problem(response, 400, "no_image")
    assert not gateway.workers.mllm.generate_requests


@pytest.mark.faults
async def test_a_client_that_leaves_cancels_the_model(gateway: LiveGateway, png: bytes) -> None:
    gateway.workers.mllm.rounds = [[text("Once"), asyncio.Event()]]
    asking = asyncio.create_task(ask(gateway, image=data_url(png)))
    await asyncio.wait_for(gateway.workers.mllm.started.wait(), 10)
    asking.cancel()
    await asyncio.wait_for(gateway.workers.mllm.cancelled.wait(), 10)
