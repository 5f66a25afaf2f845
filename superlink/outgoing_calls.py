"""Calls to another process for a request: they carry its id and its trace, and every failure is a SuperlinkError."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Protocol, TypeVar

import grpc
from opentelemetry.trace import SpanKind
from opentelemetry.util.types import AttributeValue

from superlink.channels import request_metadata
from superlink.errors import from_rpc_error
from superlink.telemetry import measured_span


class _NamedRequest(Protocol):
    """A message of the contracts that has an id."""

    request_id: str


Request = TypeVar("Request", bound=_NamedRequest)
Response = TypeVar("Response")


async def call(
    method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
    request: Request,
    timeout_s: float,
    *,
    service: str,
    span: str,
) -> Response:
    """The response of ``service``. ``span`` is the name of the call in traces."""
    with measured_span(span, SpanKind.CLIENT) as own:
        try:
            return await method(request, timeout=timeout_s, metadata=request_metadata(request.request_id, own))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, service) from error


async def stream(
    method: grpc.aio.UnaryStreamMultiCallable[Request, Response],
    request: Request,
    timeout_s: float,
    *,
    service: str,
    span: str,
    attributes: Mapping[str, AttributeValue] | None = None,
) -> AsyncGenerator[Response, None]:
    """The responses of ``service`` as they come; closing the generator cancels the call. Else as ``call``."""
    with measured_span(span, SpanKind.CLIENT, attributes) as own:
        responses = method(request, timeout=timeout_s, metadata=request_metadata(request.request_id, own))
        try:
            async for response in responses:
                yield response
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, service) from error
        finally:
            responses.cancel()
