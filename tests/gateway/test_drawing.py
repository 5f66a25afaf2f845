"""Drawing and editing over REST, and images in answers."""

import asyncio
import base64
import io
import json
from typing import Any

import grpc
import httpx
import numpy as np
import openai
import pytest
from live_gateway import LiveGateway
from PIL import Image
from request_bodies import chat_body, data_url, encode_picture
from scripted_workers import IMAGE_HEIGHT, IMAGE_WIDTH, finish, group, made_images, observe, progress, text

from superlink.errors import SuperlinkError
from superlink.run_length import decode_mask

CAT = encode_picture(size=(32, 16))
BLUE = encode_picture(size=(48, 16))


def decoded(b64_json: str) -> bytes:
    return base64.b64decode(b64_json)


def mask_file(
    size: tuple[int, int] = (IMAGE_WIDTH, IMAGE_HEIGHT), hole: tuple[int, int, int, int] | None = None
) -> bytes:
    mask = Image.new("RGBA", size, (0, 0, 0, 255))
    if hole is not None:
        mask.paste((0, 0, 0, 0), hole)
    buffer = io.BytesIO()
    mask.save(buffer, format="PNG")
    return buffer.getvalue()


async def generate(gateway: LiveGateway, **body: Any) -> httpx.Response:
    return await gateway.http.post("/v1/images/generations", json=body)


async def edit(gateway: LiveGateway, files: dict[str, Any], **fields: Any) -> httpx.Response:
    return await gateway.http.post("/v1/images/edits", files=files, data=fields)


async def test_generations_have_openais_shape(gateway: LiveGateway) -> None:
    gateway.workers.diffusion.script = lambda request: [progress(1, 1), made_images(CAT, BLUE)]

    response = await generate(
        gateway, prompt="a cat", n=2, size="128x64", superlink={"seed": 7, "steps": 5, "guidance": 2.5}
    )

    assert response.status_code == 200
    answer = response.json()
    assert [decoded(each["b64_json"]) for each in answer["data"]] == [CAT, BLUE]
    assert [each["seed"] for each in answer["data"]] == [0, 1]
    assert answer["created"] > 0
    assert answer["usage"]["input_tokens"] == 20
    assert ("gateway", "total") in {(entry["service"], entry["phase"]) for entry in answer["timings"]}
    assert "diffusion_wall;dur=" in response.headers["server-timing"]
    [request] = gateway.workers.diffusion.requests
    options = request.diffusion
    assert (options.seed, options.steps, options.guidance, options.count) == (7, 5, 2.5, 2)
    assert (options.width, options.height) == (128, 64)
    assert request.groups[0].phrase == "a cat"


async def test_what_is_unset_is_left_to_the_tool(gateway: LiveGateway) -> None:
    await generate(gateway, prompt="a cat", size="auto", quality="high", user="me", partial_images=2)

    [request] = gateway.workers.diffusion.requests
    assert not request.diffusion.ListFields()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"response_format": "url"}, "unsupported_parameter", "b64_json"),
        ({"output_format": "webp"}, "unsupported_parameter", "output_format"),
        ({"background": "transparent"}, "unsupported_parameter", "background"),
        ({"prompt": " "}, "empty_prompt", "what to draw"),
        ({"prompt": "x" * 501}, "prompt_too_long", "500"),
        ({"n": 5}, "invalid_request", "n: "),
        ({"size": "large"}, "invalid_request", "size"),
        ({"style": "vivid"}, "unsupported_parameter", "style"),
        ({"superlink": {"steps": 0}}, "invalid_request", "superlink.steps"),
        ({"superlink": {"guidance": 31}}, "invalid_request", "superlink.guidance"),
        ({"superlink": {"sede": 1}}, "invalid_request", "superlink.sede"),
    ],
)
async def test_what_it_cannot_do_is_refused(
    gateway: LiveGateway, options: dict[str, Any], code: str, words: str
) -> None:
    response = await generate(gateway, **{"prompt": "a cat", **options})

    assert (response.status_code, response.json()["code"]) == (400, code)
    assert words in response.json()["detail"]


