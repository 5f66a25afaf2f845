"""Dynamic batching: requests that arrive together run through the model together.

``BatchQueue`` is the pure logic: it is told the time and never looks at a clock, a socket or a thread. ``Batcher``
drives it from the event loop and runs each batch in the model thread.

A batch closes when it is full, when its bytes are, when its oldest request has waited ``max_wait_ms``, when a request's
deadline leaves just enough time to compute, or when the worker drains. While a batch computes, requests gather; the
next batch then starts at once. So nothing ever waits longer than ``max_wait_ms`` for an idle model.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

import grpc
from opentelemetry.trace import SpanContext, get_current_span

from services.runtime.metrics import WorkerMetrics
from services.runtime.model_thread import ModelThread
from services.runtime.refusals import queued_too_long, shutting_down
from superlink.errors import SuperlinkError
from superlink.profile import BatchLimits
from superlink.telemetry import record_phase

# A caller gives up before the deadline that is known here: its clock ran while its request travelled, and gRPC rounds
# timeouts up on the wire. By so much at most, and by no larger a share of the time that there was.
_CLOCK_MARGIN_S, _CLOCK_MARGIN_SHARE = 0.25, 0.1

Request = TypeVar("Request")
Response = TypeVar("Response")


class FlushReason(StrEnum):
    """Why a batch was closed."""

    FULL = "full"
    BYTES = "bytes"
    WINDOW = "window"
    DEADLINE = "deadline"
    DRAIN = "drain"


class QueueFullError(Exception):
    """As many requests wait as may."""


@dataclass(eq=False)
class Ticket(Generic[Request]):
    """A request that waits. Times are seconds of one monotonic clock."""

    request: Request
    size_bytes: int
    arrived: float
    # When the caller stops waiting; infinite for one that waits for ever.
    deadline: float = math.inf
    # Only requests of one kind share a batch.
    kind: Hashable = None
    # The span that the request is answered in.
    span: SpanContext = field(default_factory=lambda: get_current_span().get_span_context())
    # When its batch began, and the spans of all requests in it; None and none before.
    started: float | None = None
    batch: tuple[SpanContext, ...] = ()
    # Set by the event loop, read by the model thread just before it starts.
    cancelled: bool = field(default=False)


class BatchTimes:
    """How long the last batches took."""

    KEPT = 16
    # Older measurements say nothing: the machine may have been busy then. It also lets a worker whose every request was
    # refused as too slow try again.
    FORGOTTEN_AFTER_S = 10.0

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=self.KEPT)
        self._last = -math.inf

    def add(self, seconds: float, now: float) -> None:
        """A batch took ``seconds`` and ended ``now``."""
        self._seconds.append(seconds)
        self._last = now

    def typical(self) -> float:
        """Median in seconds; 0 before the first batch."""
        return statistics.median(self._seconds) if self._seconds else 0.0

    def fastest(self, now: float) -> float:
        """The shortest recent time in seconds; 0 when there is none."""
        return min(self._seconds) if self._seconds and now - self._last < self.FORGOTTEN_AFTER_S else 0.0


class BatchQueue(Generic[Request]):
    """First in, first out; says when to close a batch and which requests are in it."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._waiting: deque[Ticket[Request]] = deque()
        self._bytes = 0
        self.times = BatchTimes()

    def __len__(self) -> int:
        return len(self._waiting)

    def offer(self, ticket: Ticket[Request]) -> None:
        """Queue ``ticket``. Raises QueueFullError when ``max_queue_size`` requests wait already."""
        if len(self._waiting) >= self._limits.max_queue_size:
            raise QueueFullError
        self._waiting.append(ticket)
        self._bytes += ticket.size_bytes

    def discard(self, ticket: Ticket[Request]) -> bool:
        """Remove a ticket that nobody waits for any more. Returns False when it had left the queue."""
        try:
            self._waiting.remove(ticket)
        except ValueError:
            return False
        self._bytes -= ticket.size_bytes
        return True

    def expire(self, now: float) -> list[Ticket[Request]]:
        """Remove and return the tickets whose deadline has passed, or comes before the fastest batch could end."""
        horizon = now + self.times.fastest(now)
        expired = [ticket for ticket in self._waiting if ticket.deadline <= horizon]
        for ticket in expired:
            self.discard(ticket)
        return expired

    def reason_to_close(self, now: float, draining: bool = False) -> FlushReason | None:
        """Why a batch should start now; None to wait on, or when nothing waits."""
        if not self._waiting:
            return None
        if len(self._waiting) >= self._limits.max_batch_size:
            return FlushReason.FULL
        if self._bytes >= self._limits.max_batch_bytes:
            return FlushReason.BYTES
        if draining:
            return FlushReason.DRAIN
        if now >= self._window_end():
            return FlushReason.WINDOW
        if now >= self._latest_start():
            return FlushReason.DEADLINE
        return None

    def closes_at(self) -> float:
        """When a batch closes if nothing else arrives; infinite when nothing waits."""
        return min(self._window_end(), self._latest_start()) if self._waiting else math.inf

    def take(self) -> list[Ticket[Request]]:
        """Remove and return the next batch: those of the oldest one's kind, in order of arrival.

        It keeps within ``max_batch_size`` and ``max_batch_bytes``; a single request above ``max_batch_bytes`` forms a
        batch of its own.
        """
        batch: list[Ticket[Request]] = []
        total = 0
        for ticket in self._waiting:
            if len(batch) == self._limits.max_batch_size:
                break
            if ticket.kind != self._waiting[0].kind:
                continue
            if batch and total + ticket.size_bytes > self._limits.max_batch_bytes:
                break
            total += ticket.size_bytes
            batch.append(ticket)
        taken = set(map(id, batch))
        self._waiting = deque(ticket for ticket in self._waiting if id(ticket) not in taken)
        self._bytes -= total
        return batch

    def retry_after_s(self) -> float:
        """When a refused caller may find room: the time for the batches that are ahead of it, at least 20 ms."""
        batches_ahead = math.ceil(len(self._waiting) / self._limits.max_batch_size) + 1
        return max(0.02, batches_ahead * (self.times.typical() or 0.1))

    def _window_end(self) -> float:
        return self._waiting[0].arrived + self._limits.max_wait_ms / 1000

    def _latest_start(self) -> float:
        # Twice the usual time: half of a budget that is spent on waiting is the other half's risk.
        return min(ticket.deadline for ticket in self._waiting) - 2 * self.times.typical()


