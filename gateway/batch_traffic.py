"""Requests of batches give way to live ones: they are let in only while the gateway has little to do."""

from __future__ import annotations

import grpc
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.metrics import Metrics
from gateway.middleware import is_probe
from gateway.problems import Problem, ProblemResponse
from superlink.batch_tickets import BATCH_HEADER
from superlink.errors import SuperlinkError

RETRY_AFTER_MS = 500


def is_of_batch(scope: Scope) -> bool:
    """Whether a request says that it belongs to a batch. Who says so untruly only waits longer."""
    return BATCH_HEADER in Headers(scope=scope)


class GiveWay:
    """Refuses a batch's request with 429 while ``most`` requests are in flight here, those of batches included.

    One of batches is let in whatever else there is, so that they get on under any load.
    """

    def __init__(self, app: ASGIApp, most: int, metrics: Metrics) -> None:
        self._app = app
        self._most = most
        self._metrics = metrics
        self._live = self._of_batches = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the class."""
        if scope["type"] != "http" or is_probe(scope):
            await self._app(scope, receive, send)
            return
        if not is_of_batch(scope):
            self._live += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._live -= 1
            return
        if self._of_batches and self._live + self._of_batches >= self._most:
            error = SuperlinkError(
                "batch_gives_way",
                "Requests of batches are let in while the gateway has little else to do. Ask again shortly.",
                status=grpc.StatusCode.RESOURCE_EXHAUSTED,
                retry_after_ms=RETRY_AFTER_MS,
            )
            self._metrics.refusals.labels(error.code).inc()
            await ProblemResponse(Problem.from_error(error, scope["state"]["request_id"]))(scope, receive, send)
            return
        self._of_batches += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._of_batches -= 1
