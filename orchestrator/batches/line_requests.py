"""How a line is asked: as a request to the gateway, like every other client's, and again where that may help.

So a line meets the same checks, limits and errors as the same request without a batch.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
from opentelemetry.trace import SpanKind

from orchestrator.batches.lines import LineRequest, body_of
from orchestrator.batches.rows import answer_row, refusal_row, request_id_of
from superlink.batch_tickets import BATCH_HEADER
from superlink.telemetry import measured_span, trace_metadata

# "Not now", for which there is no limit but the end of the batch: the reason is no fault of the line.
_NOT_NOW = frozenset({409, 429, 503})
# Failures that may have been a dying service: asked so often in all, then they are the answer.
MAX_ATTEMPTS = 3
FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 5.0
# For the gateway's own "out of time" to arrive.
TIMEOUT_MARGIN_S = 10.0
CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Asked:
    """What came of asking a line."""

    # None: nothing yet; the line stays to be asked.
    row: bytes | None
    # When it is worth asking again.
    retry_after_s: float = 0.0


class LineRequests:
    """Asks the lines of one batch."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        batch_id: str,
        ticket: str | None,
        timeout_s: float,
        is_over: Callable[[], bool],
        may_wait: Callable[[], bool],
    ) -> None:
        """``is_over`` says that no further attempt is to be made, ``may_wait`` whether to wait for a better time."""
        self._http = http
        self._batch_id = batch_id
        self._headers = {"content-type": "application/json", BATCH_HEADER: batch_id}
        if ticket is not None:
            self._headers["authorization"] = f"Bearer {ticket}"
        self._timeout = httpx.Timeout(timeout_s + TIMEOUT_MARGIN_S, connect=CONNECT_TIMEOUT_S)
        self._is_over = is_over
        self._may_wait = may_wait

    async def ask(self, line: int, request: LineRequest) -> Asked:
        """The row of a line, after as many attempts as it takes and may take."""
        body = body_of(request)
        attempts = pauses = 0
        while True:
            response = await self._send(line, request.url, body)
            is_not_now = response is None or _is_not_now(response)
            if response is not None and not is_not_now:
                attempts += 1
                if attempts == MAX_ATTEMPTS or not _may_have_been_a_fault(response):
                    return Asked(self._row(line, request.custom_id, response))
            advised_s = 0.0 if response is None else _retry_after_s(response)
            # An answer may be large, and nobody needs it while this waits.
            del response
            pause_s = advised_s or min(FIRST_PAUSE_S * 2.0**pauses, LONGEST_PAUSE_S)
            pauses += 1
            if self._is_over() or is_not_now and not (self._may_wait() and pause_s <= LONGEST_PAUSE_S):
                return Asked(None, pause_s)
            # Lines that were refused together must not come back together.
            await asyncio.sleep(pause_s * (1 + random.random() / 4))  # noqa: S311 (no secret)
            if self._is_over():
                return Asked(None, pause_s)

    async def _send(self, line: int, url: str, body: bytes) -> httpx.Response | None:
        """None: no answer came."""
        with measured_span("batch line", SpanKind.CLIENT, {"superlink.batch.line": line}) as span:
            own = {"x-request-id": request_id_of(self._batch_id, line), **dict(trace_metadata(span))}
            try:
                return await self._http.post(url, content=body, headers={**self._headers, **own}, timeout=self._timeout)
            except httpx.HTTPError:
                return None

    def _row(self, line: int, custom_id: str, response: httpx.Response) -> bytes:
        request_id = response.headers.get("x-request-id", request_id_of(self._batch_id, line))
        if response.is_success and response.headers.get("content-type", "").startswith("application/json"):
            return answer_row(self._batch_id, line, custom_id, response.status_code, request_id, response.content)
        return refusal_row(self._batch_id, line, custom_id, response.status_code, request_id, _problem_of(response))


def _is_not_now(response: httpx.Response) -> bool:
    if response.status_code == 401:
        # The ticket was lost with what Redis held, and is left again; a revoked key stays revoked.
        return _problem_of(response).get("code") == "invalid_api_key"
    return response.status_code in _NOT_NOW and bool(_problem_of(response).get("retryable", True))


def _may_have_been_a_fault(response: httpx.Response) -> bool:
    if response.is_success:
        # A tool that was away leaves its error beside the text.
        return b'"retryable":true' in response.content
    return response.status_code in (500, 502, 504)


def _retry_after_s(response: httpx.Response) -> float:
    advised_ms = _problem_of(response).get("retry_after_ms")
    return advised_ms / 1000 if isinstance(advised_ms, int | float) else 0.0


def _problem_of(response: httpx.Response) -> dict[str, Any]:
    try:
        problem = json.loads(response.content)
    except ValueError:
        problem = None
    if isinstance(problem, dict) and isinstance(problem.get("code"), str):
        return problem
    detail = f"What answered is no gateway: HTTP {response.status_code}."
    return {"code": "invalid_response", "message": detail, "detail": detail, "status": response.status_code}
