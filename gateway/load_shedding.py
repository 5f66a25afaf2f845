"""Requests beyond what the deployment can do are refused here, before anything of their body is read.

The orchestrator knows how much that is, and refuses the rest itself. But reading, checking and passing on what it will
refuse costs several milliseconds a request, and under a flood the gateway would do nothing else. So it learns from the
refusals how many requests may be under way, path by path, and refuses the others in a fraction of a millisecond.
"""

from __future__ import annotations

import time
from collections import defaultdict

import grpc
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.metrics import Metrics
from gateway.problems import Problem, ProblemResponse
from superlink.errors import SuperlinkError

# What the orchestrator is asked for.
SHED_PATHS = frozenset(
    {
        *("/v1/chat/completions", "/v1/answer", "/v1/detect", "/v1/segment", "/v1/pose"),
        *("/v1/images/generations", "/v1/images/edits"),
    }
)
RETRY_AFTER_MS = 1000


class Allowance:
    """How many requests to one path may be under way: fewer at a refusal from behind, slowly more while all goes well.

    Pure logic; times are seconds of one monotonic clock.
    """

    FIRST, LEAST = 64, 8
    AFTER_REFUSAL = 0.9

    def __init__(self) -> None:
        self.limit = float(self.FIRST)
        self.running = 0
        # Whether a request found no room since the limit changed.
        self._was_full = False
        # Requests that began before it say nothing about the limit of now.
        self._lowered_at = float("-inf")

    def enter(self) -> bool:
        """Whether a request may go on; ``leave`` must follow then."""
        if self.running >= int(self.limit):
            self._was_full = True
            return False
        self.running += 1
        return True

    def leave(self, began: float, refused: bool, now: float) -> None:
        """A request that ``began`` then is over; ``refused``: there was no room for it behind."""
        running = self.running
        self.running -= 1
        if not refused:
            if self._was_full:
                # By one when as many have succeeded as may be under way.
                self.limit += 1 / self.limit
                self._was_full = running >= int(self.limit)
        elif began > self._lowered_at:
            self.limit = max(self.LEAST, self.AFTER_REFUSAL * min(self.limit, running))
            self._was_full = False
            self._lowered_at = now


class LoadShedding:
    """The middleware."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._allowances: defaultdict[str, Allowance] = defaultdict(Allowance)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the module."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in SHED_PATHS:
            await self._app(scope, receive, send)
            return
        allowance = self._allowances[scope["path"]]
        if not allowance.enter():
            error = _overloaded()
            self._metrics.refusals.labels(error.code).inc()
            await ProblemResponse(Problem.from_error(error, scope["state"]["request_id"]))(scope, receive, send)
            return
        began = time.monotonic()
        try:
            await self._app(scope, receive, send)
        finally:
            failure = scope["state"].get("failure")
            # What is no use to ask again, such as a message too large, says nothing about load.
            refused = failure is not None and failure.status is grpc.StatusCode.RESOURCE_EXHAUSTED and failure.retryable
            allowance.leave(began, refused, time.monotonic())


def _overloaded() -> SuperlinkError:
    return SuperlinkError(
        "overloaded",
        "More is asked for than the deployment can do in time. Try again after the delay.",
        status=grpc.StatusCode.RESOURCE_EXHAUSTED,
        service="gateway",
        retry_after_ms=RETRY_AFTER_MS,
    )
