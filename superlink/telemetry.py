"""Traces: one for each request through every process that it passes, by OpenTelemetry.

Spans are made with OpenTelemetry's API, which does next to nothing until ``exported_traces`` installs its SDK. From
process to process a trace travels as W3C trace context, ``traceparent`` and ``tracestate``, in gRPC metadata; FastAPI
reads it from HTTP headers, and makes the first span.

Spans hold names, counts and times. Never put prompts, answers, image content or messages of exceptions there: messages
may quote any of them.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue

from superlink.configuration import ConfigurationError
from superlink.errors import SuperlinkError
from superlink.profile import TelemetrySettings

tracer = trace.get_tracer("superlink")

# How long the end of a process waits for a collector that does not answer.
FLUSH_TIMEOUT_S = 2.0
# Vendors' additions to the trace, which clients send. The standard wants this much of them to be passed on, and gRPC
# refuses calls whose metadata is larger than 8 KiB.
MAX_TRACESTATE_CHARACTERS = 512

_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
# No baggage: clients could send it through every hop, and nobody here reads it.
_PROPAGATOR = TraceContextTextMapPropagator()


@contextmanager
def exported_traces(service: str, settings: TelemetrySettings) -> Iterator[None]:
    """Send the spans that the block makes to the collector that the environment or the profile names, if one does.

    To be entered once in a process. Raises ConfigurationError for an address or a protocol that cannot be used.
    """
    endpoint = _endpoint(settings)
    if not endpoint:
        yield
        return
    # Not needed by processes that export nothing, and slow to import.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create(
        {
            "service.name": os.environ.get("OTEL_SERVICE_NAME") or service,
            "service.namespace": "superlink",
            "service.version": version("superlink"),
        }
    )
    try:
        exporter = OTLPSpanExporter(endpoint)
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
    except ValueError as error:
        raise ConfigurationError(f"An OTEL_ variable of the environment has no fitting value: {error}.") from error
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        # What is left is sent; a collector that is away would be tried for half a minute.
        impatience = threading.Timer(FLUSH_TIMEOUT_S, exporter.shutdown)
        impatience.daemon = True
        impatience.start()
        provider.shutdown()
        impatience.cancel()


def received_context(metadata: Mapping[str, str]) -> Context:
    """The trace that the metadata of a call name, as the parent of a span; an empty one without."""
    return _PROPAGATOR.extract(metadata)


def trace_metadata(span: Span) -> tuple[tuple[str, str], ...]:
    """Call metadata that makes ``span`` the parent of what the next process does; empty outside of a trace."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier, trace.set_span_in_context(span))
    if len(carrier.get("tracestate", "")) > MAX_TRACESTATE_CHARACTERS:
        del carrier["tracestate"]
    return tuple(carrier.items())


def current_trace_id() -> str:
    """The trace that the current task works for, 32 hex digits; empty outside of one."""
    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id) if context.is_valid else ""


@contextmanager
def measured_span(
    name: str, kind: SpanKind = SpanKind.INTERNAL, attributes: Mapping[str, AttributeValue] | None = None
) -> Iterator[Span]:
    """A child of the current span around a block, which notes how the block failed.

    It does not become the current span: in an async generator it would be the current one of whoever reads from it.
    """
    span = tracer.start_span(name, kind=kind, attributes=attributes)
    try:
        yield span
    except BaseException as error:
        mark_failed(span, error)
        raise
    finally:
        span.end()


def record_phase(
    name: str,
    started: float,
    seconds: float,
    attributes: Mapping[str, AttributeValue] | None = None,
    related: Sequence[SpanContext] = (),
) -> None:
    """A child of the current span for something that has happened: it ``started`` at that ``time.monotonic()``."""
    if not trace.get_current_span().is_recording():
        return
    began_ns = time.time_ns() - round((time.monotonic() - started) * 1e9)
    links = [Link(context) for context in related if context.is_valid]
    span = tracer.start_span(name, start_time=began_ns, attributes=attributes, links=links)
    span.end(began_ns + round(seconds * 1e9))


def failure_code(error: BaseException) -> str:
    """What metrics, logs and spans call ``error``: a SuperlinkError's code, ``cancelled``, or what it becomes."""
    if isinstance(error, SuperlinkError):
        return error.code
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        return "cancelled"
    return "deadline_exceeded" if isinstance(error, TimeoutError) else "internal"


def mark_failed(span: Span, error: BaseException) -> None:
    """Note on ``span`` how its work failed. A caller that erred or left is no failure of the deployment."""
    code = failure_code(error)
    span.set_attribute("error.type", code)
    at_fault = error.http_status >= 500 if isinstance(error, SuperlinkError) else code != "cancelled"
    if at_fault:
        span.set_status(StatusCode.ERROR)


def _endpoint(settings: TelemetrySettings) -> str:
    """Where spans go; empty for nowhere."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ""
    if os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return ""
    named = {variable: os.environ.get(variable, "") for variable in _ENDPOINT_VARIABLES}
    named["telemetry.otlp_endpoint"] = settings.otlp_endpoint
    source, endpoint = next(((source, text) for source, text in named.items() if text), ("", ""))
    if not endpoint:
        return ""
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigurationError(
            f"{source}: {endpoint!r} is not the address of a collector. Name one like http://127.0.0.1:4317, or https."
        )
    for variable in _PROTOCOL_VARIABLES:
        if os.environ.get(variable, "grpc") != "grpc":
            raise ConfigurationError(
                f"{variable}: traces are sent by gRPC only. Set it to grpc, and {source} to the collector's port for "
                "that, which is 4317 by default."
            )
    return endpoint
