"""More requests than a deployment can answer: those let in are answered in time, the others are refused at once."""

import asyncio
import time
from dataclasses import dataclass

import grpc
import pytest
from replicated import Replicated, replicated, worker_processes
from scripted_workers import user_message

from orchestrator.adaptive_limit import AdaptiveLimit
from orchestrator.admission import Admission
from orchestrator.deadline import Deadline, out_of_time
from orchestrator.metrics import Metrics
from superlink.errors import SuperlinkError, from_rpc_error
from superlink.profile import OrchestratorSettings
from superlink.v1 import orchestrator_pb2

QUEUE_BUDGET_S = OrchestratorSettings().queue_budget_s
WORK_S = 0.05


@dataclass(frozen=True)
class Asked:
    code: str
    retry_after_ms: int
    took_s: float


async def ask(deployment: Replicated, number: int) -> Asked:
    began = time.monotonic()
    code, retry_after_ms = "ok", 0
    try:
        await deployment.ask(picture=b"picture %d" % number)
    except grpc.aio.AioRpcError as failed:
        error = from_rpc_error(failed, "orchestrator")
        code, retry_after_ms = error.code, error.retry_after_ms
    return Asked(code, retry_after_ms, time.monotonic() - began)


async def ask_at(deployment: Replicated, per_second: float, seconds: float) -> list[Asked]:
    """Requests at fixed times, whatever becomes of those before."""
    began = time.monotonic()
    tasks = []
    for number in range(round(per_second * seconds)):
        await asyncio.sleep(max(0.0, began + number / per_second - time.monotonic()))
        tasks.append(asyncio.create_task(ask(deployment, number)))
    return await asyncio.gather(*tasks)


def slowest_percent(asked: list[Asked]) -> float:
    times = sorted(each.took_s for each in asked)
    return times[int(0.99 * (len(times) - 1))]


@pytest.mark.faults
async def test_at_five_times_capacity_who_is_let_in_is_answered_in_time_and_capacity_is_used() -> None:
    settings = OrchestratorSettings(address="127.0.0.1:0", drain_timeout_s=1, prefetch=False)
    async with (
        worker_processes(11, seconds=[WORK_S]) as [worker],
        replicated([worker.address], settings) as deployment,
    ):
        alone = [await ask(deployment, number) for number in range(30)]
        # What it does at most, when nobody is refused.
        began = time.monotonic()
        full = await asyncio.gather(*(ask(deployment, number) for number in range(AdaptiveLimit.FIRST)))
        capacity = len(full) / (time.monotonic() - began)
        seconds = 8.0
        began = time.monotonic()
        asked = await ask_at(deployment, 5 * capacity, seconds)
        lasted_s = time.monotonic() - began
        # Afterwards all is as before.
        assert {(await ask(deployment, number)).code for number in range(10)} == {"ok"}

    answered = [each for each in asked if each.code == "ok"]
    refused = [each for each in asked if each.code != "ok"]
    assert {each.code for each in (*alone, *full)} == {"ok"}
    assert {each.code for each in refused} == {"overloaded"}
    assert slowest_percent(answered) <= 2 * slowest_percent(alone) + QUEUE_BUDGET_S
    assert len(answered) / lasted_s >= 0.9 * capacity
    assert all(each.retry_after_ms >= 100 for each in refused)
    # Most need not wait to hear it.
    assert sorted(each.took_s for each in refused)[len(refused) // 2] < 0.1
    assert max(each.took_s for each in refused) < QUEUE_BUDGET_S


def admission(queue_budget_s: float = 1.0) -> Admission:
    return Admission("detection", queue_budget_s, Metrics())


async def fill(places: Admission, count: int) -> None:
    for _ in range(count):
        await places.enter(Deadline(60))


async def test_a_burst_waits_for_places_in_order_of_arrival() -> None:
    places = admission()
    held = [await places.enter(Deadline(60)) for _ in range(AdaptiveLimit.FIRST)]
    order: list[int] = []

    async def come(number: int) -> None:
        place = await places.enter(Deadline(60))
        order.append(number)
        places.leave(place, None)

    waiting = [asyncio.create_task(come(number)) for number in range(5)]
    await asyncio.sleep(0.01)
    assert order == []
    places.leave(held[0], None)
    await asyncio.gather(*waiting)

    assert order == [0, 1, 2, 3, 4]


async def test_nobody_waits_longer_than_the_budget_allows_or_than_the_deadline() -> None:
    places = admission(queue_budget_s=0.2)
    await fill(places, AdaptiveLimit.FIRST)
    for deadline_s, longest_s in ((60, 0.07), (0.03, 0.03)):
        began = time.monotonic()
        with pytest.raises(SuperlinkError) as caught:
            await places.enter(Deadline(deadline_s))
        assert longest_s - 0.01 <= time.monotonic() - began < longest_s + 0.1
        assert (caught.value.code, caught.value.http_status, caught.value.retryable) == ("overloaded", 429, True)


async def test_who_leaves_while_waiting_takes_no_place() -> None:
    places = admission()
    held = [await places.enter(Deadline(60)) for _ in range(AdaptiveLimit.FIRST)]
    waiting = [asyncio.create_task(places.enter(Deadline(60))) for _ in range(3)]
    await asyncio.sleep(0.01)
    waiting[0].cancel()
    # The second is called in and leaves at the same moment.
    places.leave(held[0], None)
    waiting[1].cancel()
    place = await asyncio.wait_for(waiting[2], 1)
    assert waiting[0].cancelled() or waiting[0].done()
    places.leave(place, None)
    for each in held[1:]:
        places.leave(each, None)
    # As many as at first fit in again.
    async with asyncio.timeout(0.2):
        await fill(places, AdaptiveLimit.FIRST)


async def test_a_request_that_is_let_in_reports_the_limit_in_metrics() -> None:
    metrics = Metrics()
    places = Admission("mllm", 1.0, metrics)
    await fill(places, 3)
    value = metrics.registry.get_sample_value("superlink_orchestrator_concurrency_limit", {"kind": "mllm"})
    assert value == AdaptiveLimit.FIRST


@pytest.mark.parametrize("begun", [True, False])
async def test_running_out_of_time_is_a_sign_of_load_unless_the_answer_began_soon(begun: bool) -> None:
    metrics = Metrics()
    places = Admission("mllm", 0.1, metrics)
    for seconds, error in ((0.0, None), (AdaptiveLimit.WINDOW_S + 0.1, out_of_time())):
        held = [await places.enter(Deadline(60)) for _ in range(AdaptiveLimit.FEWEST_LATENCIES)]
        for place in held:
            if begun or error is None:
                place.answered()
        await asyncio.sleep(seconds)
        for place in held:
            places.leave(place, error)

    value = metrics.registry.get_sample_value("superlink_orchestrator_concurrency_limit", {"kind": "mllm"})
    assert value is not None
    assert (value < AdaptiveLimit.FIRST) is not begun


async def test_answers_and_tools_have_places_of_their_own() -> None:
    async with worker_processes(11, seconds=[0.5]) as [worker], replicated([worker.address]) as deployment:
        busy = [asyncio.create_task(deployment.outcome(picture=b"%d" % number)) for number in range(40)]
        await asyncio.sleep(0.2)
        request = orchestrator_pb2.AnswerRequest(messages=[user_message("What is this?")])
        began = time.monotonic()
        events = [event async for event in deployment.stub.Answer(request, timeout=5)]
        took_s = time.monotonic() - began
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)

    assert events[-1].HasField("finish")
    assert took_s < 0.4
