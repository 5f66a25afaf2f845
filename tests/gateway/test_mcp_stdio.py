"""``superlink mcp``: the tools for agents that start a command, asked by the protocol's own client."""

import asyncio
import base64
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from agents import held, pictures, problem, words
from api_key_maker import new_key
from live_gateway import LiveGateway, live_gateway
from live_redis import LiveRedis
from mcp import Client, StdioServerParameters
from request_bodies import data_url, encode_picture
from scripted_workers import ScriptedDecoder, detection, detections, finish, group, made_images, progress, text

from superlink.errors import SuperlinkError
from tests.integration.lean_environment import make_lean_environment

pytestmark = pytest.mark.surface

CAT = encode_picture(size=(32, 16))


@asynccontextmanager
async def agent_of(url: str, *options: str, mode: str = "auto") -> AsyncIterator[Client]:
    arguments = ["-m", "superlink", "mcp", "--url", url, *options]
    environment = {**os.environ, "NO_PROXY": "*", "OMP_NUM_THREADS": "1"}
    command = StdioServerParameters(command=sys.executable, args=arguments, env=environment)
    async with held(Client(command, mode=mode)) as client:
        yield client


@pytest.fixture
async def agent(gateway: LiveGateway) -> AsyncIterator[Client]:
    async with agent_of(gateway.url) as client:
        yield client


@pytest.fixture
def png_file(tmp_path: Path, png: bytes) -> Path:
    file = tmp_path / "scene.png"
    file.write_bytes(png)
    return file


async def test_images_come_as_paths_and_the_answer_is_that_of_the_rest_api(
    agent: Client, gateway: LiveGateway, png_file: Path, png: bytes
) -> None:
    gateway.workers.detection.script = lambda request: [detections([detection(0)], 2, absent=[1])]
    options = {"categories": ["dog", "cat"], "score_threshold": 0.25, "max_detections": 7}

    found = await agent.call_tool("detect", {"image": str(png_file), "overlay": True, **options})
    rest = (await gateway.http.post("/v1/detect", json={"image": data_url(png), **options})).json()

    for name in ("image", "categories", "detections", "model"):
        assert found.structured_content[name] == rest[name]
    assert found.structured_content["request_id"] == gateway.workers.detection.request_ids[0]
    assert words(found).startswith("dog: 1 found\ncat: not found")
    assert len(pictures(found)) == 1
    by_agent, by_rest = gateway.workers.detection.requests
    assert by_agent.image.encoded == png
    assert by_agent.detection == by_rest.detection
    # They may come as elsewhere, too.
    for image in (data_url(png), base64.b64encode(png).decode()):
        assert not (await agent.call_tool("detect", {"image": image, "phrase": "the dog, not the cat"})).is_error
        request = gateway.workers.detection.requests[-1]
        assert (request.image.encoded, request.groups[0].phrase) == (png, "the dog, not the cat")


async def test_every_tool_reaches_its_worker_with_what_was_asked(
    agent: Client, gateway: LiveGateway, png_file: Path, png: bytes
) -> None:
    workers = gateway.workers
    workers.diffusion.script = lambda request: [made_images(CAT)]
    workers.mllm.rounds = [[text("Here is the dog."), group("dog", 12), finish()]]
    region = {"points": [[10, 20]]}
    image = str(png_file)

    cut = await agent.call_tool("segment", {"image": image, "regions": [region], "semantic": True})
    posed = await agent.call_tool("pose", {"image": image, "categories": ["person"], "keypoints": ["nose"]})
    drawn = await agent.call_tool("generate", {"prompt": "a cat", "n": 2, "size": "128x64", "seed": 7, "steps": 5})
    edited = await agent.call_tool("edit", {"image": image, "prompt": "blue", "image_guidance": 1.25})
    asked = await agent.call_tool("ask", {"prompt": "Where is region 1?", "images": [image], "regions": [region]})

    assert cut.structured_content["detections"][0]["category"] == "region 1"
    [segmented] = workers.segmentation.requests
    assert segmented.detection.semantic
    assert [each["name"] for each in posed.structured_content["detections"][0]["keypoints"]] == ["nose"]
    assert pictures(drawn) == pictures(edited) == [CAT]
    generation, edit = (request.diffusion for request in workers.diffusion.requests)
    assert (generation.count, generation.width, generation.height) == (2, 128, 64)
    assert (generation.seed, generation.steps, edit.image_guidance) == (7, 5, 1.25)
    assert asked.structured_content["answer"] == "Here is the dog."
    assert asked.structured_content["tool_calls"][0]["phrases"][0]["detections"]
    [request] = workers.mllm.generate_requests
    assert [part.WhichOneof("part") for part in request.messages[-1].parts] == ["image", "region", "text"]


@pytest.mark.faults
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_steps_are_reported_and_a_cancelled_call_cancels_the_work(
    gateway: LiveGateway, png_file: Path, mode: str
) -> None:
    workers = gateway.workers
    steps: list[tuple[float, float | None]] = []

    async def on_progress(done: float, total: float | None, message: str | None) -> None:
        steps.append((done, total))

    async with agent_of(gateway.url, mode=mode) as agent:
        workers.diffusion.script = lambda request: [progress(1, 2), progress(2, 2), made_images(CAT)]
        drawn = await agent.call_tool("generate", {"prompt": "a cat"}, progress_callback=on_progress)
        assert pictures(drawn) == [CAT]
        assert steps == [(1, 2), (2, 2)]

        workers.diffusion.reset()
        workers.diffusion.script = lambda request: [progress(1, 9), asyncio.Event()]
        workers.detection.script = lambda request: [asyncio.Event()]
        calls: list[tuple[ScriptedDecoder, str, dict[str, Any]]] = [
            (workers.diffusion, "generate", {"prompt": "a cat"}),
            (workers.detection, "detect", {"image": str(png_file), "categories": ["dog"]}),
        ]
        for worker, tool, arguments in calls:
            calling = asyncio.create_task(agent.call_tool(tool, arguments))
            await asyncio.wait_for(worker.started.wait(), 30)

            calling.cancel()

            await asyncio.wait_for(worker.cancelled.wait(), 10)
        assert (await agent.list_tools()).tools


