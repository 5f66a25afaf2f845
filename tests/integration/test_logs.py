"""Logs of the real processes: JSON lines that name the request and its trace."""

from __future__ import annotations

import json
import time
from typing import Any

import httpx

from superlink.images import encode_image
from superlink.stack import LocalStack
from tests.integration.test_traces import started_trace

# The processes that a request for masks passes.
SERVED = ("gateway", "orchestrator", "mllm", "segmentation")


def lines_of(stack: LocalStack, name: str) -> list[dict[str, Any]]:
    """Without the last one if it is still being written."""
    *lines, _ = stack.log_file(name).read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines]


def lines_about(stack: LocalStack, name: str, request_id: str) -> list[dict[str, Any]]:
    """As soon as there are any: a process writes its line a moment after its answer."""
    deadline = time.monotonic() + 10
    while not (found := [line for line in lines_of(stack, name) if line.get("request_id") == request_id]):
        assert time.monotonic() < deadline, f"{name} has logged nothing of {request_id}"
        time.sleep(0.05)
    return found


def test_every_process_logs_a_request_under_its_id_and_its_trace(stack: LocalStack, sample: bytes) -> None:
    header, trace_id, _ = started_trace()
    headers = {"traceparent": header, "x-request-id": "looked-for-in-the-logs"}
    body = {"image": encode_image(sample).data_url(), "categories": ["dog"]}
    response = httpx.post(f"{stack.url}/v1/segment", json=body, headers=headers, timeout=60)
    assert response.status_code == 200
    for name in SERVED:
        for line in lines_about(stack, name, "looked-for-in-the-logs"):
            assert line["trace_id"] == trace_id
            assert line["service"] == name
            assert line["message"] == "request finished"
            assert line["milliseconds"] > 0


def test_whatever_a_process_writes_is_a_json_object_a_line(stack: LocalStack) -> None:
    # Redis is not ours.
    for name in set(stack.process_names) - {"redis"}:
        lines = lines_of(stack, name)
        assert lines
        for line in lines:
            assert {"time", "level", "service", "message"} <= line.keys()


def test_probes_are_neither_logged_nor_traced(stack: LocalStack) -> None:
    with httpx.Client(base_url=stack.url) as http:
        for path in ("/livez", "/healthz", "/readyz", "/metrics"):
            response = http.get(path, headers={"x-request-id": "a-probe"})
            assert response.status_code == 200
            assert "x-trace-id" not in response.headers
        http.get("/v1/models", headers={"x-request-id": "behind-the-probes"})
    lines_about(stack, "gateway", "behind-the-probes")
    assert not any("a-probe" in stack.log_file(name).read_text() for name in stack.process_names)
