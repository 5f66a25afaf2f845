"""Calls to a service that has replicas: each to one of them, and again to another where that is safe.

Safe is before the first event: tools and the model change nothing but their caches, and nothing has been passed on yet.
Repeated is what met no working replica (UNAVAILABLE), and, at another replica, what met a full queue. What ran out of
time, or failed otherwise, is told.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Generic, TypeVar

import grpc

from orchestrator.breaker import Outcome
from orchestrator.metrics import Metrics
from orchestrator.replicas import Replica, ReplicaPool, Stub
from orchestrator.retry_budget import RetryBudget, backoff_s
from superlink.errors import SuperlinkError, from_rpc_error

MOST_ATTEMPTS = 4

Event = TypeVar("Event")
Description = TypeVar("Description")
# Given a replica's stub and a timeout in seconds: its events.
Send = Callable[[Stub, float], AsyncGenerator[Event, None]]


class ReplicaCalls(Generic[Stub]):
    """The calls to one service."""

    def __init__(self, pool: ReplicaPool[Stub], budget: RetryBudget, metrics: Metrics) -> None:
        self._pool = pool
        self._budget = budget
        self._metrics = metrics

    async def events(
        self, send: Send[Stub, Event], timeout_s: float, *, key: str, attempts: int = MOST_ATTEMPTS
    ) -> AsyncGenerator[Event, None]:
        """The events of one call, whichever replica they come from; closing the generator cancels the call.

        ``key`` is the digest of the request's image, or empty. Raises SuperlinkError.
        """
        ends = time.monotonic() + timeout_s
        tried: list[Replica[Stub]] = []
        self._budget.note_call()
        while True:
            replica = await self._pool.choose(key, tried, ends - time.monotonic())
            tried.append(replica)
            begun = False
            try:
                async with aclosing(self._attempt(replica, send, ends - time.monotonic())) as events:
                    async for event in events:
                        begun = True
                        yield event
                return
            except SuperlinkError as error:
                if begun:
                    raise
                pause_s = self._pause(error, tried, ends, attempts)
                if pause_s is None:
                    raise self._as_told(error) from error
            await asyncio.sleep(pause_s)

    async def describe(
        self, send: Callable[[Stub, float], grpc.aio.UnaryUnaryCall[Any, Description]], timeout_s: float
    ) -> Description:
        """What the first replica that answers says of itself. Raises SuperlinkError when none is ready."""
        ends = time.monotonic() + timeout_s
        tried: list[Replica[Stub]] = []
        while True:
            replica = await self._pool.choose("", tried, timeout_s)
            tried.append(replica)
            try:
                await replica.check(ends - time.monotonic(), self._pool.service)
                return await send(replica.stub, ends - time.monotonic())
            except grpc.aio.AioRpcError as error:
                replica.wake.set()
                failure = from_rpc_error(error, self._pool.service)
            except SuperlinkError as error:
                failure = error
            if ends <= time.monotonic() or not self._untried(tried):
                raise failure

    async def _attempt(
        self, replica: Replica[Stub], send: Send[Stub, Event], timeout_s: float
    ) -> AsyncGenerator[Event, None]:
        """The events of one replica, and what they say about it."""
        began = time.monotonic()
        attempt = self._pool.begin(replica)
        outcome, first_event_s = Outcome.UNKNOWN, None
        try:
            async with aclosing(send(replica.stub, timeout_s)) as events:
                first = await self._first(replica, events)
                first_event_s = time.monotonic() - began
                outcome = Outcome.ANSWERED
                if first is not None:
                    yield first
                async for event in events:
                    yield event
        except SuperlinkError as error:
            if (
                error.status is grpc.StatusCode.DEADLINE_EXCEEDED
                and first_event_s is None
                and replica.is_out_of_reach()
            ):
                # Its time went by while it waited for a connection.
                outcome = Outcome.UNREACHABLE
                raise self._pool.unavailable() from error
            outcome = _outcome_of(error, first_event_s is None and replica.has_hung(time.monotonic() - began))
            raise
        finally:
            self._pool.end(replica, attempt, outcome, first_event_s)

    async def _first(self, replica: Replica[Stub], events: AsyncGenerator[Event, None]) -> Event | None:
        """The first event, unless the replica goes away before it comes and another could take its place.

        None where there is none.
        """
        if len(self._pool.replicas) == 1:
            return await anext(events, None)
        pulling = asyncio.ensure_future(anext(events, None))
        gone = asyncio.ensure_future(replica.gone.wait())
        try:
            await asyncio.wait({pulling, gone}, return_when=asyncio.FIRST_COMPLETED)
            if pulling.done() or not self._pool.has_other(replica):
                return await pulling
        finally:
            gone.cancel()
            if not pulling.done():
                pulling.cancel()
            await asyncio.gather(pulling, gone, return_exceptions=True)
        raise SuperlinkError(
            "unavailable",
            f"The {self._pool.service} service does not answer any more.",
            status=grpc.StatusCode.UNAVAILABLE,
            service=self._pool.service,
        )

    def _pause(self, error: SuperlinkError, tried: list[Replica[Stub]], ends: float, attempts: int) -> float | None:
        """Seconds until the call is sent again; None when it is not."""
        elsewhere = self._untried(tried)
        if error.status is grpc.StatusCode.RESOURCE_EXHAUSTED:
            worth_it = error.retryable and elsewhere
        else:
            worth_it = error.status is grpc.StatusCode.UNAVAILABLE
        if not worth_it or len(tried) >= attempts:
            return None
        pause_s = backoff_s(len(tried))
        if not elsewhere:
            # The delay is that of the replica which gave it.
            pause_s = max(pause_s, error.retry_after_s or 0.0)
        has_time = time.monotonic() + pause_s < ends
        is_sent = has_time and self._budget.take()
        outcome = "sent" if is_sent else "no_budget" if has_time else "no_time"
        self._metrics.retries.labels(self._pool.service, outcome).inc()
        return pause_s if is_sent else None

    def _untried(self, tried: list[Replica[Stub]]) -> bool:
        return any(replica not in tried and replica.breaker.admits() for replica in self._pool.replicas)

    def _as_told(self, error: SuperlinkError) -> SuperlinkError:
        """Whoever cannot be reached is unavailable, whether a breaker knew it before or not."""
        return self._pool.unavailable() if error.code == "unavailable" else error


def _outcome_of(error: SuperlinkError, hung: bool) -> Outcome:
    match error.status:
        case grpc.StatusCode.UNAVAILABLE:
            return Outcome.UNREACHABLE
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return Outcome.HUNG if hung else Outcome.UNKNOWN
        case grpc.StatusCode.INTERNAL | grpc.StatusCode.UNKNOWN | grpc.StatusCode.DATA_LOSS:
            return Outcome.BROKEN
        case grpc.StatusCode.CANCELLED:
            return Outcome.UNKNOWN
        case _:
            return Outcome.ANSWERED
