"""Where traces are sent, and what becomes of a process whose collector is wrong or away."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState, get_current_span

from superlink.ports import free_port_overrides
from superlink.profile import Profile, find_profile, load_profile
from superlink.telemetry import FLUSH_TIMEOUT_S, received_context, trace_metadata
from superlink.v1 import orchestrator_pb2, orchestrator_pb2_grpc

REPOSITORY = Path(__file__).resolve().parent.parent.parent


@contextmanager
def process_of(module: str, profile: Profile, folder: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """``python -m module`` in an environment of its own; it is killed at the end if it still lives."""
    file = folder / "profile.yaml"
    file.write_text(yaml.safe_dump(profile.model_dump(mode="json")))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")} | variables
    command = [sys.executable, "-m", module, "--profile", str(file)]
    process = subprocess.Popen(command, env=environment, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def profile_with() -> Callable[..., Profile]:
    """Profile tiny on free ports, with further settings."""

    def make(**settings: Any) -> Profile:
        tiny = find_profile("tiny")
        return load_profile(tiny, {**free_port_overrides(load_profile(tiny)), **settings})

    return make


@pytest.mark.parametrize(
    ("settings", "variables", "named"),
    [
        ({"telemetry.otlp_endpoint": "collector:4317"}, {}, "telemetry.otlp_endpoint: 'collector:4317'"),
        ({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4317"}, "OTEL_EXPORTER_OTLP_ENDPOINT: 'collector:4317'"),
        (
            {"telemetry.otlp_endpoint": "http://127.0.0.1:4318"},
            {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            "OTEL_EXPORTER_OTLP_PROTOCOL: traces are sent by gRPC only",
        ),
        (
            {"telemetry.otlp_endpoint": "http://127.0.0.1:4317"},
            {"OTEL_EXPORTER_OTLP_TIMEOUT": "soon"},
            "An OTEL_ variable of the environment has no fitting value",
        ),
    ],
)
def test_a_process_that_cannot_send_traces_as_told_does_not_start(
    settings: dict[str, Any],
    variables: dict[str, str],
    named: str,
    profile_with: Callable[..., Profile],
    tmp_path: Path,
) -> None:
    with process_of("orchestrator", profile_with(**settings), tmp_path, **variables) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert named in said
    assert "Traceback" not in said


def test_a_collector_that_never_answers_holds_up_neither_requests_nor_the_end_of_a_process(
    profile_with: Callable[..., Profile], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        profile = profile_with(**{"telemetry.otlp_endpoint": f"http://127.0.0.1:{silent.getsockname()[1]}"})
        with process_of("orchestrator", profile, tmp_path, OTEL_BSP_SCHEDULE_DELAY="50") as process:
            assert process.stderr is not None
            # The word comes a moment before the signal handlers are in place; the call takes longer.
            assert any(json.loads(line)["message"] == "ready" for line in process.stderr)
            with grpc.insecure_channel(profile.orchestrator.address) as channel:
                stub = orchestrator_pb2_grpc.OrchestratorStub(channel)
                with pytest.raises(grpc.RpcError) as failed:
                    # No worker is there: it fails, and leaves spans that nobody takes.
                    list(stub.Answer(orchestrator_pb2.AnswerRequest(), timeout=20))
            assert failed.value.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
            time.sleep(0.5)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
            assert process.returncode == 0
            assert time.monotonic() - began < FLUSH_TIMEOUT_S + 4


def test_without_a_collector_nothing_that_makes_or_sends_spans_is_even_imported() -> None:
    program = """
import sys
import gateway.application, orchestrator.server, services.runtime.worker
from superlink.profile import TelemetrySettings
from superlink.telemetry import exported_traces
with exported_traces("gateway", TelemetrySettings()):
    print([name for name in sys.modules if name.startswith(("opentelemetry.sdk.trace", "opentelemetry.exporter"))])
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def span_with(tracestate: TraceState) -> NonRecordingSpan:
    return NonRecordingSpan(
        SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=TraceFlags(1), trace_state=tracestate)
    )


def test_a_span_is_the_parent_of_what_its_metadata_reach() -> None:
    metadata = dict(trace_metadata(span_with(TraceState([("vendor", "1")]))))
    received = get_current_span(received_context(metadata)).get_span_context()
    assert (received.trace_id, received.span_id, received.is_remote) == (0xABC, 0xDEF, True)
    assert received.trace_state["vendor"] == "1"


def test_additions_that_would_burst_the_metadata_of_a_call_are_left_out() -> None:
    long = TraceState([(f"vendor{number}", "x" * 200) for number in range(20)])
    assert dict(trace_metadata(span_with(long))).keys() == {"traceparent"}


@pytest.mark.parametrize("traceparent", ["", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_what_is_no_trace_begins_none(traceparent: str) -> None:
    received = get_current_span(received_context({"traceparent": traceparent})).get_span_context()
    assert not received.is_valid
    assert trace_metadata(get_current_span()) == ()
