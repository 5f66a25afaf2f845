"""A request that is repeated with its idempotency key is done once, and answered every time."""

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from api_key_maker import REQUIRED, bearer, expect_problem, new_key
from live_gateway import LiveGateway, live_gateway
from live_redis import LiveRedis, live_redis
from request_bodies import chat_body, data_url
from scripted_workers import finish, text

from gateway.leases import LEASE_MS
from superlink.errors import SuperlinkError

pytestmark = pytest.mark.surface

CHAT = "/v1/chat/completions"


@pytest.fixture
async def keeping(redis_server: LiveRedis) -> AsyncIterator[LiveGateway]:
    """A gateway without API keys, with a Redis."""
    async with live_gateway(redis_url=redis_server.url) as running:
        yield running


async def ask(gateway: LiveGateway, key: str, words: str = "Hi", **options: Any) -> httpx.Response:
    return await gateway.http.post(CHAT, json=chat_body(words, **options), headers={"idempotency-key": key})


async def test_a_repetition_gets_the_answer_of_the_first(keeping: LiveGateway) -> None:
    first = await ask(keeping, "order-1")
    second = await ask(keeping, "order-1")

    assert first.status_code == second.status_code == 200
    assert second.content == first.content
    assert second.headers["content-type"] == first.headers["content-type"]
    assert not {"idempotency-replayed", "idempotency-kept"} & set(first.headers)
    assert second.headers["idempotency-replayed"] == "true"
    assert second.headers["x-request-id"] != first.headers["x-request-id"]
    assert len(keeping.workers.mllm.generate_requests) == 1
    assert (await ask(keeping, "order-2")).json()["id"] != first.json()["id"]


async def test_another_request_with_the_same_key_is_refused(keeping: LiveGateway, png: bytes) -> None:
    await ask(keeping, "order-1")

    expect_problem(await ask(keeping, "order-1", "Something else"), 422, "idempotency_key_reused")
    elsewhere = await keeping.http.post(
        "/v1/detect", json={"image": data_url(png), "phrase": "dog"}, headers={"idempotency-key": "order-1"}
    )
    expect_problem(elsewhere, 422, "idempotency_key_reused")
    assert len(keeping.workers.mllm.generate_requests) == 1


async def test_a_repetition_meanwhile_is_told_to_wait(keeping: LiveGateway, redis_server: LiveRedis) -> None:
    go = asyncio.Event()
    keeping.workers.mllm.rounds = [[go, text("Done."), finish()]]
    first = asyncio.create_task(ask(keeping, "order-1"))
    await keeping.workers.mllm.started.wait()

    second = await ask(keeping, "order-1")
    assert expect_problem(second, 409, "request_in_progress")["retryable"]
    with redis_server.client() as redis:
        # Should the gateway die now, the key is free when the lease has run out.
        assert 0 < redis.pttl(redis.keys("superlink:idempotency:*")[0]) <= LEASE_MS
    go.set()
    assert (await first).status_code == 200
    assert (await ask(keeping, "order-1")).content == (await first).content
    assert len(keeping.workers.mllm.generate_requests) == 1


async def test_many_at_once_are_done_once(keeping: LiveGateway) -> None:
    responses = await asyncio.gather(*(ask(keeping, "order-1") for _ in range(10)))

    assert {response.status_code for response in responses} <= {200, 409}
    assert len({response.content for response in responses if response.status_code == 200}) == 1
    assert len(keeping.workers.mllm.generate_requests) == 1


async def test_what_failed_may_be_tried_again(keeping: LiveGateway) -> None:
    full = SuperlinkError("queue_full", "Full.", status=grpc.StatusCode.RESOURCE_EXHAUSTED)
    keeping.workers.mllm.rounds = [[full]]
    expect_problem(await ask(keeping, "order-1"), 429, "queue_full")
    keeping.workers.mllm.reset()

    assert (await ask(keeping, "order-1")).status_code == 200
    expect_problem(await ask(keeping, "order-2", n=2), 400, "unsupported_parameter")
    assert (await ask(keeping, "order-2")).status_code == 200


async def test_a_client_that_left_may_try_again(keeping: LiveGateway) -> None:
    keeping.workers.mllm.rounds = [[asyncio.Event()]]
    leaving = asyncio.create_task(ask(keeping, "order-1"))
    await keeping.workers.mllm.started.wait()
    leaving.cancel()
    await asyncio.wait_for(keeping.workers.mllm.cancelled.wait(), 5)
    keeping.workers.mllm.reset()
    async with asyncio.timeout(5):
        while (response := await ask(keeping, "order-1")).status_code == 409:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    assert response.status_code == 200


async def test_uploads_are_the_same_whatever_stands_between_their_parts(keeping: LiveGateway, png: bytes) -> None:
    def upload(phrase: str, boundary: str) -> dict[str, Any]:
        headers = {"idempotency-key": "order-1", "content-type": f"multipart/form-data; boundary={boundary}"}
        return {"files": {"image": png}, "data": {"phrase": phrase}, "headers": headers}

    first = await keeping.http.post("/v1/detect", **upload("dog", "one"))
    second = await keeping.http.post("/v1/detect", **upload("dog", "another"))
    assert first.status_code == 200, first.text
    assert second.content == first.content
    other = await keeping.http.post("/v1/detect", **upload("cat", "one"))
    expect_problem(other, 422, "idempotency_key_reused")
    assert len(keeping.workers.detection.requests) == 1


