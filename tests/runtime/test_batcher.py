import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import use_span

from services.runtime.batcher import Batcher, BatchQueue, FlushReason, QueueFullError, Ticket
from services.runtime.metrics import WorkerMetrics
from services.runtime.model_thread import ModelThread
from superlink import telemetry
from superlink.errors import SuperlinkError
from superlink.profile import BatchLimits

LIMITS = BatchLimits(max_batch_size=3, max_batch_bytes=100, max_wait_ms=10, max_queue_size=7)

arrivals = st.tuples(
    st.just("arrive"), st.integers(min_value=0, max_value=150), st.one_of(st.just(math.inf), st.floats(0, 0.05))
)
steps = st.lists(
    st.one_of(
        arrivals,
        st.tuples(st.just("advance"), st.floats(0, 0.02)),
        st.tuples(st.just("cancel"), st.integers(0, 10)),
        st.tuples(st.just("batch"), st.floats(0, 0.01)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(steps)
def test_queue_loses_nothing_doubles_nothing_and_keeps_every_limit(script: list[tuple[Any, ...]]) -> None:
    queue: BatchQueue[int] = BatchQueue(LIMITS)
    now, accepted, ended = 0.0, [], []
    for number, step in enumerate(script):
        if step[0] == "arrive":
            ticket = Ticket(number, size_bytes=step[1], arrived=now, deadline=now + step[2])
            if len(queue) == LIMITS.max_queue_size:
                with pytest.raises(QueueFullError):
                    queue.offer(ticket)
            else:
                queue.offer(ticket)
                accepted.append(ticket)
        elif step[0] == "advance":
            now += step[1]
        elif step[0] == "cancel":
            waiting = [ticket for ticket in accepted if ticket not in ended]
            if waiting:
                ticket = waiting[step[1] % len(waiting)]
                assert queue.discard(ticket)
                assert not queue.discard(ticket)
                ended.append(ticket)
        else:
            expired = queue.expire(now)
            ended.extend(expired)
            waiting = [ticket for ticket in accepted if ticket not in ended]
            reason = queue.reason_to_close(now)
            if reason is None:
                assert len(waiting) < LIMITS.max_batch_size
                assert queue.closes_at() > now
                # Nothing waits longer for an idle model than the window allows.
                assert all(now - ticket.arrived < LIMITS.max_wait_ms / 1000 for ticket in waiting)
                if waiting:
                    assert queue.reason_to_close(queue.closes_at()) is not None
                continue
            batch = queue.take()
            assert batch == waiting[: len(batch)]
            assert 1 <= len(batch) <= LIMITS.max_batch_size
            assert len(batch) == 1 or sum(ticket.size_bytes for ticket in batch) <= LIMITS.max_batch_bytes
            assert all(ticket.deadline > now for ticket in batch)
            ended.extend(batch)
            now += step[1]
            queue.times.add(step[1], now)
    while len(queue):
        ended.extend(queue.take())
    assert sorted(ticket.request for ticket in ended) == [ticket.request for ticket in accepted]


def offer(queue: BatchQueue[str], *, at: float = 0.0, size_bytes: int = 1, deadline: float = math.inf) -> None:
    queue.offer(Ticket("request", size_bytes, at, deadline))


def test_a_batch_holds_one_kind_and_the_others_keep_their_places() -> None:
    queue: BatchQueue[str] = BatchQueue(LIMITS)
    for name, kind in zip("abcdefg", "xyxxyxz", strict=True):
        queue.offer(Ticket(name, 1, 0.0, kind=kind))
    taken = []
    while len(queue):
        taken.append("".join(ticket.request for ticket in queue.take()))
    assert taken == ["acd", "be", "f", "g"]


def test_every_reason_closes_a_batch() -> None:
    queue: BatchQueue[str] = BatchQueue(LIMITS)
    assert queue.reason_to_close(0.0, draining=True) is None
    offer(queue, at=0.0)
    assert queue.reason_to_close(0.009) is None
    assert queue.reason_to_close(0.010) is FlushReason.WINDOW
    assert queue.reason_to_close(0.001, draining=True) is FlushReason.DRAIN
    offer(queue, size_bytes=99)
    assert queue.reason_to_close(0.0) is FlushReason.BYTES
    offer(queue)
    assert queue.reason_to_close(0.0) is FlushReason.FULL


def test_batch_starts_early_enough_for_the_nearest_deadline() -> None:
    queue: BatchQueue[str] = BatchQueue(LIMITS.model_copy(update={"max_wait_ms": 1000.0}))
    queue.times.add(0.1, now=0.0)
    offer(queue, at=0.0)
    offer(queue, at=0.0, deadline=0.5)
    assert queue.closes_at() == pytest.approx(0.3)
    assert queue.reason_to_close(0.29) is None
    assert queue.reason_to_close(0.31) is FlushReason.DEADLINE


def test_request_that_cannot_finish_is_dropped_until_the_measurement_is_old() -> None:
    queue: BatchQueue[str] = BatchQueue(LIMITS)
    queue.times.add(1.0, now=0.0)
    offer(queue, at=0.0, deadline=0.5)
    assert len(queue.expire(0.0)) == 1
    offer(queue, at=20.0, deadline=20.5)
    assert queue.expire(20.0) == []


@dataclass
class Model:
    """Doubles numbers; records each batch; fails on negative ones."""

    delay_s: float = 0.0
    batches: list[list[int]] = field(default_factory=list)

    def run(self, requests: Sequence[int]) -> list[int]:
        self.batches.append(list(requests))
        time.sleep(self.delay_s)
        if any(request < 0 for request in requests):
            raise ValueError("negative")
        return [2 * request for request in requests]


MakeBatcher = Callable[..., tuple[Batcher[int, int], WorkerMetrics]]


@pytest.fixture
async def make_batcher() -> AsyncIterator[MakeBatcher]:
    made: list[tuple[Batcher[int, int], ModelThread]] = []

    def make(model: Model, **limits: float) -> tuple[Batcher[int, int], WorkerMetrics]:
        metrics, thread = WorkerMetrics("test"), ModelThread(1)
        batcher = Batcher(model.run, thread, LIMITS.model_copy(update=limits), metrics)
        batcher.start()
        made.append((batcher, thread))
        return batcher, metrics

    yield make
    for batcher, thread in made:
        await batcher.close()
        thread.close()


async def test_requests_that_arrive_together_run_together_and_get_their_own_answers(make_batcher: MakeBatcher) -> None:
    model = Model()
    batcher, metrics = make_batcher(model)
    completed = await asyncio.gather(*(batcher.submit(number) for number in range(7)))
    assert [one.response for one in completed] == [0, 2, 4, 6, 8, 10, 12]
    assert sorted(map(len, model.batches)) == [1, 3, 3]
    assert metrics.value("superlink_worker_batch_flushes_total", reason="full") == 2
    assert metrics.value("superlink_worker_batch_flushes_total", reason="window") == 1
    assert metrics.value("superlink_worker_requests_total", outcome="completed") == 7


async def test_lone_request_waits_no_longer_than_the_window(make_batcher: MakeBatcher) -> None:
    batcher, _ = make_batcher(Model(), max_wait_ms=20.0)
    completed = await batcher.submit(1)
    assert completed.batch_size == 1
    assert 0.019 <= completed.queue_s < 0.2


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """The spans of this test, which begin at once."""
    exporter, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(telemetry, "tracer", provider.get_tracer("test"))
    return exporter


async def test_the_trace_of_a_request_shows_who_was_in_its_batch(
    make_batcher: MakeBatcher, spans: InMemorySpanExporter
) -> None:
    batcher, _ = make_batcher(Model(delay_s=0.02))

    async def traced(number: int) -> int:
        with use_span(telemetry.tracer.start_span(f"request {number}"), end_on_exit=True) as span:
            await batcher.submit(number)
        return span.get_span_context().span_id

    first, second = await asyncio.gather(traced(1), traced(2))
    finished = spans.get_finished_spans()
    for own, other in ((first, second), (second, first)):
        phases = {span.name: span for span in finished if span.parent is not None and span.parent.span_id == own}
        assert phases.keys() == {"queue", "compute"}
        assert [link.context.span_id for link in phases["compute"].links] == [other]
        assert dict(phases["compute"].attributes or {}) == {"superlink.batch_size": 2}
        queued, computed = phases["queue"], phases["compute"]
        assert abs((computed.start_time or 0) - (queued.end_time or 0)) < 50e6
        assert (computed.end_time or 0) - (computed.start_time or 0) >= 0.02e9


async def test_the_trace_of_a_request_that_was_given_up_shows_how_long_it_waited(
    make_batcher: MakeBatcher, spans: InMemorySpanExporter
) -> None:
    batcher, _ = make_batcher(Model(delay_s=0.1), max_wait_ms=0.0)
    running = asyncio.create_task(batcher.submit(1))
    await asyncio.sleep(0.03)
    with (
        use_span(telemetry.tracer.start_span("given up"), end_on_exit=True, record_exception=False),
        pytest.raises(TimeoutError),
    ):
        async with asyncio.timeout(0.03):
            await batcher.submit(2)
    await running
    assert [span.name for span in spans.get_finished_spans()] == ["queue", "given up"]


async def test_cancelled_request_never_reaches_the_model(make_batcher: MakeBatcher) -> None:
    model = Model(delay_s=0.1)
    batcher, metrics = make_batcher(model, max_wait_ms=0.0)
    running = asyncio.create_task(batcher.submit(1))
    await asyncio.sleep(0.03)
    waiting = asyncio.create_task(batcher.submit(2))
    await asyncio.sleep(0.03)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert (await running).response == 2
    assert (await batcher.submit(3)).response == 6
    assert model.batches == [[1], [3]]
    assert metrics.value("superlink_worker_requests_total", outcome="cancelled") == 1


@pytest.mark.parametrize(("given_s", "left_after_s", "outcome"), [(0.3, 0.1, "cancelled"), (2.0, 1.9, "expired")])
async def test_who_gives_up_at_a_deadline_has_run_out_of_time(
    make_batcher: MakeBatcher, given_s: float, left_after_s: float, outcome: str
) -> None:
    batcher, metrics = make_batcher(Model(), max_wait_ms=10_000.0)
    waiting = asyncio.create_task(batcher.submit(1, deadline=time.monotonic() + given_s))
    await asyncio.sleep(left_after_s)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert metrics.value("superlink_worker_requests_total", outcome=outcome) == 1


async def test_expired_request_never_reaches_the_model(make_batcher: MakeBatcher) -> None:
    model = Model(delay_s=0.1)
    batcher, metrics = make_batcher(model, max_wait_ms=0.0)
    running = asyncio.create_task(batcher.submit(1))
    await asyncio.sleep(0.02)
    with pytest.raises(SuperlinkError) as caught:
        await batcher.submit(2, deadline=time.monotonic() + 0.05)
    assert caught.value.status is grpc.StatusCode.DEADLINE_EXCEEDED
    await running
    assert model.batches == [[1]]
    assert metrics.value("superlink_worker_requests_total", outcome="expired") == 1


async def test_full_queue_refuses_with_a_delay_from_measured_batches(make_batcher: MakeBatcher) -> None:
    batcher, metrics = make_batcher(Model(delay_s=0.1), max_queue_size=2, max_batch_size=1, max_wait_ms=0.0)
    await batcher.submit(0)
    tasks = []
    for number in range(3):
        tasks.append(asyncio.create_task(batcher.submit(number)))
        await asyncio.sleep(0.01)
    with pytest.raises(SuperlinkError) as caught:
        await batcher.submit(9)
    assert caught.value.status is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.retryable
    # Two batches of 0.1 s are queued and one runs.
    assert 290 <= caught.value.retry_after_ms <= 600
    assert metrics.value("superlink_worker_requests_total", outcome="rejected") == 1
    assert [(await task).response for task in tasks] == [0, 2, 4]


async def test_request_that_waited_too_long_is_refused_while_a_batch_computes(make_batcher: MakeBatcher) -> None:
    model = Model(delay_s=1.0)
    batcher, metrics = make_batcher(model, max_queue_s=0.1, max_batch_size=1, max_wait_ms=0.0)
    running = asyncio.create_task(batcher.submit(1))
    await asyncio.sleep(0.02)
    with pytest.raises(SuperlinkError) as caught:
        await batcher.submit(2)
    # At its age, not when the model is free again.
    assert not running.done()
    assert (caught.value.code, caught.value.status) == ("queued_too_long", grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert caught.value.retryable
    assert caught.value.retry_after_ms > 0
    assert (await running).response == 2
    # What computes for longer than anybody may wait is answered all the same.
    assert (await batcher.submit(3)).response == 6
    assert model.batches == [[1], [3]]
    assert metrics.value("superlink_worker_requests_total", outcome="overdue") == 1
    assert metrics.value("superlink_worker_queue_size") == 0


async def test_admission_is_bounded_before_anything_is_submitted(make_batcher: MakeBatcher) -> None:
    batcher, _ = make_batcher(Model(), max_queue_size=1, max_batch_size=1)
    with batcher.admission(), batcher.admission(), pytest.raises(SuperlinkError, match="waiting"), batcher.admission():
        pass
    with batcher.admission():
        pass


async def test_failing_request_does_not_fail_its_neighbours(make_batcher: MakeBatcher) -> None:
    batcher, metrics = make_batcher(Model())
    good, bad, other = await asyncio.gather(
        batcher.submit(1), batcher.submit(-1), batcher.submit(2), return_exceptions=True
    )
    assert (good.response, other.response) == (2, 4)
    assert isinstance(bad, ValueError)
    assert metrics.value("superlink_worker_requests_total", outcome="failed") == 1


async def test_draining_finishes_what_waits_without_the_window(make_batcher: MakeBatcher) -> None:
    batcher, metrics = make_batcher(Model(), max_wait_ms=60_000.0)
    waiting = asyncio.create_task(batcher.submit(1))
    await asyncio.sleep(0.01)
    batcher.drain()
    assert (await asyncio.wait_for(waiting, 1)).response == 2
    assert (await asyncio.wait_for(batcher.submit(2), 1)).response == 4
    await batcher.close()
    with pytest.raises(SuperlinkError, match="shutting down"):
        await batcher.submit(3)
    assert metrics.value("superlink_worker_batch_flushes_total", reason="drain") == 2
