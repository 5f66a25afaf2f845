"""One error shape from the worker to the client.

A failure is raised as ``SuperlinkError``. On the wire between processes it is a gRPC status with ``google.rpc``
details (ErrorInfo, RetryInfo, RequestInfo), inside messages it is ``superlink.v1.Error``, and at the REST edge it is a
problem document with the HTTP status of the one table below. The three carry the same fields and convert both ways.
"""

from __future__ import annotations

import copyreg
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as PackedDetail
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from superlink.v1 import types_pb2

# The HTTP status of every gRPC status.
HTTP_STATUS: dict[grpc.StatusCode, int] = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.FAILED_PRECONDITION: 412,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    # Nginx's "client closed request"; nobody is left to read it, but logs and metrics show it.
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.DATA_LOSS: 500,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}

# Codes for which HTTP has a sharper word than the gRPC status.
HTTP_STATUS_BY_CODE: dict[str, int] = {
    "method_not_allowed": 405,
    "image_too_large": 413,
    "message_too_large": 413,
    "body_too_large": 413,
    "file_too_large": 413,
    "storage_quota_exceeded": 413,
    "unsupported_image": 415,
    "idempotency_key_reused": 422,
    # The deployment is at fault, not the client.
    "adapter_version_mismatch": 502,
}

# The gRPC status that an HTTP status stands for when a response carries no other word; used by the SDK.
GRPC_STATUS: dict[int, grpc.StatusCode] = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    405: grpc.StatusCode.UNIMPLEMENTED,
    409: grpc.StatusCode.ABORTED,
    412: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    502: grpc.StatusCode.FAILED_PRECONDITION,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}

RETRYABLE_STATUSES = frozenset(
    {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.ABORTED}
)

# Status and details travel in HTTP/2 trailers, which gRPC limits to 8 KiB. The message goes there twice, once
# percent-encoded (up to three times its size) and once in base64.
MAX_TEXT_BYTES = 1000

# Statuses that gRPC itself gives to calls.
_BARE_CODES = {
    grpc.StatusCode.UNAVAILABLE: "unavailable",
    grpc.StatusCode.DEADLINE_EXCEEDED: "deadline_exceeded",
    grpc.StatusCode.CANCELLED: "cancelled",
    grpc.StatusCode.UNIMPLEMENTED: "unimplemented",
}

# What grpc.aio says above a server's ``maximum_concurrent_rpcs``.
_TOO_MANY_CALLS = "Concurrent RPC limit exceeded!"

_STATUS_BY_NUMBER: dict[int, grpc.StatusCode] = {status.value[0]: status for status in grpc.StatusCode}


class SuperlinkError(Exception):
    """A failure that a caller is told about.

    ``code`` is stable, machine-readable and lower_snake_case; ``message`` is a sentence for a person that says what
    happened and what to do; ``service`` is the process that failed, and is filled in at the server's edge when empty.
    ``hop`` is the call that failed, ``orchestrator>detection``, and is filled in by the first process that passes the
    failure of another one on. The codes are listed in ``superlink/error_codes.py``.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: grpc.StatusCode,
        service: str = "",
        retryable: bool | None = None,
        retry_after_ms: int = 0,
        request_id: str = "",
        hop: str = "",
    ) -> None:
        """``retryable`` None: by the status. ``retry_after_ms`` 0: no advice."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.service = service
        self.retryable = status in RETRYABLE_STATUSES if retryable is None else retryable
        self.retry_after_ms = retry_after_ms
        self.request_id = request_id
        self.hop = hop

    @property
    def http_status(self) -> int:
        """The status of the HTTP response that reports this error."""
        return HTTP_STATUS_BY_CODE.get(self.code, HTTP_STATUS[self.status])

    @property
    def retry_after_s(self) -> float | None:
        """When to try again, in seconds from now; None without advice."""
        return self.retry_after_ms / 1000 or None

    def passed_on_by(self, process: str) -> SuperlinkError:
        """This error with what ``process`` knows of it: that the failure was its own, or in which of its calls."""
        self.service = self.service or process
        if not self.hop and self.service != process:
            self.hop = f"{process}>{self.service}"
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by what it holds, so that errors come back from worker processes whatever their constructor takes."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]

    def to_message(self) -> types_pb2.Error:
        """This error as ``superlink.v1.Error``."""
        return types_pb2.Error(
            code=self.code,
            message=self.message,
            service=self.service,
            retryable=self.retryable,
            retry_after_ms=self.retry_after_ms,
            request_id=self.request_id,
            grpc_status=self.status.value[0],
            hop=self.hop,
        )

    @classmethod
    def from_message(cls, error: types_pb2.Error) -> SuperlinkError:
        """The inverse of ``to_message``. A message without a status becomes UNKNOWN."""
        return cls(
            error.code,
            error.message,
            status=_STATUS_BY_NUMBER[error.grpc_status] if error.grpc_status else grpc.StatusCode.UNKNOWN,
            service=error.service,
            retryable=error.retryable,
            retry_after_ms=error.retry_after_ms,
            request_id=error.request_id,
            hop=error.hop,
        )


def invalid_argument(code: str, message: str) -> SuperlinkError:
    """The most common failure: the request itself is wrong."""
    return SuperlinkError(code, message, status=grpc.StatusCode.INVALID_ARGUMENT)


