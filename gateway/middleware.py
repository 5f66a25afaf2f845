"""Pure ASGI middlewares: request ids, logs and metrics; the limit of the body.

They see raw messages, so that limits hold before anything is read and streams pass through unbuffered.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, MutableMapping
from typing import Any

import grpc
from opentelemetry.trace import get_current_span
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.metrics import Metrics
from gateway.problems import Problem, ProblemResponse, too_large
from superlink.channels import REQUEST_ID_KEY, new_request_id
from superlink.errors import SuperlinkError
from superlink.logs import current_request_id
from superlink.telemetry import current_trace_id

logger = logging.getLogger(__name__)

_ACCEPTABLE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# What a status is called when the client left before it could be sent.
CLIENT_LEFT = 499
TRACE_ID_HEADER = "x-trace-id"
_PROBES = frozenset({"/livez", "/healthz", "/readyz", "/startupz", "/metrics"})


def is_probe(scope: MutableMapping[str, Any]) -> bool:
    """Whether a request is one of those that come all the time and are nobody's: they have no line and no trace."""
    return scope["path"] in _PROBES


def request_id_of_client(scope: Scope) -> str:
    """The id that the client gave its request, where it is fit for logs and headers, else a new one."""
    given = Headers(scope=scope).get(REQUEST_ID_KEY, "")
    return given if _ACCEPTABLE_ID.fullmatch(given) else new_request_id()


class RequestMiddleware:
    """Gives every request an id and a start time, counts it, logs it, and answers what nobody else caught."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the class."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = request_id_of_client(scope)
        scope.setdefault("state", {}).update(request_id=request_id, started=started)
        current_request_id.set(request_id)
        get_current_span().set_attribute("superlink.request_id", request_id)
        trace_id = current_trace_id()
        status = 0

        async def send_with_ids(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID_KEY] = request_id
                if trace_id:
                    headers[TRACE_ID_HEADER] = trace_id
            await send(message)

        try:
            with self._metrics.in_flight.track_inprogress():
                await self._app(scope, receive, send_with_ids)
        except Exception:
            logger.exception("unhandled error")
            if status:
                # The response is under way and cannot be taken back; the server closes the connection.
                raise
            await _internal_error(request_id)(scope, receive, send_with_ids)
        finally:
            self._finish(scope, status or CLIENT_LEFT, time.perf_counter() - started)

    def _finish(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope.get("route")
        # The template, not the path: clients must not be able to make up label values.
        path = getattr(route, "path", "unknown")
        self._metrics.requests.labels(path, scope["method"], str(status)).inc()
        self._metrics.seconds.labels(path).observe(seconds)
        level = logging.DEBUG if is_probe(scope) else logging.INFO
        facts = {"method": scope["method"], "path": path, "status": status, "milliseconds": round(seconds * 1000, 2)}
        if "api_key_id" in scope["state"]:
            facts["api_key_id"] = scope["state"]["api_key_id"]
        logger.log(level, "request finished", extra=facts)


class BodyLimit:
    """Refuses bodies above the limit: by their declared length before reading, else by counting while reading."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, by_path: Mapping[str, int]) -> None:
        """``by_path``: other limits than ``max_body_bytes``, for bodies that are never held in memory."""
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._by_path = by_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See the class."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._by_path.get(scope["path"], self._max_body_bytes)
        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isdecimal() or int(declared) > limit:
            problem = Problem.from_error(too_large(limit), scope["state"]["request_id"])
            # The server discards the body piece by piece; closing at once would reset the connection, and clients that
            # are still sending would never see the answer.
            await ProblemResponse(problem)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > limit:
                    raise too_large(limit)
            return message

        await self._app(scope, counted, send)


def _internal_error(request_id: str) -> ProblemResponse:
    error = SuperlinkError(
        "internal",
        f"The gateway failed on this request; its log has the reason under request {request_id}.",
        status=grpc.StatusCode.INTERNAL,
    )
    return ProblemResponse(Problem.from_error(error, request_id))
