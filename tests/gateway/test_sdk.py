"""The SDK and the gateway agree: keys, limits, repetitions, and what happens when a caller leaves."""

import asyncio
import io
from typing import Any

import grpc
import pytest
from api_key_maker import REQUIRED, new_key
from live_gateway import LiveGateway, live_gateway
from live_redis import LiveRedis
from PIL import Image
from scripted_workers import detections, finish, group, made_images, progress, text, usage

from superlink import AsyncClient, Client
from superlink.client_errors import BadRequest, NotDeployed, TooLarge, TooManyRequests, Unauthenticated
from superlink.errors import SuperlinkError
from superlink.results import Finished, TextDelta

pytestmark = pytest.mark.surface

SOON_S = 5.0


async def test_every_call_is_understood(gateway: LiveGateway, png: bytes) -> None:
    gateway.workers.mllm.rounds = [[text("Here is the dog."), group("dog", 12), usage(10, 4, 3), finish()]]
    gateway.workers.diffusion.script = lambda request: [progress(1, 2), progress(2, 2), made_images(png)]
    steps: list[tuple[int, int]] = []
    async with AsyncClient(gateway.url, api_key="not-looked-at") as client:
        answer = await client.chat(png, "Where is the dog?", max_rounds=1, score_threshold=0.3)
        async with client.chat(png, "Where is the dog?", stream=True) as events:
            streamed = [event async for event in events]
        found = [
            await client.detect(png, ["dog", "cat"], max_detections=9),
            await client.segment(png, phrase="the dog", semantic=True),
            await client.segment(png, regions=[{"points": [[3, 4]]}]),
            await client.pose(png, ["person"], keypoints=["nose"]),
        ]
        plain = await client.answer([png], "Where is the dog?", max_rounds=1, score_threshold=0.3)
        drawn = await client.generate("a cat", seed=3, on_progress=lambda done, total: steps.append((done, total)))
        edited = await client.edit(png, "blue", mask=png_with_hole(), image_guidance=1.5)
        assert (await client.ready()).ready

    assert isinstance(streamed[-1], Finished)
    assert answer.text == streamed[-1].answer.text == "Here is the dog."
    assert [each.names for each in found] == [("dog", "cat"), ("the dog",), ("region 1",), ("person",)]
    assert (plain.text, plain.presence[0].tool, plain.failures) == ("Here is the dog.", "detection", ())
    for result in (answer, streamed[-1].answer, plain, *found):
        assert len(result.detections) == len(result.names)
        assert result.draw().size == (800, 400)
        assert len(result.to_coco()["annotations"]) == len(result.names)
    assert steps == [(1, 2), (2, 2)]
    assert drawn.images[0].content == edited.images[0].content == png


def png_with_hole() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (200, 100), (0, 0, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


async def test_a_stream_that_is_left_cancels_the_model(gateway: LiveGateway, png: bytes) -> None:
    gateway.workers.mllm.rounds = [[text("Once"), asyncio.Event()]]
    async with AsyncClient(gateway.url) as client:
        async with client.chat(png, "Tell", stream=True) as events:
            assert await anext(events) == TextDelta("Once")
        await asyncio.wait_for(gateway.workers.mllm.cancelled.wait(), SOON_S)


async def test_a_stream_that_a_thread_leaves_cancels_the_model(gateway: LiveGateway, png: bytes) -> None:
    gateway.workers.mllm.rounds = [[text("Once"), asyncio.Event()]]
    with Client(gateway.url) as client:

        def read_one_event() -> None:
            with client.chat(png, "Tell", stream=True) as events:
                assert next(events) == TextDelta("Once")

        await asyncio.to_thread(read_one_event)
        await asyncio.wait_for(gateway.workers.mllm.cancelled.wait(), SOON_S)


async def test_a_cancelled_call_cancels_the_decoder(gateway: LiveGateway, png: bytes) -> None:
    gateway.workers.detection.script = lambda request: [asyncio.Event()]
    async with AsyncClient(gateway.url) as client:
        call = asyncio.create_task(client.detect(png, ["dog"]))
        await asyncio.wait_for(gateway.workers.detection.started.wait(), SOON_S)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(gateway.workers.detection.cancelled.wait(), SOON_S)


async def test_a_full_queue_is_asked_again_after_the_time_that_it_names(gateway: LiveGateway, png: bytes) -> None:
    full = SuperlinkError(
        "queue_full", "Full.", status=grpc.StatusCode.RESOURCE_EXHAUSTED, service="detection", retry_after_ms=300
    )
    attempts = 0

    def refuse_twice(request: Any) -> list[Any]:
        nonlocal attempts
        attempts += 1
        return [full] if attempts <= 2 else [detections([])]

    gateway.workers.detection.script = refuse_twice
    began = asyncio.get_running_loop().time()
    async with AsyncClient(gateway.url) as client:
        assert (await client.detect(png, ["dog"])).detections == ()
        assert asyncio.get_running_loop().time() - began >= 0.6
        attempts = -100
    async with AsyncClient(gateway.url, max_retries=1) as impatient:
        with pytest.raises(TooManyRequests) as raised:
            await impatient.detect(png, ["dog"])
    assert (raised.value.code, raised.value.service, raised.value.retry_after_s) == ("queue_full", "detection", 0.3)
    assert raised.value.request_id
    assert attempts == -98


async def test_problems_arrive_as_their_class(png: bytes) -> None:
    async with live_gateway(without=("diffusion",)) as gateway, AsyncClient(gateway.url) as client:
        with pytest.raises(NotDeployed, match="unknown_tool"):
            await client.generate("a cat")
        with pytest.raises(BadRequest, match="max_tokenz"):
            await client.chat(png, "Hi", max_tokenz=3)  # type: ignore[call-arg]
        with pytest.raises(TooLarge, match="body_too_large"):
            await client.detect(png + bytes(17 * 1024 * 1024), ["dog"])


async def test_a_gateway_that_wants_keys_is_given_one(
    redis_server: LiveRedis, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, _ = await new_key(redis_server.url, requests_per_minute=2)
    async with live_gateway(redis_url=redis_server.url, keys=REQUIRED) as gateway:
        async with AsyncClient(gateway.url) as stranger:
            with pytest.raises(Unauthenticated):
                await stranger.detect(png, ["dog"])
        monkeypatch.setenv("SUPERLINK_API_KEY", key)
        async with AsyncClient(gateway.url, timeout_s=5) as client:
            for _ in range(2):
                assert len((await client.detect(png, ["dog"])).detections) == 1
            # The minute is longer than the call may take, so that it is not waited for.
            with pytest.raises(TooManyRequests, match="rate_limited") as raised:
                await client.detect(png, ["dog"])
    assert raised.value.retry_after_s is not None
    assert 5 < raised.value.retry_after_s <= 60


async def test_calls_with_one_key_are_done_once(redis_server: LiveRedis, png: bytes) -> None:
    async with live_gateway(redis_url=redis_server.url) as gateway, AsyncClient(gateway.url) as client:
        # Two at the same time: the second is told to wait, and does.
        answers = await asyncio.gather(
            *(client.detect(png, ["dog"], idempotency_key="scene-17") for _ in range(2)),
        )
        answers.append(await client.detect(png, ["dog"], idempotency_key="scene-17"))
        assert len(gateway.workers.detection.requests) == 1
        assert len({answer.detections for answer in answers}) == 1
        await client.detect(png, ["dog"])
        assert len(gateway.workers.detection.requests) == 2
