"""Requests beyond what the deployment can do are refused here, before anything of their body is read.

The orchestrator knows how much that is, and refuses the rest itself. But reading, checking and passing on what it will
refuse costs several milliseconds a request, and under a flood the gateway would do nothing else. So it learns from the
refusals how many requests may be under way, path by path, and refuses the others in a fraction of a millisecond: before
any other layer of the application, with an answer that is ready but for the request's id.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter

import grpc
from opentelemetry.trace import get_current_span
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.metrics import Metrics
from gateway.middleware import TRACE_ID_HEADER, request_id_of_client
from gateway.problems import Problem, ProblemResponse
from superlink.channels import REQUEST_ID_KEY
from superlink.errors import SuperlinkError
from superlink.telemetry import current_trace_id

logger = logging.getLogger(__name__)

# What the orchestrator is asked for.
SHED_PATHS = frozenset(
    {
        *("/v1/chat/completions", "/v1/answer", "/v1/detect", "/v1/segment", "/v1/pose"),
        *("/v1/images/generations", "/v1/images/edits"),
    }
)
RETRY_AFTER_MS = 1000
# A line for each refusal would cost as much as the refusal.
TELL_EVERY_S = 1.0
# Stands for the request's id while the answer is prepared.
_ID = b"{request_id}"


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
    """The outermost layer."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._allowances = {path: Allowance() for path in SHED_PATHS}
        self._refusal = _Refusal(metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the module."""
        if scope["type"] != "http" or scope["method"] != "POST" or scope["path"] not in SHED_PATHS:
            await self._app(scope, receive, send)
            return
        allowance = self._allowances[scope["path"]]
        if not allowance.enter():
            await self._refusal.send(scope, send)
            return
        began = time.monotonic()
        try:
            await self._app(scope, receive, send)
        finally:
            failure = scope["state"].get("failure")
            # What is no use to ask again, such as a message too large, says nothing about load.
            refused = failure is not None and failure.status is grpc.StatusCode.RESOURCE_EXHAUSTED and failure.retryable
            allowance.leave(began, refused, time.monotonic())


class _Refusal:
    """The answer to whoever finds no room, and what is noted of it."""

    def __init__(self, metrics: Metrics) -> None:
        response = ProblemResponse(Problem.from_error(_overloaded(), _ID.decode()))
        self._before_id, _, self._after_id = bytes(response.body).partition(_ID)
        self._status = response.status_code
        self._headers = [header for header in response.raw_headers if header[0] != b"content-length"]
        self._refusals = metrics.refusals.labels("overloaded")
        self._requests = {path: metrics.requests.labels(path, "POST", str(self._status)) for path in SHED_PATHS}
        # By path, since the last lines.
        self._untold: Counter[str] = Counter()

    async def send(self, scope: Scope, send: Send) -> None:
        """Refuse a request to one of ``SHED_PATHS``."""
        path, request_id = scope["path"], request_id_of_client(scope)
        ids = request_id.encode("ascii")
        headers = [*self._headers, (REQUEST_ID_KEY.encode("ascii"), ids)]
        if trace_id := current_trace_id().encode("ascii"):
            get_current_span().set_attribute("superlink.request_id", request_id)
            headers.append((TRACE_ID_HEADER.encode("ascii"), trace_id))
            ids += b'","trace_id":"' + trace_id
        body = self._before_id + ids + self._after_id
        headers.append((b"content-length", b"%d" % len(body)))
        self._refusals.inc()
        self._requests[path].inc()
        if not self._untold:
            asyncio.get_running_loop().call_later(TELL_EVERY_S, self._tell)
        self._untold[path] += 1
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _tell(self) -> None:
        for path, count in self._untold.items():
            logger.warning("requests refused", extra={"path": path, "status": self._status, "count": count})
        self._untold.clear()


def _overloaded() -> SuperlinkError:
    return SuperlinkError(
        "overloaded",
        "More is asked for than the deployment can do in time. Try again after the delay.",
        status=grpc.StatusCode.RESOURCE_EXHAUSTED,
        service="gateway",
        retry_after_ms=RETRY_AFTER_MS,
    )
