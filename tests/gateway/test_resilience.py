"""What clients see of a deployment that lacks a tool, or is asked for more than it can do."""

import asyncio
import time

import pytest
from live_gateway import LiveGateway, live_gateway
from request_bodies import chat_body, data_url
from scripted_workers import (
    detection,
    detections,
    find_one_object_a_group,
    finish,
    group,
    observe,
    text,
)

from superlink.profile import OrchestratorSettings

pytestmark = pytest.mark.faults


def services(document: dict[str, list[dict[str, object]]]) -> dict[object, dict[str, object]]:
    return {service["name"]: service for service in document["services"]}


async def test_readiness_and_models_tell_how_each_service_stands(gateway: LiveGateway) -> None:
    fine = services((await gateway.http.get("/readyz")).json())
    standing = {"breaker": "closed", "replicas": 1, "replicas_in_use": 1}
    assert fine["detection"] == {"name": "detection", "ready": True, **standing}
    assert fine["mllm"] == {"name": "mllm", "ready": True, **standing}
    assert fine["orchestrator"] == {"name": "orchestrator", "ready": True}

    await gateway.workers.detection_server.stop()
    async with asyncio.timeout(10):
        while True:
            away = services((await gateway.http.get("/readyz")).json())["detection"]
            if away["breaker"] == "open":
                break
            await asyncio.sleep(0.05)
    [model] = (await gateway.http.get("/v1/models")).json()["data"]

    assert (away["ready"], away["replicas"], away["replicas_in_use"]) == (False, 1, 0)
    assert {tool["name"]: tool["ready"] for tool in model["superlink"]["tools"]} == {
        "detection": False,
        "segmentation": True,
        "diffusion": True,
        "pose": True,
    }


async def test_when_one_of_two_tools_fails_the_other_ones_results_stay_and_the_model_is_told(
    gateway: LiveGateway, png: bytes
) -> None:
    gateway.workers.segmentation.script = lambda request: [detections([detection(0)])]
    gateway.workers.mllm.rounds = [
        [text("dog man"), group("dog", 0), group("man", 4, "[SEG]"), observe()],
        [text("One man; I could not look for dogs."), finish()],
    ]
    await gateway.workers.detection_server.stop()

    chat = (await gateway.http.post("/v1/chat/completions", json=chat_body("What is here?", png))).json()
    body = {"prompt": "What is here?", "image": data_url(png)}
    answer = (await gateway.http.post("/v1/answer", json=body)).json()

    message = chat["choices"][0]["message"]
    calls = {call["tool"]: call for call in message["superlink"]["tool_calls"]}
    assert calls["segmentation"]["status"] == "completed"
    assert len(calls["segmentation"]["phrases"][0]["detections"]) == 1
    assert calls["detection"]["status"] == "failed"
    assert calls["detection"]["error"]["code"] == "decoder_unavailable"
    [observation] = message["superlink"]["observations"]
    assert [(each["phrase"], each["failed"]) for each in observation["groups"]] == [("dog", True), ("man", False)]
    told = gateway.workers.mllm.generate_requests[1].messages[-1].parts[-1].observation
    assert [(each.phrase, each.failed, len(each.objects)) for each in told.groups] == [
        ("dog", True, 0),
        ("man", False, 1),
    ]
    assert message["content"].endswith("I could not look for dogs.")
    [failure] = answer["failures"]
    assert (failure["tool"], failure["phrases"], failure["error"]["status"]) == ("detection", ["dog"], 503)
    assert [each["category"] for each in answer["detections"]] == ["man"]


async def test_who_finds_no_place_gets_429_with_a_delay_and_others_are_answered(png: bytes) -> None:
    settings = OrchestratorSettings(address="127.0.0.1:0", drain_timeout_s=2, queue_budget_s=0.1)
    async with live_gateway(orchestrator=settings) as gateway:
        gateway.workers.detection.script = lambda request: [0.5, *find_one_object_a_group(request)]
        body = {"image": data_url(png), "categories": ["dog"]}

        async def ask() -> tuple[int, dict[str, object], float, str | None]:
            began = time.monotonic()
            response = await gateway.http.post("/v1/detect", json=body, timeout=30)
            return (
                response.status_code,
                response.json(),
                time.monotonic() - began,
                response.headers.get("retry-after"),
            )

        outcomes = await asyncio.gather(*(ask() for _ in range(30)))

    refused = [each for each in outcomes if each[0] != 200]
    assert 0 < len(refused) < 30
    for status, problem, _, retry_after in refused:
        assert (status, problem["code"], problem["service"]) == (429, "overloaded", "orchestrator")
        assert problem["retryable"]
        assert retry_after is not None
        assert int(retry_after) >= 1


@pytest.mark.parametrize("timeout_s", [1.0, 2.0])
async def test_a_gateway_keeps_the_deadline_and_names_the_hop(
    gateway: LiveGateway, png: bytes, timeout_s: float
) -> None:
    gateway.workers.detection.script = lambda request: [asyncio.Event()]
    body = {"image": data_url(png), "categories": ["dog"]}
    began = time.monotonic()
    response = await gateway.http.post(
        "/v1/detect", json=body, headers={"x-request-timeout-s": str(timeout_s)}, timeout=30
    )
    took_s = time.monotonic() - began

    problem = response.json()
    assert (response.status_code, problem["code"], problem["hop"]) == (
        504,
        "deadline_exceeded",
        "orchestrator>detection",
    )
    assert 0.8 * timeout_s < took_s < 1.1 * timeout_s