@dataclass(frozen=True)
class Completed(Generic[Response]):
    """A response and what it cost."""

    response: Response
    queue_s: float
    compute_s: float
    batch_size: int


class Batcher(Generic[Request, Response]):
    """Runs requests in batches in the model thread. Use it within one event loop."""

    def __init__(
        self,
        run: Callable[[Sequence[Request]], Sequence[Response]],
        thread: ModelThread,
        limits: BatchLimits,
        metrics: WorkerMetrics,
    ) -> None:
        """``run`` is called in ``thread`` with the requests of a batch and returns one response a request, in order."""
        self._run = run
        self._thread = thread
        self._limits = limits
        self._metrics = metrics
        self._queue: BatchQueue[Request] = BatchQueue(limits)
        self._futures: dict[Ticket[Request], asyncio.Future[Completed[Response]]] = {}
        self._changed = asyncio.Event()
        self._admitted = 0
        self._draining = False
        self._closed = False
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to form batches."""
        self._loop = asyncio.create_task(self._form_batches(), name="batcher")

    @contextlib.contextmanager
    def admission(self) -> Iterator[None]:
        """Hold a place in the worker while a request's image is decoded, before it can be submitted.

        Raises SuperlinkError (RESOURCE_EXHAUSTED with a retry delay) when as many requests are in the worker as may
        wait and compute.
        """
        if self._admitted >= self._limits.max_queue_size + self._limits.max_batch_size:
            self._metrics.count_request("rejected")
            raise self._overloaded()
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    async def submit(
        self, request: Request, *, size_bytes: int = 0, deadline: float = math.inf, kind: Hashable = None
    ) -> Completed[Response]:
        """Run ``request`` in some batch, with none but requests of its ``kind``, and return its response.

        ``deadline`` is in ``time.monotonic()`` seconds. Cancelling the awaiting task takes the request out of the
        queue; in a batch that has begun, its response is dropped. Raises SuperlinkError: RESOURCE_EXHAUSTED with a
        retry delay when the queue is full, or the request has waited in it for ``max_queue_s``; DEADLINE_EXCEEDED when
        there was no time left to compute, UNAVAILABLE after ``close``.
        """
        if self._closed:
            raise shutting_down()
        ticket = Ticket(request, size_bytes, time.monotonic(), deadline, kind)
        try:
            self._queue.offer(ticket)
        except QueueFullError:
            self._metrics.count_request("rejected")
            raise self._overloaded() from None
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Completed[Response]] = loop.create_future()
        self._futures[ticket] = future
        # A timer, because nobody looks at the queue while a batch computes.
        too_long = loop.call_later(self._limits.max_queue_s, self._refuse_if_waiting, ticket)
        self._signal()
        try:
            return await future
        except asyncio.CancelledError:
            ticket.cancelled = True
            self._queue.discard(ticket)
            # gRPC cancels a handler at its deadline as well as when the client leaves.
            margin = min(_CLOCK_MARGIN_S, _CLOCK_MARGIN_SHARE * max(0.0, deadline - ticket.arrived))
            expired = time.monotonic() >= deadline - margin
            self._metrics.count_request("expired" if expired else "cancelled")
            raise
        finally:
            too_long.cancel()
            self._futures.pop(ticket, None)
            self._metrics.set_queue_size(len(self._queue))
            _record(ticket)

    def drain(self) -> None:
        """From now on start each batch at once; requests are still accepted."""
        self._draining = True
        self._signal()

    async def close(self) -> None:
        """Refuse new requests, finish those that wait, and stop."""
        self._closed = True
        self.drain()
        if self._loop is not None:
            await self._loop

    def _signal(self) -> None:
        self._metrics.set_queue_size(len(self._queue))
        self._changed.set()

    async def _form_batches(self) -> None:
        while (reason := await self._wait_for_batch()) is not None:
            batch = self._queue.take()
            self._metrics.set_queue_size(len(self._queue))
            await self._run_batch(batch, reason)

    async def _wait_for_batch(self) -> FlushReason | None:
        """Wait until a batch is due; None when the batcher is closed and empty."""
        while True:
            self._changed.clear()
            now = time.monotonic()
            for ticket in self._queue.expire(now):
                self._settle(ticket, self._out_of_time())
                self._metrics.count_request("expired")
            reason = self._queue.reason_to_close(now, self._draining)
            if reason is not None:
                return reason
            if self._closed and not len(self._queue):
                return None
            closes_at = self._queue.closes_at()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if math.isinf(closes_at) else max(0.0, closes_at - now)):
                    await self._changed.wait()

    async def _run_batch(self, batch: list[Ticket[Request]], reason: FlushReason) -> None:
        started = time.monotonic()
        spans = tuple(ticket.span for ticket in batch)
        for ticket in batch:
            ticket.started, ticket.batch = started, spans
        try:
            settled = await self._thread.run(self._compute, batch)
        except Exception as error:
            # One request's fault must not become its neighbours': run them alone, where only the guilty one fails.
            if len(batch) == 1:
                self._fail(batch[0], error)
            else:
                for ticket in batch:
                    await self._run_batch([ticket], reason)
            return
        ended = time.monotonic()
        if not settled:
            return
        self._queue.times.add(ended - started, ended)
        self._metrics.observe_batch(len(settled), ended - started, reason.value)
        for ticket, response in settled:
            queue_s = started - ticket.arrived
            self._metrics.observe_queue_wait(queue_s)
            if self._settle(ticket, Completed(response, queue_s, ended - started, len(settled))):
                self._metrics.count_request("completed")

    def _compute(self, batch: list[Ticket[Request]]) -> list[tuple[Ticket[Request], Response]]:
        """In the model thread: leave out what was cancelled meanwhile and run the rest."""
        live = [ticket for ticket in batch if not ticket.cancelled]
        if not live:
            return []
        return list(zip(live, self._run([ticket.request for ticket in live]), strict=True))

    def _settle(self, ticket: Ticket[Request], outcome: Completed[Response] | Exception) -> bool:
        """Hand the outcome to whoever waits. Returns False when nobody does."""
        future = self._futures.get(ticket)
        if future is None or future.done():
            return False
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
        return True

    def _refuse_if_waiting(self, ticket: Ticket[Request]) -> None:
        """Its time in the queue is over; one that a batch has taken meanwhile is answered."""
        if self._queue.discard(ticket):
            self._settle(ticket, queued_too_long(self._limits.max_queue_s, self._retry_after_ms()))
            self._metrics.count_request("overdue")
            self._signal()

    def _fail(self, ticket: Ticket[Request], error: Exception) -> None:
        if self._settle(ticket, error):
            self._metrics.count_request("failed")

    def _overloaded(self) -> SuperlinkError:
        return SuperlinkError(
            "queue_full",
            f"{self._limits.max_queue_size} requests are waiting, which is all that may. Try again after the delay.",
            status=grpc.StatusCode.RESOURCE_EXHAUSTED,
            retry_after_ms=self._retry_after_ms(),
        )

    def _retry_after_ms(self) -> int:
        return math.ceil(self._queue.retry_after_s() * 1000)

    def _out_of_time(self) -> SuperlinkError:
        return SuperlinkError(
            "deadline_exceeded",
            "There was not enough time left to compute the answer; it was not started. Allow more time.",
            status=grpc.StatusCode.DEADLINE_EXCEEDED,
        )


def _record(ticket: Ticket[Request]) -> None:
    """Where the time of a request went that ends now, as spans; its batch links to the other requests in it."""
    now = time.monotonic()
    started = ticket.started
    record_phase("queue", ticket.arrived, (now if started is None else started) - ticket.arrived)
    if started is not None:
        others = [span for span in ticket.batch if span != ticket.span]
        record_phase("compute", started, now - started, {"superlink.batch_size": len(ticket.batch)}, others)
