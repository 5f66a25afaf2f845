"""What one call sends, attempt by attempt, and when it tries again; no connection in sight.

A call is repeated only where that is safe: when there was no connection, so that the gateway never had the request, and
when the gateway said "not now" (429, 503, and 409 while an earlier attempt is being answered). A connection that broke
later says nothing about the work, and is an error. All attempts of a call carry the same ``Idempotency-Key``, by which
the gateway knows them for one request.
"""

from __future__ import annotations

import random
import time
import uuid
from typing import Any

import httpx

from superlink.client_errors import ConnectionLost, GatewayTimeout, GatewayUnreachable, RequestFailed
from superlink.connection_settings import ConnectionSettings
from superlink.errors import SuperlinkError
from superlink.rest import IDEMPOTENCY_HEADER, TIMEOUT_HEADER, Call, problem_of

# These say "not now", unless the problem says that trying again does not help.
RETRIED_STATUSES = frozenset({409, 429, 503})
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
# Clients that were refused together must not come back together: pauses are longer or shorter by up to this part.
_LONGER, _SHORTER = 0.25, 0.5
# A gateway that is there accepts at once; one behind a dead address never does.
CONNECT_TIMEOUT_S = 10.0
# For the gateway's own "out of time" to arrive, which says more than ours.
TIMEOUT_MARGIN_S = 2.0


class Attempts:
    """The attempts of one call."""

    def __init__(self, call: Call, settings: ConnectionSettings) -> None:
        self._call = call
        self._settings = settings
        self._deadline = time.monotonic() + settings.timeout_s
        self._failed = 0
        self._key = call.headers.get(IDEMPOTENCY_HEADER) or str(uuid.uuid4())

    def request(self) -> dict[str, Any]:
        """The next attempt as ``httpx.Client.build_request`` takes it; it may take what is left of the call's time."""
        left_s = max(self._deadline - time.monotonic(), 0.001) if self._failed else self._settings.timeout_s
        return {
            "method": self._call.method,
            "url": self._call.path,
            "headers": {**self._call.headers, IDEMPOTENCY_HEADER: self._key, TIMEOUT_HEADER: f"{left_s:g}"},
            "json": self._call.json,
            "data": self._call.form,
            "files": self._call.files,
            "timeout": httpx.Timeout(left_s + TIMEOUT_MARGIN_S, connect=min(left_s, CONNECT_TIMEOUT_S)),
        }

    def pause_after_error(self, error: httpx.HTTPError) -> float:
        """Seconds to wait before the next attempt. Raises the SDK's own error where there is none."""
        failure = connection_failure(error, self._settings)
        if not isinstance(failure, GatewayUnreachable):
            raise failure from error
        return self._pause(failure, None)

    def pause_after_response(self, response: httpx.Response) -> float:
        """Seconds to wait before the next attempt. Raises RequestFailed where there is none.

        ``response`` is one with an error status whose body was read.
        """
        failure = problem_of(response)
        if failure.http_status not in RETRIED_STATUSES or not failure.retryable:
            raise failure
        return self._pause(failure, failure.retry_after_s)

    def _pause(self, failure: RequestFailed | GatewayUnreachable, advised_s: float | None) -> float:
        spread = random.random()  # noqa: S311 (no secret)
        if advised_s is None:
            pause_s = min(FIRST_PAUSE_S * 2.0**self._failed, LONGEST_PAUSE_S) * (1 - _SHORTER * spread)
        else:
            pause_s = advised_s * (1 + _LONGER * spread)
        if self._failed >= self._settings.max_retries or time.monotonic() + pause_s > self._deadline:
            raise failure
        self._failed += 1
        return pause_s


def connection_failure(error: httpx.HTTPError, settings: ConnectionSettings) -> SuperlinkError:
    """What went wrong with a connection as the SDK's own error."""
    reason = str(error) or type(error).__name__
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)):
        return GatewayUnreachable(settings.url, reason)
    if isinstance(error, httpx.TimeoutException):
        return GatewayTimeout(settings.timeout_s)
    return ConnectionLost(settings.url, reason)
