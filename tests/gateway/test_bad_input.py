"""Everything that clients get wrong is answered with a problem document, and the gateway lives on."""

import asyncio
import io
import json
import struct
import zlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from live_gateway import LiveGateway, live_gateway
from PIL import Image
from request_bodies import chat_body, data_url, encode_picture

from superlink.errors import SuperlinkError

pytestmark = [pytest.mark.faults, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_gateway() -> AsyncIterator[LiveGateway]:
    async with live_gateway() as running:
        yield running


@pytest.fixture
def gateway(shared_gateway: LiveGateway) -> LiveGateway:
    """One gateway for the whole module: that it lives on after all that is part of the promise."""
    shared_gateway.workers.reset()
    return shared_gateway


def png_header(width: int, height: int) -> bytes:
    """The smallest file that claims to be a PNG of this size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 64)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def animated_webp() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 200)]
    frames[0].save(buffer, format="WEBP", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


BAD_IMAGES = [
    pytest.param(b"This is a text file, not an image.", 415, "unsupported_image", id="text"),
    pytest.param(b"GIF89a" + b"\0" * 64, 415, "unsupported_image", id="gif"),
    pytest.param(b"", 400, "image_missing", id="empty"),
    pytest.param(png_header(30_000, 30_000), 413, "image_too_large", id="900 megapixels"),
    pytest.param(png_header(9_000, 9_000), 413, "image_too_large", id="81 megapixels"),
    pytest.param(png_header(17_000, 10), 413, "image_too_large", id="long side"),
    pytest.param(b"\0" * (11 * 1024 * 1024), 413, "image_too_large", id="11 MB of zeros"),
    pytest.param(animated_webp(), 400, "image_animated", id="animation"),
]


def expect_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert (response.status_code, response.json().get("code")) == (status, code)
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["status"] == status
    assert problem["type"].endswith(code)
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem["title"]
    assert problem["detail"]
    assert problem["message"] == problem["detail"]
    assert problem["hop"].endswith(f">{problem['service']}")
    assert isinstance(problem["retryable"], bool)
    return problem


@pytest.mark.parametrize(("content", "status", "code"), BAD_IMAGES)
async def test_bad_images_are_refused_before_any_worker_is_asked(
    gateway: LiveGateway, content: bytes, status: int, code: str
) -> None:
    chat = await gateway.http.post("/v1/chat/completions", json=chat_body("Where?", content))
    upload = await gateway.http.post("/v1/detect", files={"image": content}, data={"categories": "dog"})
    inline = await gateway.http.post("/v1/detect", json={"image": data_url(content), "categories": ["dog"]})

    for response in (chat, upload, inline):
        expect_problem(response, status, code)
    assert not gateway.workers.mllm.generate_requests
    assert not gateway.workers.mllm.link_requests


async def test_a_jpeg_cut_off_in_its_header_is_refused(gateway: LiveGateway) -> None:
    picture = encode_picture("JPEG")

    response = await gateway.http.post("/v1/chat/completions", json=chat_body("Where?", picture[:100]))

    expect_problem(response, 400, "image_corrupt")


async def test_a_jpeg_cut_off_in_its_pixels_is_refused_by_the_worker(gateway: LiveGateway) -> None:
    """Only decoding shows it; the worker's word comes through."""
    truncated = SuperlinkError("image_truncated", "The file ends early.", status=grpc.StatusCode.INVALID_ARGUMENT)
    gateway.workers.mllm.rounds = [[truncated]]
    gateway.workers.mllm.link_error = truncated
    picture = encode_picture("JPEG")[:-100]

    chat = await gateway.http.post("/v1/chat/completions", json=chat_body("Where?", picture))
    detect = await gateway.http.post("/v1/detect", files={"image": picture}, data={"categories": "dog"})

    for response in (chat, detect):
        problem = expect_problem(response, 400, "image_truncated")
        assert problem["service"] == "mllm"


@pytest.mark.parametrize("path", ["/v1/detect", "/v1/chat/completions"])
async def test_a_body_of_20_megabytes_is_refused_unread(gateway: LiveGateway, path: str) -> None:
    zeros = b"\0" * 20_000_000

    response = await gateway.http.post(path, files={"image": zeros}, data={"categories": "dog"})

    problem = expect_problem(response, 413, "body_too_large")
    assert "16,777,216" in problem["detail"]
    assert (await gateway.http.get("/livez")).status_code == 200


async def test_a_body_without_a_length_is_counted_while_it_is_read(gateway: LiveGateway) -> None:
    async def endless() -> Any:
        for _ in range(40):
            yield b"\0" * 1_000_000

    response = await gateway.http.post(
        "/v1/chat/completions", content=endless(), headers={"content-type": "application/json"}
    )

    expect_problem(response, 413, "body_too_large")


async def test_a_slow_body_is_given_up(gateway: LiveGateway) -> None:
    async def dripping() -> Any:
        for _ in range(8):
            yield b" "
            await asyncio.sleep(0.1)

    headers = {"content-type": "application/json", "x-request-timeout-s": "0.3"}

    response = await gateway.http.post("/v1/chat/completions", content=dripping(), headers=headers)

    expect_problem(response, 504, "body_too_slow")


async def test_an_unknown_model_is_named_with_the_known_ones(gateway: LiveGateway, png: bytes) -> None:
    for _ in range(2):
        response = await gateway.http.post("/v1/chat/completions", json=chat_body("Where?", png, model="gpt-4o"))
        problem = expect_problem(response, 404, "unknown_model")
        assert "gpt-4o" in problem["detail"]
        assert "superlink-scripted" in problem["detail"]
    response = await gateway.http.post("/v1/detect", files={"image": png}, data={"phrase": "dog", "model": "yolo"})
    expect_problem(response, 404, "unknown_model")


BAD_BODIES = [
    pytest.param(chat_body("Hi", stop=["a", "b", "c", "d", "e"]), "invalid_request", id="five stop texts"),
    pytest.param({"messages": []}, "invalid_request", id="no messages"),
    pytest.param({}, "invalid_request", id="empty object"),
    pytest.param(chat_body("  "), "empty_prompt", id="blank prompt"),
    pytest.param({"messages": [{"role": "user", "content": None}]}, "empty_prompt", id="no content"),
    pytest.param({"messages": [{"role": "user", "content": []}]}, "empty_prompt", id="empty content"),
    pytest.param(chat_body("dog " * 200), "prompt_too_long", id="prompt too long"),
    pytest.param(chat_body("Hi", n=2), "unsupported_parameter", id="two choices"),
    pytest.param(chat_body("Hi", tools=[{"type": "function"}]), "invalid_request", id="a function without a name"),
    pytest.param(chat_body("Hi", temperatur=1), "invalid_request", id="unknown field"),
    pytest.param(chat_body("Hi", temperature="hot"), "invalid_request", id="wrong type"),
    pytest.param(chat_body("Hi", temperature=-1), "invalid_request", id="out of range"),
    pytest.param(chat_body("Hi", superlink={"rounds": 1}), "invalid_request", id="unknown extension field"),
    pytest.param(
        {"messages": [{"role": "assistant", "content": "Hi"}]}, "invalid_conversation", id="not the user's turn"
    ),
    pytest.param({"messages": [{"role": "tool", "content": "Hi"}]}, "invalid_conversation", id="unknown role"),
]


@pytest.mark.parametrize(("body", "code"), BAD_BODIES)
async def test_bad_requests_say_what_is_wrong(gateway: LiveGateway, body: dict[str, Any], code: str) -> None:
    expect_problem(await gateway.http.post("/v1/chat/completions", json=body), 400, code)
    assert not gateway.workers.mllm.generate_requests


async def test_errors_name_the_field(gateway: LiveGateway) -> None:
    response = await gateway.http.post("/v1/chat/completions", json=chat_body("Hi", temperatur=1))
    assert "temperatur" in response.json()["detail"]
    response = await gateway.http.post("/v1/chat/completions", content=b"{broken")
    assert "JSON" in expect_problem(response, 400, "invalid_request")["detail"]


@pytest.mark.parametrize("url", ["https://example.com/dog.png", "http://169.254.169.254/", "file:///etc/passwd", "/x"])
async def test_images_are_never_fetched(gateway: LiveGateway, url: str) -> None:
    body = chat_body("Where?")
    body["messages"][0]["content"].append({"type": "image_url", "image_url": {"url": url}})

    chat = await gateway.http.post("/v1/chat/completions", json=body)
    detect = await gateway.http.post("/v1/detect", json={"image": url, "phrase": "dog"})

    for response in (chat, detect):
        assert "data URL" in expect_problem(response, 400, "remote_image_refused")["detail"]


@pytest.mark.parametrize("url", ["data:image/png;base64,@@@@", "data:image/png,plain", "data:;base64,a"])
async def test_broken_data_urls_are_refused(gateway: LiveGateway, url: str) -> None:
    response = await gateway.http.post("/v1/detect", json={"image": url, "phrase": "dog"})

    expect_problem(response, 400, "invalid_data_url")


async def test_too_many_images_are_refused(gateway: LiveGateway, png: bytes) -> None:
    response = await gateway.http.post("/v1/chat/completions", json=chat_body("Which?", *[png] * 5))

    expect_problem(response, 400, "too_many_images")
    for path, count in (("/v1/chat/completions", 5), ("/v1/answer", 5), ("/v1/detect", 2), ("/v1/images/edits", 3)):
        expect_problem(await gateway.http.post(path, files=[("image", png)] * count), 400, "too_many_images")


async def test_an_upload_without_a_request_is_refused(gateway: LiveGateway, png: bytes) -> None:
    response = await gateway.http.post("/v1/chat/completions", files={"image": png})

    assert "'request'" in expect_problem(response, 400, "invalid_request")["detail"]


async def test_a_broken_multipart_body_is_refused(gateway: LiveGateway) -> None:
    headers = {"content-type": "multipart/form-data; boundary=xyz"}

    for body, code in (
        (b"--xyz\r\nnonsense", "image_missing"),
        (b"--xyz\r\nContent-Disposition\r\n\r\nx\r\n--xyz--\r\n", "invalid_multipart"),
        (b'--xyz\r\nContent-Disposition: form-data; filename="a"\r\n\r\nx\r\n--xyz--\r\n', "invalid_multipart"),
    ):
        expect_problem(await gateway.http.post("/v1/detect", content=body, headers=headers), 400, code)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, "empty_prompt"),
        ({"categories": " , ,"}, "empty_prompt"),
        ({"categories": ",".join("abcdefghijk")}, "too_many_phrases"),
        ({"phrase": "x" * 501}, "prompt_too_long"),
        ({"phrase": "dog", "score_threshold": "1.5"}, "invalid_request"),
        ({"phrase": "dog", "max_detections": "many"}, "invalid_request"),
        ({"phrase": "dog", "treshold": "0.5"}, "invalid_request"),
        ({"phrase": ["dog", "cat"]}, "invalid_request"),
    ],
)
async def test_bad_detection_requests_say_what_is_wrong(
    gateway: LiveGateway, png: bytes, fields: dict[str, Any], code: str
) -> None:
    response = await gateway.http.post("/v1/detect", files={"image": png}, data=fields)

    expect_problem(response, 400, code)


