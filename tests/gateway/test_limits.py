"""Every key has its limits, they hold for all gateways together, and no crash takes anything away from a key."""

import asyncio
import signal
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from api_key_maker import REQUIRED, bearer, expect_problem, new_key
from gateway_process import free_port, gateway_process
from live_gateway import LiveGateway, live_gateway
from live_redis import LiveRedis
from request_bodies import chat_body
from scripted_workers import finish, text

from gateway.leases import LEASE_S

pytestmark = pytest.mark.surface


async def ask(gateway: LiveGateway, key: str) -> httpx.Response:
    return await gateway.http.post("/v1/chat/completions", json=chat_body("Hi"), headers=bearer(key))


async def test_a_key_may_send_so_many_requests_a_minute(keyed: LiveGateway, redis_server: LiveRedis) -> None:
    key, _ = await new_key(redis_server.url, requests_per_minute=3)
    other, _ = await new_key(redis_server.url)

    assert [(await ask(keyed, key)).status_code for _ in range(3)] == [200, 200, 200]
    refused = await ask(keyed, key)
    problem = expect_problem(refused, 429, "rate_limited")
    assert "3 requests a minute" in problem["detail"]
    assert problem["retryable"]
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert (await ask(keyed, other)).status_code == 200
    assert 'superlink_gateway_refusals_total{code="rate_limited"} 1.0' in (await keyed.http.get("/metrics")).text


async def test_the_minute_moves_on(keyed: LiveGateway, redis_server: LiveRedis) -> None:
    key, record = await new_key(redis_server.url, requests_per_minute=2)
    for _ in range(2):
        await ask(keyed, key)
    with redis_server.client() as redis:
        window = f"superlink:limits:{record.id}:minute"
        [first, _] = redis.zrange(window, 0, -1)
        # As if the first request had been sent half a minute earlier.
        redis.zincrby(window, -30_000, first)
        assert 25 <= int((await ask(keyed, key)).headers["retry-after"]) <= 30
        redis.zincrby(window, -30_000, first)

    assert (await ask(keyed, key)).status_code == 200
    assert (await ask(keyed, key)).status_code == 429


async def test_refused_requests_do_not_count(keyed: LiveGateway, redis_server: LiveRedis) -> None:
    key, record = await new_key(redis_server.url, requests_per_minute=1)
    for _ in range(5):
        await ask(keyed, key)

    with redis_server.client() as redis:
        assert redis.zcard(f"superlink:limits:{record.id}:minute") == 1
        assert redis.get(f"superlink:limits:{record.id}:day") == b"1"


async def test_a_key_may_send_so_many_requests_a_day(keyed: LiveGateway, redis_server: LiveRedis) -> None:
    key, record = await new_key(redis_server.url, requests_per_day=2)

    assert [(await ask(keyed, key)).status_code for _ in range(2)] == [200, 200]
    refused = await ask(keyed, key)
    expect_problem(refused, 429, "quota_exceeded")
    now = datetime.now(UTC)
    midnight = datetime.combine(now.date() + timedelta(days=1), datetime.min.time(), UTC)
    assert abs(int(refused.headers["retry-after"]) - (midnight - now).total_seconds()) < 5
    with redis_server.client() as redis:
        # What happens at midnight.
        redis.pexpire(f"superlink:limits:{record.id}:day", 1)
    await asyncio.sleep(0.01)
    assert (await ask(keyed, key)).status_code == 200


async def test_the_profile_limits_keys_without_limits_of_their_own(redis_server: LiveRedis) -> None:
    limits = {"requests_per_minute": 1, "concurrent_requests": 0, "requests_per_day": 0}
    plain, _ = await new_key(redis_server.url)
    favoured, _ = await new_key(redis_server.url, requests_per_minute=0)
    async with live_gateway(redis_url=redis_server.url, keys={"required": True, "limits": limits}) as gateway:
        assert [(await ask(gateway, plain)).status_code for _ in range(2)] == [200, 429]
        assert {(await ask(gateway, favoured)).status_code for _ in range(3)} == {200}


async def test_a_key_may_have_so_many_requests_running(keyed: LiveGateway, redis_server: LiveRedis) -> None:
    key, _ = await new_key(redis_server.url, concurrent_requests=2)
    go = asyncio.Event()
    keyed.workers.mllm.rounds = [[go, text("Done."), finish()]]

    running = [asyncio.create_task(ask(keyed, key)) for _ in range(2)]
    while len(keyed.workers.mllm.generate_requests) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    refused = await ask(keyed, key)
    expect_problem(refused, 429, "too_many_concurrent_requests")
    assert refused.headers["retry-after"] == "1"
    go.set()
    assert [response.status_code for response in await asyncio.gather(*running)] == [200, 200]
    assert (await ask(keyed, key)).status_code == 200


