"""What a process notes of every gRPC call that it answers: the request's id, a span, and a line in its log.

Handlers add facts, which are numbers: the line and the span both carry them.
"""

from __future__ import annotations

import contextvars
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import grpc
from opentelemetry import context as ambient
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind

from superlink.channels import request_id_of
from superlink.logs import current_request_id
from superlink.telemetry import failure_code, mark_failed, received_context, tracer

logger = logging.getLogger(__name__)

_facts: ContextVar[dict[str, int]] = ContextVar("facts")
# Probes ask for it all the time, and it belongs to no request.
_UNNOTED = "Describe"


def note(**facts: int) -> None:
    """Note ``facts`` of the call that the current task works for."""
    _facts.get({}).update(facts)


def count(fact: str) -> None:
    """Note ``fact`` once more."""
    note(**{fact: _facts.get({}).get(fact, 0) + 1})


@contextmanager
def served_call(method: str, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Iterator[None]:
    """The life of one call; ``method`` is its full name, ``/superlink.v1.Decoder/Decode``.

    What this sets for the current task is never set back: every call is a task of its own, and a stream that is given
    up half-way may end in another one.
    """
    request_id = request_id_of(context, str(getattr(request, "request_id", "")))
    current_request_id.set(request_id)
    name = method.removeprefix("/")
    if name.endswith(f"/{_UNNOTED}"):
        yield
        return
    span = tracer.start_span(
        name,
        context=received_context(_texts(context)),
        kind=SpanKind.SERVER,
        attributes={"rpc.system.name": "grpc", "rpc.method": name, "superlink.request_id": request_id},
    )
    ambient.attach(trace.set_span_in_context(span))
    facts: dict[str, int] = {}
    _facts.set(facts)
    own_context = contextvars.copy_context()
    started = time.perf_counter()
    code = "ok"
    try:
        yield
    except BaseException as error:
        code = failure_code(error)
        mark_failed(span, error)
        raise
    finally:
        seconds = time.perf_counter() - started
        # Wherever this runs, the line belongs to this request.
        own_context.run(_finish, name, span, code, seconds, facts)


def _finish(name: str, span: Span, code: str, seconds: float, facts: dict[str, int]) -> None:
    span.set_attributes({f"superlink.{key}": value for key, value in facts.items()})
    span.end()
    fields = {"method": name.rpartition("/")[2], "code": code, "milliseconds": round(seconds * 1000, 2), **facts}
    logger.info("request finished", extra=fields)


def _texts(context: grpc.aio.ServicerContext[Any, Any]) -> dict[str, str]:
    """The call's metadata without the binary entries."""
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