@pytest.mark.faults
async def test_failures_have_the_code_and_the_message_of_the_rest_api(
    agent: Client, gateway: LiveGateway, png_file: Path, png: bytes
) -> None:
    refused = SuperlinkError("image_refused", "Not this one.", status=grpc.StatusCode.INVALID_ARGUMENT)
    gateway.workers.detection.script = lambda request: [refused]
    broken = png_file.with_name("broken.png")
    broken.write_bytes(png[:20])
    image, url = str(png_file), data_url(png)
    wrong: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
        ("detect", {"image": image}, "/v1/detect", {"image": url}),
        ("detect", {"image": image, "phrase": "dog"}, "/v1/detect", {"image": url, "phrase": "dog"}),
        ("detect", {"image": str(broken), "phrase": "x"}, "/v1/detect", {"image": data_url(png[:20]), "phrase": "x"}),
        ("segment", {"image": image, "colour": 1}, "/v1/segment", {"image": url, "colour": 1}),
        ("generate", {"prompt": "x" * 501}, "/v1/images/generations", {"prompt": "x" * 501}),
    ]

    codes = []
    for tool, arguments, path, body in wrong:
        failed = problem(await agent.call_tool(tool, arguments))
        rest = (await gateway.http.post(path, json=body)).json()
        for name in ("code", "detail", "service", "status", "retryable"):
            assert failed[name] == rest[name]
        codes.append(failed["code"])

    assert codes == ["empty_prompt", "image_refused", "image_corrupt", "invalid_request", "prompt_too_long"]


@pytest.mark.faults
async def test_nothing_but_images_is_read_from_this_machine(
    agent: Client, gateway: LiveGateway, tmp_path: Path
) -> None:
    secret, sound = tmp_path / "secret.png", tmp_path / "sound.webp"
    secret.write_text("password")
    sound.write_bytes(b"RIFF\x24\x00\x00\x00WAVEfmt ")

    async def code_of(image: str) -> str:
        return str(problem(await agent.call_tool("detect", {"image": image, "categories": ["dog"]}))["code"])

    assert await code_of(str(secret)) == "unsupported_image"
    assert await code_of(str(sound)) == "unsupported_image"
    assert await code_of(str(tmp_path / "none.png")) == "image_missing"
    assert await code_of(str(tmp_path)) == "image_missing"
    assert await code_of("~nobody-of-this-name/none.png") == "image_missing"
    assert await code_of("https://example.org/dog.png") == "remote_image_refused"
    assert not gateway.workers.detection.requests


async def test_a_gateway_that_wants_a_key_is_given_one(
    keyed: LiveGateway, redis_server: LiveRedis, png_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, _ = await new_key(redis_server.url)
    asked = {"image": str(png_file), "categories": ["dog"]}
    async with agent_of(keyed.url) as stranger:
        assert problem(await stranger.call_tool("detect", asked))["code"] == "missing_api_key"
    async with agent_of(keyed.url, "--api-key", key) as agent:
        assert not (await agent.call_tool("detect", asked)).is_error
    monkeypatch.setenv("SUPERLINK_API_KEY", key)
    async with agent_of(keyed.url) as agent:
        assert not (await agent.call_tool("detect", asked)).is_error


async def test_tools_that_the_gateway_lacks_are_not_listed() -> None:
    async with live_gateway(without={"diffusion", "pose"}) as gateway, agent_of(gateway.url) as agent:
        tools = (await agent.list_tools()).tools

    assert [tool.name for tool in tools] == ["detect", "segment", "ask"]
    assert all("path" in (tool.description or "") for tool in tools)


@pytest.mark.faults
async def test_before_the_gateway_runs_all_tools_are_listed_and_calls_say_what_to_start() -> None:
    async with agent_of("http://127.0.0.1:9") as agent:
        names = [tool.name for tool in (await agent.list_tools()).tools]
        failed = problem(await agent.call_tool("ask", {"prompt": "Hello?"}))

    assert names == ["detect", "segment", "pose", "generate", "edit", "ask"]
    assert failed["code"] == "gateway_unreachable"
    assert "superlink up" in failed["detail"]


def test_it_ends_with_its_input() -> None:
    command = [sys.executable, "-m", "superlink", "mcp", "--url", "http://127.0.0.1:9"]
    result = subprocess.run(command, input="", capture_output=True, text=True, timeout=120, check=False)

    assert (result.returncode, result.stdout) == (0, "")


def test_without_its_extra_the_command_says_what_to_install(tmp_path: Path) -> None:
    environment = make_lean_environment("orchestrator", tmp_path)
    command = [sys.executable, "-S", "-m", "superlink", "mcp"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    assert result.returncode == 1
    assert "pip install -c constraints.txt -e '.[mcp]'" in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
