"""What can go wrong for the SDK, one class a kind. All of them are ``SuperlinkError``.

::

    SuperlinkError
    ├── RequestFailed           the gateway answered with a problem
    │   ├── BadRequest          400, 422 and what has no class of its own below 500: change the request
    │   ├── Unauthenticated     401: no API key, or an unknown one
    │   ├── PermissionDenied    403: the key may not do this
    │   ├── NotFound            404: no such model or path
    │   ├── Conflict            409: another request stands in the way
    │   ├── TooLarge            413: the image or the body
    │   ├── UnsupportedImage    415: no JPEG, PNG or WebP
    │   ├── TooManyRequests     429: a full queue, a limit or a quota; see retry_after_s
    │   ├── ServerFailed        500, 502 and what has no class of its own from 500 on
    │   ├── NotDeployed         501: the deployment has no such tool
    │   ├── Unavailable         503: a service is away; see retry_after_s
    │   └── DeadlineExceeded    504: the work took longer than the request may
    ├── GatewayUnreachable      no connection: the request was never sent
    ├── ConnectionLost          the connection broke before the answer was complete
    ├── GatewayTimeout          no answer within the client's own timeout
    └── InvalidResponse         an answer that no gateway gives: is the address that of something else?
"""

from __future__ import annotations

import grpc

from superlink.errors import SuperlinkError, status_for_http
from superlink.results import Problem


class RequestFailed(SuperlinkError):
    """The gateway answered with a problem. ``http_status`` is the response's own."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(
            problem.code,
            problem.detail,
            status=status_for_http(problem.status),
            service=problem.service,
            retryable=problem.retryable,
            retry_after_ms=problem.retry_after_ms or 0,
            request_id=problem.request_id,
            hop=problem.hop,
        )
        self.problem = problem

    @property
    def http_status(self) -> int:
        """The status of the response."""
        return self.problem.status

    def __str__(self) -> str:
        place = f" [{self.service}]" if self.service else ""
        request = f" (request {self.request_id})" if self.request_id else ""
        return f"{self.code}{place}: {self.message}{request}"


class BadRequest(RequestFailed):
    """The request itself is wrong; the message says what to change."""


class Unauthenticated(RequestFailed):
    """The gateway wants an API key, or does not know this one."""


class PermissionDenied(RequestFailed):
    """The API key is known, and may not do this."""


class NotFound(RequestFailed):
    """There is no such model, or nothing at the path."""


class Conflict(RequestFailed):
    """Another request stands in the way."""


class TooLarge(RequestFailed):
    """The image or the body is larger than the deployment takes."""


class UnsupportedImage(RequestFailed):
    """The image is of a kind that the deployment does not read."""


class TooManyRequests(RequestFailed):
    """A queue is full, or a limit or quota is used up. ``retry_after_s`` says when to ask again."""


class ServerFailed(RequestFailed):
    """Something behind the gateway failed."""


class NotDeployed(RequestFailed):
    """The deployment lacks the tool."""


class Unavailable(RequestFailed):
    """A service is away or not ready. ``retry_after_s`` says when to ask again."""


class DeadlineExceeded(RequestFailed):
    """The work took longer than the request's deadline."""


class GatewayUnreachable(SuperlinkError):
    """There was no connection to a gateway, so that the request was never sent."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            "gateway_unreachable",
            f"No gateway answers at {url} ({reason}). Start one with `superlink up`, or name another address.",
            status=grpc.StatusCode.UNAVAILABLE,
            service="gateway",
        )


class ConnectionLost(SuperlinkError):
    """The connection broke before the answer was complete; whether the work was done is not known."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            "connection_lost",
            f"The connection to {url} broke before the answer was complete ({reason}). Ask again.",
            status=grpc.StatusCode.UNAVAILABLE,
            service="gateway",
        )


class GatewayTimeout(SuperlinkError):
    """The gateway did not answer within the client's timeout."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(
            "client_timeout",
            f"No answer within {timeout_s:g} s. Give the client a longer timeout_s.",
            status=grpc.StatusCode.DEADLINE_EXCEEDED,
            service="gateway",
            retryable=True,
        )


class InvalidResponse(SuperlinkError):
    """What came back is no answer of a gateway."""

    def __init__(self, url: str, reason: str, request_id: str) -> None:
        super().__init__(
            "invalid_response",
            f"What {url} answered is no answer of a Superlink gateway ({reason}). Does another server listen there, or "
            "a gateway of another version?",
            status=grpc.StatusCode.INTERNAL,
            service="gateway",
            request_id=request_id,
        )


_BY_STATUS: dict[int, type[RequestFailed]] = {
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    415: UnsupportedImage,
    429: TooManyRequests,
    501: NotDeployed,
    503: Unavailable,
    504: DeadlineExceeded,
}


def failure_of(problem: Problem) -> RequestFailed:
    """``problem`` as an exception of its kind."""
    return _BY_STATUS.get(problem.status, BadRequest if problem.status < 500 else ServerFailed)(problem)
