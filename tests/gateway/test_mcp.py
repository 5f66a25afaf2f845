"""The tools for agents at /mcp, asked by the protocol's own client in both of its ways."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx
import httpx2
import pytest
from agents import held, pictures, problem, words
from api_key_maker import REQUIRED, bearer, expect_problem, new_key
from image_fetching import settings_for
from image_server import ImageServer
from live_gateway import LiveGateway, live_gateway
from live_redis import LiveRedis
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from PIL import Image
from request_bodies import chat_body, data_url, encode_picture
from scripted_workers import (
    detection,
    detections,
    finish,
    group,
    made_images,
    progress,
    text,
)

from superlink.errors import SuperlinkError
from superlink.run_length import encode_mask

pytestmark = pytest.mark.surface

# Requests that stand for themselves, and sessions that begin with a handshake.
MODES = ["auto", "legacy"]
CAT = encode_picture(size=(32, 16))
BLUE = encode_picture(size=(48, 16))


@asynccontextmanager
async def agent_of(gateway: LiveGateway, mode: str = MODES[0], **headers: str) -> AsyncIterator[Client]:
    async with httpx2.AsyncClient(trust_env=False, timeout=30, headers=headers) as http:
        transport = streamable_http_client(f"{gateway.url}/mcp", http_client=http)
        async with held(Client(transport, mode=mode)) as client:
            yield client


@pytest.fixture
async def agent(gateway: LiveGateway) -> AsyncIterator[Client]:
    async with agent_of(gateway) as client:
        yield client


@pytest.fixture(params=MODES)
async def either_agent(gateway: LiveGateway, request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    async with agent_of(gateway, request.param) as client:
        yield client


async def test_every_tool_says_what_it_is_for_and_what_it_takes_and_answers(either_agent: Client) -> None:
    assert either_agent.protocol_version == ("2025-11-25" if either_agent.mode == "legacy" else "2026-07-28")
    tools = {tool.name: tool for tool in (await either_agent.list_tools()).tools}

    assert list(tools) == ["detect", "segment", "pose", "generate", "edit", "ask"]
    for tool in tools.values():
        assert len(tool.description or "") > 40
        assert all("description" in field for field in tool.input_schema["properties"].values())
        assert tool.input_schema["additionalProperties"] is False
        assert (tool.output_schema or {})["type"] == "object"
        assert ("data URL" in (tool.description or "")) == (tool.name != "generate")
    assert "detect" in (either_agent.instructions or "")


@pytest.mark.parametrize("mode", MODES)
async def test_tools_without_a_decoder_are_not_listed_and_say_so_when_called(mode: str, png: bytes) -> None:
    async with live_gateway(without={"diffusion", "pose"}) as gateway, agent_of(gateway, mode) as agent:
        names = [tool.name for tool in (await agent.list_tools()).tools]
        drawn = await agent.call_tool("generate", {"prompt": "a cat"})
        posed = await agent.call_tool("pose", {"image": data_url(png), "categories": ["person"]})

    assert names == ["detect", "segment", "ask"]
    assert (problem(drawn)["code"], problem(drawn)["status"]) == ("unknown_tool", 501)
    assert problem(posed)["code"] == "unknown_tool"


async def test_detections_are_those_of_the_rest_api(agent: Client, gateway: LiveGateway, png: bytes) -> None:
    options = {"categories": ["dog", "cat"], "score_threshold": 0.25, "max_detections": 7}
    gateway.workers.detection.script = lambda request: [
        detections([detection(0, 0.8), detection(0, 0.9, (0, 0, 10, 20))], 2, absent=[1])
    ]

    found = await agent.call_tool("detect", {"image": data_url(png), **options})
    rest = (await gateway.http.post("/v1/detect", json={"image": data_url(png), **options})).json()

    assert not found.is_error
    answer = found.structured_content
    for name in ("image", "categories", "detections", "model"):
        assert answer[name] == rest[name]
    assert answer["detections"][0]["bbox"] == [0, 0, 10, 20]
    assert words(found).splitlines() == [
        "dog: 2 found",
        "cat: not found (best candidate 0.10)",
        "- dog (0.90): x 0, y 0, width 10, height 20",
        "- dog (0.80): x 20, y 10, width 40, height 40",
    ]
    by_agent, by_rest = gateway.workers.detection.requests
    assert by_agent.image.encoded == png
    assert by_agent.detection == by_rest.detection
    # Every process logged the call under the id that the agent was told.
    assert answer["request_id"] == gateway.workers.detection.request_ids[0]


async def test_plain_base64_is_an_image_in_one_line_or_in_many(agent: Client, gateway: LiveGateway, png: bytes) -> None:
    jpeg = encode_picture("JPEG")
    for encoded in (base64.b64encode(png), base64.encodebytes(png), base64.b64encode(jpeg)):
        assert not (await agent.call_tool("detect", {"image": encoded.decode(), "phrase": "dog"})).is_error

    assert [request.image.encoded for request in gateway.workers.detection.requests] == [png, png, jpeg]


async def test_what_is_marked_is_cut_out(agent: Client, gateway: LiveGateway, png: bytes) -> None:
    mask = Image.new("L", (200, 100))
    mask.paste(255, (5, 5, 50, 40))
    cut = detection(1)
    cut.mask.height, cut.mask.width, cut.mask.counts = 100, 200, encode_mask(mask).encode()
    gateway.workers.segmentation.script = lambda request: [detections([cut], 3)]
    regions = [{"points": [[10, 20]]}, {"box": [1, 2, 30, 40]}]
    arguments = {"image": data_url(png), "categories": ["dog"], "regions": regions, "semantic": True}

    found = await agent.call_tool("segment", arguments)

    assert not found.is_error
    [thing] = found.structured_content["detections"]
    assert thing["category"] == "region 1"
    assert thing["segmentation"] == {"size": [100, 200], "counts": encode_mask(mask)}
    [request] = gateway.workers.segmentation.requests
    assert request.detection.semantic
    assert [each.region.WhichOneof("mark") for each in request.groups] == [None, "points", "box"]


async def test_poses_have_keypoints_and_bones(agent: Client, gateway: LiveGateway, png: bytes) -> None:
    arguments = {"image": data_url(png), "phrase": "the left person", "keypoints": ["nose", "left wrist"]}

    found = await agent.call_tool("pose", arguments)

    [thing] = found.structured_content["detections"]
    assert [(each["name"], each["x"], each["y"]) for each in thing["keypoints"]] == [
        ("nose", 0, 5),
        ("left wrist", 10, 5),
    ]
    assert "nose 0,5 (0.80); left wrist 10,5 (0.80)" in words(found)
    assert "segmentation" not in thing
    everything = await agent.call_tool("pose", {"image": data_url(png), "categories": ["person"]})
    assert everything.structured_content["categories"][0]["bones"] == [["nose", "left wrist"], ["nose", "right wrist"]]


@pytest.mark.parametrize("tool", ["detect", "segment", "pose"])
async def test_an_overlay_shows_what_was_found(agent: Client, png: bytes, tool: str) -> None:
    arguments = {"image": data_url(png), "categories": ["person"]}

    plain = await agent.call_tool(tool, arguments)
    drawn = await agent.call_tool(tool, {**arguments, "overlay": True})

    assert pictures(plain) == []
    [picture] = pictures(drawn)
    with Image.open(io.BytesIO(picture)) as opened:
        # Four times the size; the box begins at (20, 10), and its edge is no longer the colour of the ground.
        assert opened.size == (800, 400)
        assert opened.getpixel((81, 100)) != (200, 120, 40)
        assert opened.getpixel((700, 300)) == (200, 120, 40)


async def test_the_overlay_of_a_large_image_fits_a_models_eye(agent: Client) -> None:
    arguments = {"image": data_url(encode_picture("JPEG", (4000, 1000))), "categories": ["dog"], "overlay": True}

    [picture] = pictures(await agent.call_tool("detect", arguments))

    with Image.open(io.BytesIO(picture)) as opened:
        assert opened.size == (1568, 392)


async def test_drawing_reports_its_steps_and_shows_the_images(either_agent: Client, gateway: LiveGateway) -> None:
    gateway.workers.diffusion.script = lambda request: [progress(1, 2), progress(2, 2), made_images(CAT, BLUE)]
    steps: list[tuple[float, float | None]] = []

    async def on_progress(done: float, total: float | None, message: str | None) -> None:
        steps.append((done, total))

    arguments = {"prompt": "a cat", "n": 2, "size": "128x64", "seed": 7, "steps": 5, "guidance": 2.5}
    drawn = await either_agent.call_tool("generate", arguments, progress_callback=on_progress)

    assert not drawn.is_error
    assert steps == [(1, 2), (2, 2)]
    assert pictures(drawn) == [CAT, BLUE]
    # Pixels are paid for once: the data hold none.
    assert [sorted(image) for image in drawn.structured_content["images"]] == [["height", "seed", "width"]] * 2
    assert "seed 1" in words(drawn)
    [request] = gateway.workers.diffusion.requests
    options = request.diffusion
    assert (options.seed, options.steps, options.guidance, options.count) == (7, 5, 2.5, 2)
    assert (options.width, options.height) == (128, 64)


async def test_an_edit_changes_what_is_transparent_in_the_mask(agent: Client, gateway: LiveGateway, png: bytes) -> None:
    gateway.workers.diffusion.script = lambda request: [made_images(BLUE)]
    mask = Image.new("RGBA", (200, 100), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (10, 20, 30, 60))
    buffer = io.BytesIO()
    mask.save(buffer, format="PNG")
    arguments = {
        "image": data_url(png),
        "mask": data_url(buffer.getvalue()),
        "prompt": "make it blue",
        "image_guidance": 1.25,
    }

    edited = await agent.call_tool("edit", arguments)

    assert pictures(edited) == [BLUE]
    [request] = gateway.workers.diffusion.requests
    assert (request.image.encoded, request.groups[0].route) == (png, "[EDIT]")
    assert request.groups[0].HasField("region")
    assert request.diffusion.image_guidance == 1.25


async def test_an_answer_holds_what_tools_found_and_made_and_why_one_failed(
    agent: Client, gateway: LiveGateway, png: bytes
) -> None:
    gateway.workers.mllm.rounds = [
        [
            text("Here is the dog, a cat, and its outline."),
            group("dog", 12),
            group("cat", 19, "[GEN]"),
            group("outline", 32, "[SEG]"),
            finish(),
        ]
    ]
    gateway.workers.diffusion.script = lambda request: [made_images(CAT)]
    full = SuperlinkError("queue_full", "The queue is full.", status=grpc.StatusCode.RESOURCE_EXHAUSTED)
    gateway.workers.segmentation.script = lambda request: [full]
    arguments = {"prompt": "What is at region 1?", "images": [data_url(png)], "regions": [{"points": [[3, 4]]}]}

    asked = await agent.call_tool("ask", arguments)

    assert not asked.is_error
    answer = asked.structured_content
    assert answer["answer"] == "Here is the dog, a cat, and its outline."
    calls = {call["tool"]: call for call in answer["tool_calls"]}
    dog = calls["detection"]["phrases"][0]
    assert (dog["span"], dog["detections"][0]["bbox"]) == ({"start": 12, "end": 15}, [20, 10, 40, 40])
    assert calls["diffusion"]["phrases"][0]["images"] == [{"width": 200, "height": 100, "seed": 0}]
    assert calls["segmentation"]["error"]["code"] == "queue_full"
    assert pictures(asked) == [CAT]
    assert "segmentation failed: queue_full: The queue is full." in words(asked)
    [request] = gateway.workers.mllm.generate_requests
    assert [part.WhichOneof("part") for part in request.messages[-1].parts] == ["image", "region", "text"]


async def test_a_question_needs_no_image(agent: Client, gateway: LiveGateway) -> None:
    gateway.workers.mllm.rounds = [[text("Hello."), finish()]]

    asked = await agent.call_tool("ask", {"prompt": "Hello?"})

    assert (words(asked), asked.structured_content["answer"]) == ("Hello.", "Hello.")


PNG = encode_picture()
FULL = SuperlinkError("queue_full", "Full.", status=grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_ms=700)
# A tool, its arguments, and the same request of the REST API.
WRONG: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("detect", {"image": data_url(PNG)}, "/v1/detect", {"image": data_url(PNG)}),
    (
        "detect",
        {"image": data_url(b"GIF89a nothing"), "categories": ["dog"]},
        "/v1/detect",
        {"image": data_url(b"GIF89a nothing"), "categories": ["dog"]},
    ),
    (
        "detect",
        {"image": "https://example.org/dog.png", "categories": ["dog"]},
        "/v1/detect",
        {"image": "https://example.org/dog.png", "categories": ["dog"]},
    ),
    (
        "detect",
        {"image": data_url(PNG), "categories": ["dog"], "treshold": 0.5},
        "/v1/detect",
        {"image": data_url(PNG), "categories": ["dog"], "treshold": 0.5},
    ),
    (
        "segment",
        {"image": data_url(PNG), "regions": [{"points": [[500, 5]]}]},
        "/v1/segment",
        {"image": data_url(PNG), "regions": [{"points": [[500, 5]]}]},
    ),
    (
        "pose",
        {"image": data_url(PNG), "categories": ["person"] * 11},
        "/v1/pose",
        {"image": data_url(PNG), "categories": ["person"] * 11},
    ),
    ("generate", {"prompt": "x" * 501}, "/v1/images/generations", {"prompt": "x" * 501}),
    ("generate", {}, "/v1/images/generations", {}),
    ("ask", {"prompt": " "}, "/v1/chat/completions", chat_body(" ")),
    # The scripted worker refuses these two.
    ("generate", {"prompt": "a cat"}, "/v1/images/generations", {"prompt": "a cat"}),
    ("detect", {"image": data_url(PNG), "phrase": "dog"}, "/v1/detect", {"image": data_url(PNG), "phrase": "dog"}),
]


@pytest.mark.faults
async def test_failures_are_those_of_the_rest_api(agent: Client, gateway: LiveGateway) -> None:
    gateway.workers.diffusion.script = lambda request: [FULL]
    gateway.workers.detection.script = lambda request: [FULL]

    codes = []
    for tool, arguments, path, body in WRONG:
        failed = problem(await agent.call_tool(tool, arguments))
        rest = (await gateway.http.post(path, json=body)).json()
        for name in ("code", "detail", "service", "status", "retryable", "retry_after_ms"):
            assert failed.get(name) == rest.get(name)
        assert failed["request_id"] != rest["request_id"]
        codes.append(failed["code"])

    assert codes == [
        "empty_prompt",
        "unsupported_image",
        "remote_image_refused",
        "invalid_request",
        "region_outside_image",
        "too_many_phrases",
        "prompt_too_long",
        "invalid_request",
        "empty_prompt",
        "queue_full",
        "queue_full",
    ]


@pytest.mark.faults
async def test_a_failure_after_some_steps_is_no_success(either_agent: Client, gateway: LiveGateway) -> None:
    gateway.workers.diffusion.script = lambda request: [progress(1, 2), FULL]

    failed = problem(await either_agent.call_tool("generate", {"prompt": "a cat"}))

    assert (failed["code"], failed["service"]) == ("queue_full", "diffusion")


@pytest.mark.faults
async def test_a_decoder_that_goes_away_stays_listed_and_its_calls_say_so(
    agent: Client, gateway: LiveGateway, png: bytes
) -> None:
    await gateway.workers.detection_server.stop()

    names = [tool.name for tool in (await agent.list_tools()).tools]
    failed = problem(await agent.call_tool("detect", {"image": data_url(png), "categories": ["dog"]}))

    assert "detect" in names
    assert (failed["code"], failed["service"], failed["status"]) == ("decoder_unavailable", "detection", 503)


async def test_a_path_is_of_no_use_to_a_gateway(agent: Client) -> None:
    failed = problem(await agent.call_tool("detect", {"image": "/etc/hostname", "categories": ["dog"]}))

    assert failed["code"] == "image_missing"
    assert "Paths" in failed["detail"]


async def test_a_tool_that_does_not_exist_is_an_error_of_the_protocol(either_agent: Client) -> None:
    with pytest.raises(MCPError, match="There is no tool 'classify'") as refused:
        await either_agent.call_tool("classify", {})
    assert (refused.value.data["code"], refused.value.data["service"]) == ("unknown_tool", "gateway")


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({"content-type": "text/plain"}, b"{", 400),
        ({"content-type": "application/json"}, b"{", 400),
        ({"content-type": "application/json"}, b"{}", 400),
        ({"content-type": "application/json"}, b'{"jsonrpc": "2.0", "id": 1, "method": "tools/list"}', 400),
        ({"content-type": "application/json", "mcp-session-id": "gone"}, b'{"jsonrpc": "2.0", "method": "x"}', 404),
    ],
)
async def test_what_breaks_the_protocol_is_an_error_of_it_with_a_problem(
    gateway: LiveGateway, headers: dict[str, str], body: bytes, status: int
) -> None:
    response = await gateway.http.post("/mcp", content=body, headers=headers)

    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert isinstance(error["code"], int)
    assert error["message"]
    found = error["data"]
    assert (found["code"], found["status"], found["hop"]) == ("protocol_error", status, "client>gateway")
    assert found["request_id"] == response.headers["x-request-id"]
    assert not found["retryable"]


@pytest.mark.faults
@pytest.mark.parametrize("tool", ["generate", "detect", "ask"])
async def test_a_cancelled_call_cancels_the_work(
    either_agent: Client, gateway: LiveGateway, png: bytes, tool: str
) -> None:
    worker, arguments = {
        "generate": (gateway.workers.diffusion, {"prompt": "a cat"}),
        "detect": (gateway.workers.detection, {"image": data_url(png), "categories": ["dog"]}),
        "ask": (gateway.workers.mllm, {"prompt": "Why?"}),
    }[tool]
    forever = asyncio.Event()
    gateway.workers.diffusion.script = lambda request: [progress(1, 9), forever]
    gateway.workers.detection.script = lambda request: [forever]
    gateway.workers.mllm.rounds = [[text("Because"), forever]]
    calling = asyncio.create_task(either_agent.call_tool(tool, arguments))
    await asyncio.wait_for(worker.started.wait(), 10)

    calling.cancel()

    await asyncio.wait_for(worker.cancelled.wait(), 10)
    # The connection lives on.
    assert (await either_agent.list_tools()).tools


@pytest.mark.faults
async def test_a_call_runs_out_of_time(gateway: LiveGateway, png: bytes) -> None:
    gateway.workers.detection.script = lambda request: [asyncio.Event()]

    async with agent_of(gateway, MODES[0], **{"x-request-timeout-s": "0.5"}) as agent:
        failed = problem(await agent.call_tool("detect", {"image": data_url(png), "categories": ["dog"]}))

    assert (failed["code"], failed["status"]) == ("deadline_exceeded", 504)


LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}
HEADERS = {"accept": "application/json, text/event-stream", "content-type": "application/json"}


async def post(gateway: LiveGateway, **headers: str) -> httpx.Response:
    return await gateway.http.post("/mcp", json=LIST, headers={**HEADERS, **headers})


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:8080"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
    ],
)
async def test_a_web_page_elsewhere_does_not_get_in(gateway: LiveGateway, headers: dict[str, str]) -> None:
    response = await post(gateway, **headers)

    assert (response.status_code, response.json()["code"]) == (403, "host_refused")
    assert "gateway.mcp_hosts" in response.json()["detail"]


async def test_names_of_the_profile_and_of_this_machine_get_in() -> None:
    # Without a handshake the answer is an error of the protocol, and that is as far as it must come.
    async with live_gateway(mcp_hosts=("superlink.example.org",)) as gateway:
        for host in ("superlink.example.org", "superlink.example.org:8443", "localhost:8080", "[::1]:8080"):
            response = await post(gateway, host=host, origin=f"https://{host}")
            assert (response.status_code, "jsonrpc" in response.json()) == (400, True)
        assert (await post(gateway, host="example.org")).status_code == 403


async def test_the_path_is_under_the_checks_of_all_others(gateway: LiveGateway) -> None:
    read = await gateway.http.get("/mcp", headers=HEADERS)
    large = await gateway.http.post("/mcp", content=b" " * (16 * 1024 * 1024 + 1), headers=HEADERS)
    named = await post(gateway, **{"x-request-id": "mine"})
    metrics = (await gateway.http.get("/metrics")).text

    assert (read.status_code, read.json()["code"]) == (405, "method_not_allowed")
    assert sorted(read.headers["allow"].split(", ")) == ["DELETE", "POST"]
    assert (large.status_code, large.json()["code"]) == (413, "body_too_large")
    assert named.headers["x-request-id"] == "mine"
    assert 'superlink_gateway_requests_total{method="POST",path="/mcp",status="400"} 1.0' in metrics


@pytest.mark.parametrize("mode", MODES)
async def test_an_agent_shows_its_key_with_every_request(mode: str, redis_server: LiveRedis, png: bytes) -> None:
    key, _ = await new_key(redis_server.url)
    async with (
        live_gateway(redis_url=redis_server.url, keys=REQUIRED) as gateway,
        agent_of(gateway, mode, **bearer(key)) as agent,
    ):
        found = await agent.call_tool("detect", {"image": data_url(png), "categories": ["dog"]})

        assert not found.is_error
        expect_problem(await post(gateway), 401, "missing_api_key")


async def test_an_image_is_fetched_from_its_address_where_the_profile_lets_it(
    image_host: ImageServer, png: bytes
) -> None:
    async with live_gateway(image_urls=settings_for(image_host)) as gateway, agent_of(gateway) as agent:
        tools = (await agent.list_tools()).tools
        arguments = {"image": f"{image_host.url}/dog.png", "categories": ["dog"], "overlay": True}
        found = await agent.call_tool("detect", arguments)
        lost = problem(await agent.call_tool("detect", {**arguments, "image": f"{image_host.url}/cat.png"}))

    assert "http or https address" in (tools[0].description or "")
    assert len(pictures(found)) == 1
    assert lost["code"] == "image_fetch_failed"
    [request] = gateway.workers.detection.requests
    assert request.image.encoded == png


@pytest.mark.faults
@pytest.mark.parametrize("mode", MODES)
async def test_a_stop_waits_for_calls_and_not_for_agents(mode: str) -> None:
    async with live_gateway(drain_timeout_s=20) as gateway, agent_of(gateway, mode) as agent:
        # Else the client asks for it afterwards, to check the answer by its schema.
        await agent.list_tools()
        go_on = asyncio.Event()
        gateway.workers.diffusion.script = lambda request: [progress(1, 2), go_on, made_images(CAT)]
        calling = asyncio.create_task(agent.call_tool("generate", {"prompt": "a cat"}))
        await asyncio.wait_for(gateway.workers.diffusion.started.wait(), 10)

        gateway.server.should_exit = True
        await asyncio.sleep(0.3)
        go_on.set()

        assert pictures(await asyncio.wait_for(calling, 15)) == [CAT]
        async with asyncio.timeout(10):
            # An agent that stays connected holds nothing up.
            while gateway.server.server_state.tasks or gateway.server.server_state.connections:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@pytest.mark.faults
@pytest.mark.parametrize("mode", MODES)
async def test_a_call_that_a_stop_cuts_off_ends_with_an_error(mode: str) -> None:
    async with live_gateway(drain_timeout_s=1) as gateway, agent_of(gateway, mode) as agent:
        gateway.workers.diffusion.script = lambda request: [progress(1, 2), asyncio.Event()]
        calling = asyncio.create_task(agent.call_tool("generate", {"prompt": "a cat"}))
        await asyncio.wait_for(gateway.workers.diffusion.started.wait(), 10)

        gateway.server.should_exit = True

        with pytest.raises(MCPError):
            await asyncio.wait_for(calling, 10)
        await asyncio.wait_for(gateway.workers.diffusion.cancelled.wait(), 10)