async def test_a_stream_shows_progress_and_then_the_images(gateway: LiveGateway) -> None:
    gateway.workers.diffusion.script = lambda request: [progress(1, 2), progress(2, 2), made_images(CAT)]

    response = await generate(gateway, prompt="a cat", stream=True)

    assert response.headers["content-type"].startswith("text/event-stream")
    *blocks, end = response.text.strip().split("\n\n")
    assert end == "data: [DONE]"
    names, documents = zip(*(block.removeprefix("event: ").split("\ndata: ") for block in blocks), strict=True)
    events = [json.loads(document) for document in documents]
    assert list(names) == [event["type"] for event in events]
    assert [(event["done"], event["total"]) for event in events[:2]] == [(1, 2), (2, 2)]
    assert events[2]["type"] == "image_generation.completed"
    assert decoded(events[2]["b64_json"]) == CAT


@pytest.mark.faults
async def test_a_failure_has_a_status_before_the_first_event_and_ends_the_stream_after_it(
    gateway: LiveGateway,
) -> None:
    full = SuperlinkError("queue_full", "Full.", status=grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_ms=700)
    gateway.workers.diffusion.script = lambda request: [full]
    for stream in (False, True):
        response = await generate(gateway, prompt="a cat", stream=stream)
        assert (response.status_code, response.json()["code"]) == (429, "queue_full")

    gateway.workers.diffusion.script = lambda request: [progress(1, 2), full]
    response = await generate(gateway, prompt="a cat", stream=True)
    assert response.status_code == 200
    failed = json.loads(response.text.strip().split("\n\n")[-2].removeprefix("data: "))
    assert (failed["error"]["code"], failed["error"]["service"]) == ("queue_full", "diffusion")


@pytest.mark.faults
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels_the_drawing(gateway: LiveGateway, stream: bool) -> None:
    gateway.workers.diffusion.script = lambda request: [progress(1, 9), asyncio.Event()]
    asking = asyncio.create_task(generate(gateway, prompt="a cat", stream=stream))
    await asyncio.wait_for(gateway.workers.diffusion.started.wait(), 5)

    asking.cancel()

    await asyncio.wait_for(gateway.workers.diffusion.cancelled.wait(), 5)


async def test_an_upload_is_edited_where_the_mask_is_transparent(gateway: LiveGateway, png: bytes) -> None:
    gateway.workers.diffusion.script = lambda request: [made_images(BLUE)]
    files = {"image": ("in.png", png, "image/png"), "mask": ("mask.png", mask_file(hole=(10, 20, 30, 60)), "image/png")}

    response = await edit(gateway, files, prompt="make it blue", n="1", **{"superlink[image_guidance]": "1.25"})

    assert response.status_code == 200
    assert decoded(response.json()["data"][0]["b64_json"]) == BLUE
    [request] = gateway.workers.diffusion.requests
    assert (request.image.encoded, request.groups[0].route) == (png, "[EDIT]")
    assert request.diffusion.image_guidance == 1.25
    region = request.groups[0].region.mask
    meant = np.asarray(decode_mask((region.height, region.width), region.counts.decode()))
    expected = np.zeros((IMAGE_HEIGHT, IMAGE_WIDTH), dtype=np.uint8)
    expected[20:60, 10:30] = 255
    assert np.array_equal(meant, expected)


async def test_an_edit_as_json_has_data_urls(gateway: LiveGateway, png: bytes) -> None:
    mask = data_url(mask_file(hole=(0, 0, 5, 5)))
    body = {"image": data_url(png), "prompt": "make it blue", "mask": mask, "stream": True}

    response = await gateway.http.post("/v1/images/edits", json=body)

    assert "event: image_edit.completed\n" in response.text
    [request] = gateway.workers.diffusion.requests
    assert request.image.encoded == png
    assert request.groups[0].HasField("region")


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (mask_file(size=(20, 10), hole=(0, 0, 5, 5)), "20 x 10"),
        (mask_file(), "transparent"),
        (encode_picture("JPEG"), "transparent"),
    ],
)
async def test_a_mask_that_says_nothing_is_refused(gateway: LiveGateway, png: bytes, mask: bytes, words: str) -> None:
    response = await edit(gateway, {"image": ("in.png", png), "mask": ("mask.png", mask)}, prompt="blue")

    assert (response.status_code, response.json()["code"]) == (400, "invalid_mask")
    assert words in response.json()["detail"]


async def test_an_edit_needs_one_image(gateway: LiveGateway, png: bytes) -> None:
    response = await edit(gateway, {"mask": ("mask.png", png)}, prompt="blue")

    assert (response.status_code, response.json()["code"]) == (400, "image_missing")