async def test_unknown_paths_and_methods_are_problems(gateway: LiveGateway) -> None:
    expect_problem(await gateway.http.get("/v1/nothing"), 404, "unknown_path")
    refused = await gateway.http.get("/v1/detect")
    expect_problem(refused, 405, "method_not_allowed")
    assert refused.headers["allow"] == "POST"
    # All that the path answers, not only its first route.
    assert (await gateway.http.put("/v1/files")).headers["allow"] == "GET, POST"
    assert (await gateway.http.post("/v1/files/file-1")).headers["allow"] == "DELETE, GET"


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (chat_body("Hi", seed="5"), "seed"),
        (chat_body("Hi", stream="true"), "stream"),
        (chat_body("Hi", temperature="0"), "temperature"),
        (chat_body("Hi", max_tokens=True), "max_tokens"),
        (chat_body("Hi", seed=1.5), "seed"),
        ({"messages": [{"role": "user", "content": 5}]}, "content"),
    ],
)
async def test_json_is_taken_at_its_word(gateway: LiveGateway, body: dict[str, Any], word: str) -> None:
    response = await gateway.http.post("/v1/chat/completions", json=body)
    assert word in expect_problem(response, 400, "invalid_request")["detail"]


async def test_a_whole_number_may_be_written_with_a_point(gateway: LiveGateway) -> None:
    body = json.dumps(chat_body("Hi", seed=7)).replace(": 7", ": 7.0")
    response = await gateway.http.post("/v1/chat/completions", content=body)
    assert response.status_code == 200, response.text
    assert gateway.workers.mllm.generate_requests[0].sampling.seed == 7


