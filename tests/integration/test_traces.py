"""One trace leads from a REST request through every process to its tools, and holds nothing of what was sent."""

from __future__ import annotations

import base64
import io
import json
import secrets
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from PIL import Image

from superlink import Client
from superlink.client_errors import RequestFailed
from superlink.images import encode_image
from superlink.stack import LocalStack
from tests.integration.trace_collector import CollectedSpan, TraceCollector, outline

ANSWER = "superlink.v1.Orchestrator/Answer"
DECODE = "superlink.v1.Decoder/Decode"
# No sample shows it and no message of ours says it.
RARE_WORD = "quetzalcoatlus"


def started_trace() -> tuple[str, str, str]:
    """The header with which a client begins a trace, its id, and the id of the client's own span."""
    trace_id, span_id = secrets.token_hex(16), secrets.token_hex(8)
    return f"00-{trace_id}-{span_id}-01", trace_id, span_id


def chat_body(sample: bytes, question: str) -> dict[str, Any]:
    image = {"type": "image_url", "image_url": {"url": encode_image(sample).data_url()}}
    return {"messages": [{"role": "user", "content": [image, {"type": "text", "text": question}]}]}


def only(spans: Sequence[CollectedSpan], service: str, name: str, **attributes: Any) -> CollectedSpan:
    wanted = {f"superlink.{key}": value for key, value in attributes.items()}
    found = [
        span
        for span in spans
        if (span.service, span.name) == (service, name) and wanted.items() <= span.attributes.items()
    ]
    assert len(found) == 1, outline(list(spans))
    return found[0]


def children(spans: Sequence[CollectedSpan], parent: CollectedSpan) -> dict[str, CollectedSpan]:
    return {span.name: span for span in spans if span.parent_id == parent.span_id}


def has_root(spans: Sequence[CollectedSpan]) -> bool:
    """The gateway's span ends last, but processes send on their own: a moment later all the others are there, too."""
    ids = {span.span_id for span in spans}
    return any(span.service == "gateway" and span.kind == "server" for span in spans) and all(
        span.parent_id in ids for span in spans if span.service != "gateway"
    )


def test_one_trace_leads_from_the_request_to_every_tool_it_calls(
    stack: LocalStack, collector: TraceCollector, sample: bytes
) -> None:
    question = "Find the dogs, and segment the skull."
    response = httpx.post(f"{stack.url}/v1/chat/completions", json=chat_body(sample, question), timeout=60)
    answer = response.json()["choices"][0]["message"]["superlink"]
    called = {call["tool"] for call in answer["tool_calls"]}
    assert {"detection", "segmentation"} <= called

    def is_complete(spans: list[CollectedSpan]) -> bool:
        # Images that are sent ahead go to tools of their own choice.
        names = {(span.service, span.name) for span in spans}
        return has_root(spans) and {("mllm", "compute"), *((tool, "compute") for tool in called)} <= names

    spans = collector.trace(response.headers["x-trace-id"], is_complete)
    root = only(spans, "gateway", "POST /v1/chat/completions")
    assert root.parent_id == ""
    assert root.attributes["superlink.request_id"] == response.headers["x-request-id"]
    assert root.attributes["http.response.status_code"] == 200
    asked = children(spans, root)["orchestrator answer"]
    answered = children(spans, asked)[ANSWER]
    assert (asked.service, answered.service) == ("gateway", "orchestrator")
    assert answered.attributes["superlink.tool_calls"] == len(answer["tool_calls"])
    written = children(spans, children(spans, answered)["mllm generate"])["superlink.v1.Mllm/Generate"]
    assert written.attributes["superlink.completion_tokens"] > 0
    assert {"prepare", "queue", "compute"} == children(spans, written).keys()
    for tool, token in (("detection", "[DET]"), ("segmentation", "[SEG]")):
        call = only(spans, "orchestrator", f"tool_call {tool}", decoder=tool)
        assert call.parent_id == answered.span_id
        assert call.attributes["superlink.routes"] == [token]
        assert call.attributes["superlink.groups"] == 1
        decoded = only(spans, tool, DECODE, groups=1)
        assert decoded.parent_id == call.span_id
        phases = children(spans, decoded)
        assert {"prepare", "queue", "compute"} == phases.keys()
        assert 0 < phases["compute"].seconds <= decoded.seconds <= root.seconds
    assert not any(span.failed for span in spans)


def test_a_request_goes_on_with_the_trace_that_its_client_began(
    stack: LocalStack, collector: TraceCollector, sample: bytes
) -> None:
    header, trace_id, span_id = started_trace()
    body = {"image": encode_image(sample).data_url(), "categories": ["dog"]}
    response = httpx.post(f"{stack.url}/v1/segment", json=body, headers={"traceparent": header}, timeout=60)
    assert response.headers["x-trace-id"] == trace_id
    spans = collector.trace(
        trace_id, lambda spans: has_root(spans) and ("segmentation", "compute") in {(s.service, s.name) for s in spans}
    )
    assert only(spans, "gateway", "POST /v1/segment").parent_id == span_id
    assert {"gateway", "orchestrator", "mllm", "segmentation"} <= {span.service for span in spans}