async def test_openais_client_draws_and_edits(gateway: LiveGateway, png: bytes) -> None:
    gateway.workers.diffusion.script = lambda request: [made_images(CAT)]
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none") as client:
        drawn = await client.images.generate(prompt="a cat", n=1, response_format="b64_json")
        edited = await client.images.edit(image=("in.png", png), prompt="blue", extra_body={"superlink": {"seed": 3}})
        stream = await client.images.generate(prompt="a cat", stream=True)
        events = [event.type async for event in stream]
        with pytest.raises(openai.BadRequestError) as refused:
            await client.images.generate(prompt="a cat", response_format="url")

    assert drawn.data is not None
    assert decoded(drawn.data[0].b64_json or "") == CAT
    assert edited.data is not None
    assert gateway.workers.diffusion.requests[1].diffusion.seed == 3
    assert events == ["image_generation.completed"]
    assert "b64_json" in refused.value.response.json()["detail"]


async def test_an_answer_holds_the_images_that_it_drew(gateway: LiveGateway) -> None:
    gateway.workers.diffusion.script = lambda request: [progress(1, 2), made_images(CAT, BLUE, groups=[0, 1])]
    gateway.workers.mllm.rounds = [
        [text("A cat and a dog."), group("cat", 2, "[GEN]"), group("dog", 12, "[GEN]"), finish()]
    ]
    body = chat_body("Draw a cat and a dog", superlink={"drawing": {"seed": 4}})

    answer = (await gateway.http.post("/v1/chat/completions", json=body)).json()
    stream = (await gateway.http.post("/v1/chat/completions", json={**body, "stream": True})).text

    [call] = answer["choices"][0]["message"]["superlink"]["tool_calls"]
    assert (call["tool"], call["status"]) == ("diffusion", "completed")
    assert "progress" not in call
    assert [decoded(phrase["images"][0]["b64_json"]) for phrase in call["phrases"]] == [CAT, BLUE]
    assert call["phrases"][1]["span"] == {"start": 12, "end": 15}
    assert gateway.workers.diffusion.requests[0].diffusion.seed == 4
    chunks = [json.loads(line.removeprefix("data: ")) for line in stream.splitlines() if line.startswith("data: {")]
    calls = [
        call
        for chunk in chunks
        for choice in chunk["choices"]
        for call in choice["delta"].get("superlink", {}).get("tool_calls", [])
    ]
    assert [(call["status"], call.get("progress")) for call in calls] == [
        ("running", None),
        ("running", {"done": 1, "total": 2}),
        ("completed", None),
    ]
    assert decoded(calls[-1]["phrases"][0]["images"][0]["b64_json"]) == CAT


async def test_the_next_turn_edits_what_an_answer_made(gateway: LiveGateway, png: bytes) -> None:
    gateway.workers.mllm.rounds = [[text("Done: blue."), group("blue", 6, "[EDIT]"), observe()]]
    made = iter([CAT, BLUE, BLUE])
    gateway.workers.diffusion.script = lambda request: [made_images(next(made))]
    body = chat_body("Make it blue", png)
    sources = []

    for words in ("Now red", "Now green", "Now black"):
        answer = (await gateway.http.post("/v1/chat/completions", json=body)).json()["choices"][0]
        assert answer["finish_reason"] == "stop"
        body["messages"] += [answer["message"], {"role": "user", "content": words}]
        sources.append(gateway.workers.diffusion.requests[-1].image.encoded)

    assert sources == [png, CAT, BLUE]
    read = gateway.workers.mllm.generate_requests[-1].messages
    # The user's own image and the last one that was made; more would soon be too many.
    assert [part.image.encoded for message in read for part in message.parts if part.HasField("image")] == [png, BLUE]
    assert [part.WhichOneof("part") for part in read[1].parts] == ["text", "routed_phrase", "text"]


async def test_an_image_in_the_content_of_an_answer_counts_too(gateway: LiveGateway) -> None:
    gateway.workers.mllm.rounds = [[group("blue", None, "[EDIT]"), finish()]]
    content = [{"type": "text", "text": "Here."}, {"type": "image_url", "image_url": {"url": data_url(CAT)}}]
    body = {
        "messages": [
            {"role": "user", "content": "Draw a cat"},
            {"role": "assistant", "content": content},
            {"role": "user", "content": "Make it blue"},
        ]
    }

    response = await gateway.http.post("/v1/chat/completions", json=body)

    assert response.json()["choices"][0]["message"]["superlink"]["image"] == {"width": 32, "height": 16}
    assert gateway.workers.diffusion.requests[0].image.encoded == CAT
