"""Batches while what they need is killed, away or full: clear states, and every line exactly once in the results."""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from api_key_maker import bearer, new_key
from batch_lines import detect_line, detect_lines, expect_each_once, slow_detector, until, until_begun
from batch_workers import BatchWorker, batch_gateway, batch_worker, look, order, until_over
from live_gateway import LiveGateway
from live_redis import LiveRedis, live_redis
from scripted_workers import detection, detections

from superlink.artifacts import open_store
from superlink.v1 import decoder_pb2

pytestmark = [pytest.mark.faults]


@pytest.fixture
async def redis(tmp_path: Path) -> AsyncIterator[LiveRedis]:
    """One that may be killed."""
    (tmp_path / "redis").mkdir()
    with live_redis(tmp_path / "redis") as server:
        yield server


@pytest.fixture
async def gateway(redis: LiveRedis) -> AsyncIterator[LiveGateway]:
    async with batch_gateway(redis) as running:
        yield running


async def test_every_line_is_answered_once_while_workers_and_redis_are_killed(
    gateway: LiveGateway, redis: LiveRedis, tmp_path: Path
) -> None:
    slow_detector(gateway, 0.1)
    chance = random.Random(7)  # noqa: S311
    with batch_worker(tmp_path / "one", gateway) as one, batch_worker(tmp_path / "two", gateway) as two:
        batch = await order(gateway, detect_lines(200))
        await until_begun(gateway)
        for kill in (_kill_worker, _kill_child, _kill_redis, _kill_worker, _kill_child, _kill_redis):
            await asyncio.sleep(chance.uniform(0.3, 1.5))
            await kill(chance.choice([one, two]), redis)
        assert (await look(gateway, batch))["status"] == "in_progress"
        over = await until_over(gateway, batch)
        assert over["status"] == "completed"
        await expect_each_once(gateway, over, 200)
        assert (one.stop(), two.stop()) == (0, 0)


async def _kill_worker(worker: BatchWorker, redis: LiveRedis) -> None:
    worker.kill()
    await asyncio.sleep(0.5)
    worker.start()


async def _kill_child(worker: BatchWorker, redis: LiveRedis) -> None:
    for child in worker.children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


async def _kill_redis(worker: BatchWorker, redis: LiveRedis) -> None:
    redis.stop(signal.SIGKILL)
    await asyncio.sleep(0.5)
    redis.start()


async def test_a_worker_that_is_told_to_stop_keeps_what_it_has_and_another_goes_on(
    gateway: LiveGateway, tmp_path: Path
) -> None:
    slow_detector(gateway, 0.2)
    with batch_worker(tmp_path / "one", gateway, max_shard_lines=50) as worker:
        batch = await order(gateway, detect_lines(30))
        await until_begun(gateway, 6)
        assert await asyncio.to_thread(worker.stop) == 0
        asked = len(gateway.workers.detection.requests)
        assert asked < 30
        worker.start()
        await expect_each_once(gateway, await until_over(gateway, batch), 30)
    # What was answered before is not asked again.
    assert len([each for each in gateway.workers.detection.requests if each.groups]) == 30


async def test_redis_that_forgot_everything_loses_no_line(
    gateway: LiveGateway, redis: LiveRedis, tmp_path: Path
) -> None:
    slow_detector(gateway, 0.1)
    with batch_worker(tmp_path / "one", gateway):
        batch = await order(gateway, detect_lines(40))
        await until_begun(gateway, 5)
        redis.clear()
        await expect_each_once(gateway, await until_over(gateway, batch), 40)


async def test_a_line_that_kills_its_worker_is_given_up_and_fails_alone(gateway: LiveGateway, tmp_path: Path) -> None:
    with batch_worker(tmp_path / "one", gateway, max_deliveries=2) as worker:

        def script(request: decoder_pb2.DecodeRequest) -> list[Any]:
            if request.groups and request.groups[0].phrase == "poison":
                for child in worker.children():
                    os.kill(child, signal.SIGKILL)
                return [5.0]
            return [detections([detection(0)])]

        gateway.workers.detection.script = script
        lines = [detect_line(f"line-{number}") for number in range(6)]
        lines[2] = detect_line("line-2", categories=["poison"])
        over = await until_over(gateway, await order(gateway, b"".join(lines)))
        [error] = await expect_each_once(gateway, over, 6, failed=1)
    assert (error["custom_id"], error["error"]["code"], error["error"]["line"]) == ("line-2", "line_abandoned", 3)