async def test_a_full_queue_says_when_to_come_back(gateway: LiveGateway, png: bytes) -> None:
    gateway.workers.mllm.link_error = SuperlinkError(
        "queue_full", "The queue is full.", status=grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_ms=1500
    )

    response = await gateway.http.post("/v1/detect", files={"image": png}, data={"phrase": "dog"})

    problem = expect_problem(response, 429, "queue_full")
    assert (problem["service"], problem["retryable"], problem["retry_after_ms"]) == ("mllm", True, 1500)
    assert problem["hop"] == "orchestrator>mllm"
    assert response.headers["retry-after"] == "2"


async def test_a_request_id_that_could_harm_is_replaced(gateway: LiveGateway, png: bytes) -> None:
    response = await gateway.http.get("/livez", headers={"x-request-id": "a b\tc"})

    assert len(response.headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    "observed", [{"box": [1, 2], "score": 0.5}, {"box": [-1, 2, 3, 4], "score": 0.5}, {"box": [1, 2, 3, 4], "score": 7}]
)
async def test_a_replayed_observation_that_no_tool_made_is_refused(
    gateway: LiveGateway, png: bytes, observed: dict[str, object]
) -> None:
    body = chat_body("How many dogs?", png)
    group = {"phrase": "dog", "route": "[DET]", "objects": [observed]}
    answer = {"observations": [{"position": 0, "groups": [group]}]}
    body["messages"] += [
        {"role": "assistant", "content": "One.", "superlink": answer},
        {"role": "user", "content": "Sure?"},
    ]

    response = await gateway.http.post("/v1/chat/completions", content=json.dumps(body))

    assert "observations" in expect_problem(response, 400, "invalid_request")["detail"]


async def test_a_replayed_answer_with_wrong_spans_is_refused(gateway: LiveGateway, png: bytes) -> None:
    body = chat_body("How many dogs?", png)
    phrase = {"phrase": "dog", "span": {"start": 5, "end": 99}, "route": "[DET]"}
    call = {"id": "call_0", "tool": "detection", "status": "completed", "phrases": [phrase]}
    body["messages"] += [
        {"role": "assistant", "content": "A dog.", "superlink": {"tool_calls": [call]}},
        {"role": "user", "content": "Sure?"},
    ]

    response = await gateway.http.post("/v1/chat/completions", content=json.dumps(body))

    assert "span" in expect_problem(response, 400, "invalid_conversation")["detail"]
