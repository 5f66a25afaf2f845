"""A collector that takes OTLP over gRPC, as every OpenTelemetry backend does, and remembers the spans."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1 import trace_pb2

ARRIVAL_TIMEOUT_S = 20.0


@dataclass(frozen=True)
class CollectedSpan:
    """A span as it arrived; ids in hex, an empty parent for a root."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: str
    seconds: float
    failed: bool
    attributes: dict[str, Any]
    events: tuple[str, ...]


class TraceCollector(trace_service_pb2_grpc.TraceServiceServicer):
    """Give ``endpoint`` to processes, and ask ``trace`` for what they did."""

    def __init__(self) -> None:
        self.endpoint = ""
        # Everything that arrived, as text: what must not be in it is looked for here.
        self.received: list[str] = []
        self._spans: list[CollectedSpan] = []
        self._lock = threading.Lock()

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the contract's name
        spans = [
            _collected(_value_of(group.resource.attributes)["service.name"], span)
            for group in request.resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]
        with self._lock:
            self.received.append(str(request))
            self._spans += spans
        return trace_service_pb2.ExportTraceServiceResponse()

    def trace(
        self, trace_id: str, until: Callable[[list[CollectedSpan]], bool], timeout_s: float = ARRIVAL_TIMEOUT_S
    ) -> list[CollectedSpan]:
        """The spans of one trace as soon as ``until`` holds for them; processes send theirs when they have ended."""
        deadline = time.monotonic() + timeout_s
        while True:
            with self._lock:
                spans = [span for span in self._spans if span.trace_id == trace_id]
            if until(spans):
                return spans
            assert time.monotonic() < deadline, f"of trace {trace_id} only came:\n" + outline(spans)
            time.sleep(0.05)


@contextmanager
def running_collector() -> Iterator[TraceCollector]:
    collector = TraceCollector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()


def outline(spans: list[CollectedSpan]) -> str:
    """The spans as an indented tree, for people."""
    by_id = {span.span_id: span for span in spans}
    lines = []
    for span in spans:
        depth, parent = 0, by_id.get(span.parent_id)
        path = [span.name]
        while parent is not None:
            depth, path, parent = depth + 1, [parent.name, *path], by_id.get(parent.parent_id)
        lines.append((path, f"{'  ' * depth}{span.service}: {span.name} {span.attributes}"))
    return "\n".join(line for _, line in sorted(lines)) or "nothing"


def _collected(service: str, span: trace_pb2.Span) -> CollectedSpan:
    return CollectedSpan(
        service=service,
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        seconds=(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        failed=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
        attributes=_value_of(span.attributes),
        events=tuple(event.name for event in span.events),
    )


def _value_of(attributes: Any) -> dict[str, Any]:
    return {entry.key: _plain(entry.value) for entry in attributes}


def _plain(value: AnyValue) -> Any:
    if value.HasField("array_value"):
        return [_plain(each) for each in value.array_value.values]
    return getattr(value, value.WhichOneof("value"))