def test_the_trace_of_a_failure_is_in_the_problem_and_shows_where_it_failed(
    stack: LocalStack, client: Client, collector: TraceCollector, sample: bytes
) -> None:
    with pytest.raises(RequestFailed) as failed:
        # The header is whole, so that only whoever decodes the image sees the damage.
        client.detect(sample[: len(sample) // 2], ["dog"])
    problem = failed.value.problem
    assert problem.code == "image_truncated"
    assert problem.trace_id is not None
    spans = collector.trace(
        problem.trace_id, lambda spans: has_root(spans) and problem.service in {span.service for span in spans}
    )
    root = only(spans, "gateway", "POST /v1/detect")
    assert root.attributes["superlink.request_id"] == problem.request_id
    assert root.attributes["http.response.status_code"] == problem.status == 400
    guilty = [span for span in spans if span.service == problem.service]
    assert {span.attributes["error.type"] for span in guilty} == {"image_truncated"}
    # Whoever sent the file is at fault, not the deployment.
    assert not any(span.failed for span in spans)


def test_a_request_that_runs_out_of_time_is_a_failed_trace(
    stack: LocalStack, collector: TraceCollector, sample: bytes
) -> None:
    headers = {"x-request-timeout-s": "0.2"}
    body = {"prompt": "a cat", "superlink": {"steps": 100}}
    response = httpx.post(f"{stack.url}/v1/images/generations", json=body, headers=headers, timeout=60)
    problem = response.json()
    assert problem["code"] == "deadline_exceeded"
    assert problem["trace_id"] == response.headers["x-trace-id"]
    spans = collector.trace(problem["trace_id"], has_root)
    asked = only(spans, "gateway", "orchestrator draw")
    assert asked.failed
    assert asked.attributes["error.type"] == "deadline_exceeded"
    assert only(spans, "gateway", "POST /v1/images/generations").failed


def test_every_span_of_a_request_that_is_given_up_ends(stack: LocalStack, collector: TraceCollector) -> None:
    header, trace_id, _ = started_trace()
    body = {"prompt": "a cat", "stream": True, "superlink": {"steps": 100, "guidance": 7}}
    with httpx.stream(
        "POST", f"{stack.url}/v1/images/generations", json=body, headers={"traceparent": header}, timeout=60
    ) as response:
        # The first sign of progress: the worker is at it.
        next(response.iter_lines())
    ended = {
        ("gateway", "orchestrator draw"),
        ("orchestrator", "superlink.v1.Orchestrator/Draw"),
        ("orchestrator", "tool_call diffusion"),
        ("diffusion", DECODE),
    }
    spans = collector.trace(
        trace_id, lambda spans: has_root(spans) and ended <= {(span.service, span.name) for span in spans}
    )
    for service, name in ended:
        span = only(spans, service, name)
        assert span.attributes["error.type"] == "cancelled", outline(spans)
        assert not span.failed
    assert {"queue", "compute"} <= children(spans, only(spans, "diffusion", DECODE)).keys()


def test_neither_traces_nor_logs_hold_words_or_pictures_of_requests(
    stack: LocalStack, collector: TraceCollector
) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(buffer, format="PNG")
    picture = buffer.getvalue()
    url = stack.url
    question = f"Where is the {RARE_WORD}?"
    broken = {"messages": [{"role": "user", "content": [{"type": "text", "text": question, RARE_WORD: RARE_WORD}]}]}
    find = {"image": encode_image(picture).data_url(), "categories": [RARE_WORD]}
    with httpx.Client(timeout=60) as http:
        responses = [
            http.post(f"{url}/v1/chat/completions", json=chat_body(picture, question)),
            http.post(f"{url}/v1/chat/completions", json=broken),
            http.post(f"{url}/v1/chat/completions", content=json.dumps(broken)[:-2]),
            http.post(f"{url}/v1/chat/completions", json=chat_body(picture[:2000], question)),
            http.post(f"{url}/v1/detect", json=find),
            http.post(f"{url}/v1/pose", json={**find, "keypoints": [RARE_WORD]}),
            http.post(f"{url}/v1/detect", json={**find, "categories": [f"{RARE_WORD} {n}" for n in range(1000)]}),
            http.post(f"{url}/v1/images/generations", json={"prompt": question, "superlink": {"steps": 1}}),
            http.post(f"{url}/v1/images/generations", json={"prompt": question, "model": RARE_WORD}),
            http.post(f"{url}/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": find}),
        ]
    assert {response.status_code for response in responses} >= {200, 400, 404}
    for response in responses:
        collector.trace(response.headers["x-trace-id"], has_root)
    recorded = {
        "traces": "".join(collector.received),
        **{name: stack.log_file(name).read_text() for name in stack.process_names},
    }
    for source, text in recorded.items():
        assert text, source
        assert RARE_WORD not in text.lower(), source
        for piece in (base64.b64encode(picture).decode()[100:140], picture[100:120].hex(), str(picture[100:120])[2:-1]):
            assert piece not in text, source