def invalid_fields(problems: Sequence[Mapping[str, Any]]) -> SuperlinkError:
    """A document that does not fit its schema, told in one sentence a field; ``problems`` as pydantic reports them."""
    return invalid_argument("invalid_request", " ".join(_sentence(problem) for problem in problems[:5]))


def to_rpc_status(error: SuperlinkError) -> status_pb2.Status:
    """``error`` as ``google.rpc.Status`` with ErrorInfo and, where they say something, RetryInfo and RequestInfo."""
    metadata = {"retryable": str(error.retryable).lower(), **({"hop": error.hop} if error.hop else {})}
    info = error_details_pb2.ErrorInfo(reason=error.code, domain=error.service, metadata=metadata)
    packed = [_pack(info)]
    if error.retry_after_ms:
        delay = Duration()
        delay.FromMilliseconds(error.retry_after_ms)
        packed.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    if error.request_id:
        packed.append(_pack(error_details_pb2.RequestInfo(request_id=error.request_id)))
    return status_pb2.Status(code=error.status.value[0], message=_shortened(error.message), details=packed)


async def abort(
    context: grpc.aio.ServicerContext[Any, Any], error: SuperlinkError, *metadata: tuple[str, str]
) -> NoReturn:
    """End the call of an asyncio server with ``error``, and with ``metadata`` behind it. Never returns."""
    status = rpc_status.to_status(to_rpc_status(error))
    await context.abort(status.code, status.details, (*status.trailing_metadata, *metadata))
    raise AssertionError("abort returned")


def from_rpc_error(rpc_error: grpc.RpcError, service: str) -> SuperlinkError:
    """What a failed call to ``service`` means.

    Details that the callee sent are taken over, its own service name included (the failure may lie deeper than the
    hop). Without them the error is named after the status, with ``service`` as the process at fault.
    """
    call: Any = rpc_error
    status: grpc.StatusCode = call.code()
    try:
        rich = rpc_status.from_call(call)
    except ValueError:
        rich = None
    if rich is None:
        return _from_bare_status(status, call.details() or "", service)
    return _from_rich_status(status, rich, service)


def status_for_http(http_status: int) -> grpc.StatusCode:
    """The gRPC status that an HTTP status stands for; UNKNOWN for one that Superlink never sends."""
    return GRPC_STATUS.get(http_status, grpc.StatusCode.UNKNOWN)


def _sentence(problem: Mapping[str, Any]) -> str:
    field = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return f"Unknown field {field!r}."
    if problem["type"] == "missing":
        return f"The field {field!r} is missing."
    if problem["type"] == "json_invalid":
        return f"The body is not valid JSON: {problem['msg']}."
    return f"{field}: {problem['msg']}." if field else f"{problem['msg']}."


def _shortened(text: str) -> str:
    encoded = text.encode()
    if len(encoded) <= MAX_TEXT_BYTES:
        return text
    return encoded[:MAX_TEXT_BYTES].decode(errors="ignore") + "…"


def _pack(detail: Message) -> PackedDetail:
    packed = PackedDetail()
    packed.Pack(detail)
    return packed


def _from_rich_status(status: grpc.StatusCode, rich: status_pb2.Status, service: str) -> SuperlinkError:
    code, domain, retryable, retry_after_ms, request_id, hop = _code_of(status), service, None, 0, "", ""
    for detail in rich.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            code = info.reason or code
            domain = info.domain or domain
            if "retryable" in info.metadata:
                retryable = info.metadata["retryable"] == "true"
            hop = info.metadata.get("hop", "")
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after_ms = retry.retry_delay.ToMilliseconds()
        elif detail.Is(error_details_pb2.RequestInfo.DESCRIPTOR):
            request = error_details_pb2.RequestInfo()
            detail.Unpack(request)
            request_id = request.request_id
    return SuperlinkError(
        code,
        rich.message,
        status=status,
        service=domain,
        retryable=retryable,
        retry_after_ms=retry_after_ms,
        request_id=request_id,
        hop=hop,
    )


def _code_of(status: grpc.StatusCode) -> str:
    """What a failure without details is called: by what gRPC itself says about a call, else an inner failure."""
    return _BARE_CODES.get(status, "internal")


def _from_bare_status(status: grpc.StatusCode, details: str, service: str) -> SuperlinkError:
    code = _code_of(status)
    if status is grpc.StatusCode.UNAVAILABLE:
        message = f"The {service} service cannot be reached. Try again; if it lasts, see that its process runs."
    elif status is grpc.StatusCode.DEADLINE_EXCEEDED:
        message = f"The {service} service did not answer within the time that was left."
    elif status is grpc.StatusCode.CANCELLED:
        message = f"The call to the {service} service was cancelled."
    elif status is grpc.StatusCode.RESOURCE_EXHAUSTED and details == _TOO_MANY_CALLS:
        text = f"The {service} service has as many calls in hand as it takes. Try again after the delay."
        return SuperlinkError("overloaded", text, status=status, service=service, retry_after_ms=1000)
    elif status is grpc.StatusCode.RESOURCE_EXHAUSTED:
        # Else it is gRPC's own message size check, on either end. Our queues always send details.
        code, message = "message_too_large", f"A message to or from the {service} service is too large: {details}"
        return SuperlinkError(code, message, status=status, service=service, retryable=False)
    else:
        message = f"The {service} service failed: {details or status.name.lower()}"
        status = status if status in _BARE_CODES else grpc.StatusCode.INTERNAL
    return SuperlinkError(code, message, status=status, service=service)
