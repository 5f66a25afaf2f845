"""Who gets in: requests beyond what the deployment can do in time are refused at once, before anything is computed.

Each kind of request has places, as many as ``AdaptiveLimit`` says, and those that find none wait in order of arrival,
but never longer than the budget. Who could not get one by then is not let wait at all.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import suppress

import grpc

from orchestrator.adaptive_limit import AdaptiveLimit
from orchestrator.deadline import Deadline
from orchestrator.metrics import Metrics
from superlink.errors import SuperlinkError

# Of the queue budget: for a place, and for the queues of the workers. The rest is for what the limit is off.
WAITING_SHARE, WORKERS_SHARE = 0.35, 0.4
# Of the last place's time in the typical one.
_WEIGHT = 0.1


class Place:
    """The place of one request."""

    def __init__(self, at_once: int) -> None:
        """``at_once``: places that are taken now."""
        self.began = time.monotonic()
        self.at_once = at_once
        # Seconds to the first event; None before.
        self.latency_s: float | None = None

    def answered(self) -> None:
        """An event of the answer is there."""
        if self.latency_s is None:
            self.latency_s = time.monotonic() - self.began


class Admission:
    """The places for one kind of request."""

    def __init__(self, kind: str, queue_budget_s: float, metrics: Metrics) -> None:
        """``kind``: "mllm" for answers, or the decoder that the fast path asks."""
        self._kind = kind
        self._waiting_s = WAITING_SHARE * queue_budget_s
        self._limit = AdaptiveLimit(WORKERS_SHARE * queue_budget_s)
        self._metrics = metrics
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        # How long a place is held; 0 before the first.
        self._typical_s = 0.0
        self._show()

    async def enter(self, deadline: Deadline) -> Place:
        """Take a place; ``leave`` must follow. Raises SuperlinkError ``overloaded`` when there is none in time."""
        if self._taken >= self._limit.limit or self._waiting:
            await self._wait(deadline)
        else:
            self._taken += 1
        self._show()
        return Place(self._taken)

    def leave(self, place: Place, error: BaseException | None) -> None:
        """Give a place back; ``error``: how its request failed."""
        now = time.monotonic()
        held_s = now - place.began
        self._typical_s += (_WEIGHT if self._typical_s else 1.0) * (held_s - self._typical_s)
        if isinstance(error, SuperlinkError) and error.status is grpc.StatusCode.RESOURCE_EXHAUSTED and error.retryable:
            self._limit.refused(place.began, now)
        elif place.latency_s is not None:
            self._limit.end(place.began, place.at_once, place.latency_s, now)
        elif isinstance(error, SuperlinkError) and error.status is grpc.StatusCode.DEADLINE_EXCEEDED:
            self._limit.end(place.began, place.at_once, held_s, now)
        self._taken -= 1
        self._call_in()

    async def _wait(self, deadline: Deadline) -> None:
        self._limit.full()
        expected_s = self._expected_s()
        may_wait_s = min(self._waiting_s, deadline.remaining())
        if expected_s > may_wait_s:
            raise self._overloaded(expected_s)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._show()
        try:
            async with asyncio.timeout(may_wait_s):
                await turn
        except BaseException as error:
            is_called_in = turn.done() and not turn.cancelled()
            if is_called_in and isinstance(error, TimeoutError):
                # Both happened at once.
                return
            if is_called_in:
                self._taken -= 1
                self._call_in()
            with suppress(ValueError):
                self._waiting.remove(turn)
            self._show()
            if isinstance(error, TimeoutError):
                raise self._overloaded(self._expected_s()) from None
            raise

    def _call_in(self) -> None:
        """Give free places to those who wait."""
        while self._waiting and self._taken < self._limit.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self._taken += 1
                turn.set_result(None)
        self._show()

    def _expected_s(self) -> float:
        """How long the next one would wait."""
        return (len(self._waiting) + 1) * self._typical_s / self._limit.limit

    def _overloaded(self, expected_s: float) -> SuperlinkError:
        return SuperlinkError(
            "overloaded",
            "More is asked for than the deployment can do in time. Try again after the delay.",
            status=grpc.StatusCode.RESOURCE_EXHAUSTED,
            service="orchestrator",
            retry_after_ms=max(100, round(1000 * expected_s)),
        )

    def _show(self) -> None:
        self._metrics.concurrency_limit.labels(self._kind).set(self._limit.limit)
        self._metrics.waiting.labels(self._kind).set(len(self._waiting))