async def test_streams_are_not_kept(keeping: LiveGateway) -> None:
    for _ in range(2):
        response = await ask(keeping, "order-1", stream=True)
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.text.endswith("data: [DONE]\n\n")
        assert "idempotency-replayed" not in response.headers
        assert response.headers["idempotency-kept"] == "false"
    assert len(keeping.workers.mllm.generate_requests) == 2


async def test_answers_above_the_limit_are_not_kept(redis_server: LiveRedis) -> None:
    async with live_gateway(redis_url=redis_server.url, idempotency_max_answer_bytes=100) as gateway:
        for _ in range(2):
            response = await ask(gateway, "order-1")
            assert response.status_code == 200
            assert response.headers["idempotency-kept"] == "false"
        assert len(gateway.workers.mllm.generate_requests) == 2


async def test_answers_are_kept_for_as_long_as_the_profile_says(redis_server: LiveRedis) -> None:
    async with live_gateway(redis_url=redis_server.url, idempotency_keep_s=1) as gateway:
        first = await ask(gateway, "order-1")
        assert (await ask(gateway, "order-1")).content == first.content
        await asyncio.sleep(1.1)
        assert (await ask(gateway, "order-1")).content != first.content


async def test_another_gateway_knows_the_answer(keeping: LiveGateway, redis_server: LiveRedis) -> None:
    first = await ask(keeping, "order-1")
    async with live_gateway(redis_url=redis_server.url) as second:
        assert (await ask(second, "order-1")).content == first.content
        assert not second.workers.mllm.generate_requests


async def test_every_api_key_has_idempotency_keys_of_its_own(redis_server: LiveRedis) -> None:
    one, _ = await new_key(redis_server.url)
    other, _ = await new_key(redis_server.url)
    async with live_gateway(redis_url=redis_server.url, keys=REQUIRED) as gateway:
        first, second, again = [
            await gateway.http.post(CHAT, json=chat_body("Hi"), headers=bearer(key, **{"idempotency-key": "order-1"}))
            for key in (one, other, one)
        ]

    assert first.content == again.content != second.content


@pytest.mark.parametrize("key", ["", "two words", "x" * 256])
async def test_a_key_that_is_none_is_refused(keeping: LiveGateway, key: str) -> None:
    expect_problem(await ask(keeping, key), 400, "invalid_idempotency_key")


async def test_only_posts_are_remembered(keeping: LiveGateway) -> None:
    for _ in range(2):
        response = await keeping.http.get("/v1/models", headers={"idempotency-key": "order-1"})
        assert "idempotency-replayed" not in response.headers


async def test_without_a_redis_the_header_has_no_effect(gateway: LiveGateway) -> None:
    for _ in range(2):
        assert "idempotency-replayed" not in (await ask(gateway, "order-1")).headers
    assert len(gateway.workers.mllm.generate_requests) == 2


@pytest.mark.faults
async def test_what_cannot_be_remembered_is_not_begun(tmp_path: Path) -> None:
    with live_redis(tmp_path) as server:
        async with live_gateway(redis_url=server.url) as gateway:
            server.stop(signal.SIGKILL)
            expect_problem(await ask(gateway, "order-1"), 503, "redis_unavailable")
            assert not gateway.workers.mllm.generate_requests
            server.start()
            assert (await ask(gateway, "order-1")).status_code == 200


@pytest.mark.faults
async def test_an_answer_reaches_its_client_though_redis_went_away_meanwhile(tmp_path: Path) -> None:
    with live_redis(tmp_path) as server:
        async with live_gateway(redis_url=server.url) as gateway:
            go = asyncio.Event()
            gateway.workers.mllm.rounds = [[go, text("Done."), finish()]]
            running = asyncio.create_task(ask(gateway, "order-1"))
            await gateway.workers.mllm.started.wait()
            server.stop(signal.SIGKILL)
            go.set()
            response = await running

    assert response.json()["choices"][0]["message"]["content"] == "Done."
    assert response.headers["idempotency-kept"] == "false"


async def test_the_description_names_the_header_where_it_has_an_effect(
    keeping: LiveGateway, gateway: LiveGateway
) -> None:
    for running, expected in ((keeping, True), (gateway, False)):
        document = (await running.http.get("/openapi.json")).json()
        operation = document["paths"]["/v1/detect"]["post"]
        names = [parameter["name"].lower() for parameter in operation.get("parameters", [])]
        assert ("idempotency-key" in names, "422" in operation["responses"]) == (expected, expected)


async def test_a_body_above_the_limit_is_refused_with_a_key_too(keeping: LiveGateway) -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield b"\0" * 1_000_000

    headers = {"content-type": "application/json", "idempotency-key": "order-1"}
    response = await keeping.http.post(CHAT, content=endless(), headers=headers)

    expect_problem(response, 413, "body_too_large")