async def test_a_store_that_is_full_or_away_is_waited_for(gateway: LiveGateway, tmp_path: Path) -> None:
    slow_detector(gateway, 0.05)
    folder = Path(gateway.workers.profile.artifacts.url)
    with batch_worker(tmp_path / "one", gateway) as worker:
        batch = await order(gateway, detect_lines(40))
        await until_begun(gateway, 5)
        _take_away(folder)
        await asyncio.sleep(3)
        response = await gateway.http.get(f"/v1/batches/{batch['id']}")
        assert response.status_code in (404, 503)
        said = [entry for entry in worker.entries() if entry["message"].startswith("the keeper cannot go on")]
        assert said[0]["code"] == "storage_unavailable"
        _bring_back(folder)
        await expect_each_once(gateway, await until_over(gateway, batch), 40)


def _take_away(folder: Path) -> None:
    """Nobody can make anything in it any more, nor find what is in it."""
    folder.rename(folder.with_name(f"{folder.name}-away"))
    folder.write_text("")


def _bring_back(folder: Path) -> None:
    folder.unlink()
    folder.with_name(f"{folder.name}-away").rename(folder)


@pytest.mark.slow
async def test_redis_without_memory_is_named_and_nothing_is_lost(
    gateway: LiveGateway, redis: LiveRedis, tmp_path: Path
) -> None:
    slow_detector(gateway, 0.1)
    with batch_worker(tmp_path / "one", gateway) as worker, redis.client() as client:
        batch = await order(gateway, detect_lines(40))
        await until_begun(gateway, 5)
        client.config_set("maxmemory", 1)
        second = await order(gateway, detect_lines(3))

        async def is_named() -> bool:
            return "OutOfMemoryError" in worker.log.read_text()

        await until(is_named)
        assert (await look(gateway, batch))["status"] == "in_progress"
        # Celery looks every two seconds for steps that a worker left, which needs Redis to write.
        await asyncio.sleep(5)
        client.config_set("maxmemory", 0)
        over, also_over = await until_over(gateway, batch), await until_over(gateway, second)
        await expect_each_once(gateway, over, 40)
        await expect_each_once(gateway, also_over, 3)
        assert worker.is_running()


async def test_a_gateway_that_is_away_is_no_fault_of_the_lines(redis: LiveRedis, tmp_path: Path) -> None:
    async with batch_gateway(redis) as gateway:
        with batch_worker(tmp_path / "one", gateway, gateway_url="http://127.0.0.1:9") as worker:
            batch = await order(gateway, detect_lines(3))
            await asyncio.sleep(3)
            assert (await look(gateway, batch))["request_counts"]["failed"] == 0
            worker.kill()
        with batch_worker(tmp_path / "two", gateway):
            await expect_each_once(gateway, await until_over(gateway, batch), 3)


async def test_a_revoked_key_ends_its_batch_and_a_lost_ticket_does_not(redis: LiveRedis, tmp_path: Path) -> None:
    async with batch_gateway(redis, keys={"required": True, "limits": {"requests_per_minute": 0}}) as gateway:
        slow_detector(gateway, 0.1)
        key, record = await new_key(redis.url)
        with batch_worker(tmp_path / "one", gateway), redis.client() as client:
            batch = await order(gateway, detect_lines(20), headers=bearer(key))
            await until_begun(gateway, 4)
            for ticket in client.scan_iter("superlink:batches:ticket:*"):
                client.delete(ticket)
            over = await until_over(gateway, batch, headers=bearer(key))
            assert over["request_counts"] == {"total": 20, "completed": 20, "failed": 0}
    assert open_store(gateway.workers.profile) is not None
    assert record.revoked_at is None