async def test_whoever_has_the_answer_may_ask_again_at_once(keyed: LiveGateway, redis_server: LiveRedis) -> None:
    key, record = await new_key(redis_server.url, concurrent_requests=1)
    go = asyncio.Event()
    keyed.workers.mllm.rounds = [[go, text("Done."), finish()]]
    running = asyncio.create_task(ask(keyed, key))
    await keyed.workers.mllm.started.wait()
    with redis_server.client() as redis:
        # So that the place is not freed a moment after the answer by chance.
        redis.client_pause(500, all=False)
        go.set()
        assert (await running).status_code == 200
        assert redis.zcard(f"superlink:limits:{record.id}:slots") == 0
    assert {(await ask(keyed, key)).status_code for _ in range(10)} == {200}


async def test_a_stream_counts_until_it_ends(keyed: LiveGateway, redis_server: LiveRedis) -> None:
    key, _ = await new_key(redis_server.url, concurrent_requests=1)
    go = asyncio.Event()
    keyed.workers.mllm.rounds = [[text("So"), go, text(" far."), finish()]]
    body = chat_body("Hi", stream=True)

    async with keyed.http.stream("POST", "/v1/chat/completions", json=body, headers=bearer(key)) as stream:
        lines = stream.aiter_lines()
        assert (await anext(lines)).startswith("data:")
        assert (await ask(keyed, key)).status_code == 429
        go.set()
        assert [line async for line in lines if line][-1] == "data: [DONE]"
    assert (await ask(keyed, key)).status_code == 200


@pytest.mark.faults
async def test_a_client_that_leaves_frees_its_place(keyed: LiveGateway, redis_server: LiveRedis) -> None:
    key, _ = await new_key(redis_server.url, concurrent_requests=1)
    keyed.workers.mllm.rounds = [[asyncio.Event()]]
    leaving = asyncio.create_task(ask(keyed, key))
    await keyed.workers.mllm.started.wait()
    leaving.cancel()
    await asyncio.wait_for(keyed.workers.mllm.cancelled.wait(), 5)
    keyed.workers.mllm.reset()

    deadline = time.monotonic() + 2
    while (response := await ask(keyed, key)).status_code == 429 and time.monotonic() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    assert response.status_code == 200


async def test_the_limits_are_those_of_all_gateways_together(keyed: LiveGateway, redis_server: LiveRedis) -> None:
    limits = {"requests_per_minute": 10, "concurrent_requests": 0}
    key, _ = await new_key(redis_server.url, **limits)
    async with live_gateway(redis_url=redis_server.url, keys=REQUIRED) as second:
        responses = await asyncio.gather(*(ask(gateway, key) for gateway in (keyed, second) * 15))

    assert Counter(response.json().get("code", "answered") for response in responses) == {
        "answered": 10,
        "rate_limited": 20,
    }


@pytest.mark.faults
@pytest.mark.slow
async def test_places_are_renewed_while_a_request_runs_and_free_soon_after_a_crash(
    keyed: LiveGateway, redis_server: LiveRedis, tmp_path: Path
) -> None:
    """A gateway in a process of its own, which is killed in the midst of a request."""
    key, _ = await new_key(redis_server.url, concurrent_requests=1)
    keyed.workers.mllm.rounds = [[asyncio.Event()]]
    profile = keyed.workers.profile.model_dump(mode="json")
    profile["gateway"]["request_timeout_s"] = 60
    port = free_port()
    process = gateway_process(tmp_path, port, profile, stderr=None)
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    try:
        running = asyncio.create_task(ask_until_connected(url, key))
        await asyncio.wait_for(keyed.workers.mllm.started.wait(), 60)
        keyed.workers.mllm.reset()
        await asyncio.sleep(LEASE_S + 1)
        assert (await ask(keyed, key)).status_code == 429

        process.send_signal(signal.SIGKILL)
        process.wait()
        killed_at = time.monotonic()
        assert (await ask(keyed, key)).status_code == 429
        while (await ask(keyed, key)).status_code == 429:
            assert time.monotonic() - killed_at < LEASE_S + 2
            await asyncio.sleep(0.2)
        with pytest.raises(httpx.TransportError):
            await running
    finally:
        process.kill()
        process.wait()


async def ask_until_connected(url: str, key: str) -> httpx.Response:
    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
        while True:
            try:
                return await http.post(url, json=chat_body("Hi"), headers=bearer(key))
            except httpx.ConnectError:
                await asyncio.sleep(0.1)


@pytest.mark.faults
async def test_nothing_stays_in_redis_of_a_key_that_rests(keyed: LiveGateway, redis_server: LiveRedis) -> None:
    key, _ = await new_key(redis_server.url)
    await ask(keyed, key)

    with redis_server.client() as redis:
        lasting = [name for name in redis.keys("*") if redis.ttl(name) < 0]
    assert lasting == [b"superlink:keys"]
