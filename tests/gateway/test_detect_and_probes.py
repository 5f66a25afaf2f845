import asyncio
import signal
import socket
import time
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from gateway_process import alone, free_port, gateway_process
from live_gateway import LiveGateway, live_gateway
from request_bodies import data_url, encode_picture
from scripted_workers import detection, detections

from orchestrator.catalogue import FRESH_FOR_S
from superlink.errors import SuperlinkError
from superlink.v1 import types_pb2


async def test_detect_answers_in_coco_boxes(gateway: LiveGateway, png: bytes) -> None:
    gateway.workers.detection.script = lambda request: [
        detections([detection(0, 0.5), detection(1, 0.75, (0, 0, 10.5, 20))], 3, absent=[2])
    ]

    response = await gateway.http.post(
        "/v1/detect",
        files={"image": ("scene.png", png, "image/png")},
        data={"categories": ["dog", "red apple", "cat"], "score_threshold": "0.4", "max_detections": "7"},
    )

    assert response.status_code == 200
    answer = response.json()
    assert answer["model"] == "superlink-scripted"
    assert answer["image"] == {"width": 200, "height": 100}
    assert [(each["phrase"], each["found"]) for each in answer["categories"]] == [
        ("dog", True),
        ("red apple", True),
        ("cat", False),
    ]
    assert answer["detections"] == [
        {"category": "red apple", "category_index": 1, "bbox": [0.0, 0.0, 10.5, 20.0], "score": 0.75},
        {"category": "dog", "category_index": 0, "bbox": [20.0, 10.0, 40.0, 40.0], "score": 0.5},
    ]
    assert answer["usage"]["prompt_tokens_details"] == {"image_tokens": 16}
    assert ("gateway", "total") in {(entry["service"], entry["phase"]) for entry in answer["timings"]}
    assert "detection_wall;dur=" in response.headers["server-timing"]
    [request] = gateway.workers.detection.requests
    assert request.detection.score_threshold == pytest.approx(0.4)
    assert request.detection.max_detections == 7
    assert request.image.encoded == png


async def test_segment_asks_the_segmentation_tool_and_answers_with_masks(gateway: LiveGateway, png: bytes) -> None:
    found = detection(0, 0.75, (0, 0, 10, 20))
    found.mask.CopyFrom(types_pb2.Mask(height=100, width=200, counts=b"0d0"))
    gateway.workers.segmentation.script = lambda request: [detections([found], 1)]

    response = await gateway.http.post(
        "/v1/segment", files={"image": ("scene.png", png, "image/png")}, data={"phrase": "dog", "semantic": "true"}
    )

    assert response.status_code == 200
    assert response.json()["detections"] == [
        {
            "category": "dog",
            "category_index": 0,
            "bbox": [0.0, 0.0, 10.0, 20.0],
            "score": 0.75,
            "segmentation": {"size": [100, 200], "counts": "0d0"},
        }
    ]
    assert gateway.workers.mllm.link_requests[-1].route == "[SEG]"
    [request] = gateway.workers.segmentation.requests
    assert request.detection.semantic
    assert not gateway.workers.detection.requests


async def test_pose_asks_for_the_keypoints_that_the_tool_knows_of_the_thing(gateway: LiveGateway, png: bytes) -> None:
    response = await gateway.http.post("/v1/pose", files={"image": png}, data={"phrase": "the leftmost person"})

    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["categories"][0]["bones"] == [["nose", "left wrist"], ["nose", "right wrist"]]
    assert answer["detections"] == [
        {
            "category": "the leftmost person",
            "category_index": 0,
            "bbox": [20.0, 10.0, 40.0, 40.0],
            "score": 0.9,
            "keypoints": [
                {"name": "nose", "x": 0.0, "y": 5.0, "score": 0.8},
                {"name": "left wrist", "x": 10.0, "y": 5.0, "score": 0.8},
                {"name": "right wrist", "x": 20.0, "y": 5.0, "score": 0.8},
            ],
        }
    ]


async def test_pose_finds_the_keypoints_that_are_named_in_any_kind_of_body(gateway: LiveGateway, png: bytes) -> None:
    attempts: list[dict[str, Any]] = [
        {"files": {"image": png}, "data": {"categories": "robot", "keypoints": ["left wrist", "nose"]}},
        {"files": {"image": png}, "data": {"categories": "robot", "keypoints": "left wrist，nose"}},
        {"json": {"image": data_url(png), "categories": ["robot"], "keypoints": ["left wrist", "nose"]}},
    ]

    for attempt in attempts:
        response = await gateway.http.post("/v1/pose", **attempt)
        assert response.status_code == 200, response.text
        [found] = response.json()["detections"]
        assert [keypoint["name"] for keypoint in found["keypoints"]] == ["left wrist", "nose"]
        assert response.json()["categories"][0]["bones"] == []


async def test_a_thing_whose_keypoints_nobody_knows_is_a_clear_problem(gateway: LiveGateway, png: bytes) -> None:
    response = await gateway.http.post("/v1/pose", files={"image": png}, data={"categories": "robot"})

    assert response.status_code == 400
    assert response.json()["code"] == "unknown_skeleton"
    assert "'robot'" in response.json()["detail"]
    assert "person" in response.json()["detail"]


async def test_keypoints_are_limited_like_phrases(gateway: LiveGateway, png: bytes) -> None:
    names = ",".join(f"place {number}" for number in range(11))
    response = await gateway.http.post(
        "/v1/pose", files={"image": png}, data={"categories": "person", "keypoints": names}
    )

    assert response.status_code == 400
    assert "11 keypoints; the limit is 10" in response.json()["detail"]


async def test_detect_has_no_semantic_option(gateway: LiveGateway, png: bytes) -> None:
    response = await gateway.http.post("/v1/detect", files={"image": png}, data={"phrase": "dog", "semantic": "true"})

    assert response.status_code == 400
    assert "semantic" in response.json()["detail"]


async def test_every_kind_of_body_names_the_same_phrases(gateway: LiveGateway, png: bytes) -> None:
    jpeg = encode_picture("JPEG")
    attempts: list[dict[str, Any]] = [
        {"files": {"image": png}, "data": {"categories": "dog, 小猫"}},
        {"files": {"image": png}, "data": {"categories": ["dog", "小猫"]}},
        {"json": {"image": data_url(png), "categories": ["dog", "小猫"]}},
        {"json": {"image": data_url(png), "categories": "dog，小猫"}},
        {"content": jpeg, "headers": {"content-type": "image/jpeg"}, "params": {"categories": ["dog", "小猫"]}},
        {"content": jpeg, "headers": {"content-type": "image/jpeg"}, "params": {"categories": "dog、小猫"}},
    ]

    for attempt in attempts:
        response = await gateway.http.post("/v1/detect", **attempt)
        assert response.status_code == 200, response.text
        assert list(gateway.workers.mllm.link_requests[-1].phrases) == ["dog", "小猫"]


async def test_a_phrase_is_taken_as_it_is(gateway: LiveGateway, png: bytes) -> None:
    await gateway.http.post("/v1/detect", files={"image": png}, data={"phrase": "the dog, not the cat"})

    assert list(gateway.workers.mllm.link_requests[0].phrases) == ["the dog, not the cat"]


@pytest.mark.faults
async def test_a_client_that_leaves_cancels_detection(gateway: LiveGateway, png: bytes) -> None:
    gateway.workers.detection.script = lambda request: [asyncio.Event()]

    with pytest.raises(httpx.ReadTimeout):
        await gateway.http.post("/v1/detect", files={"image": png}, data={"phrase": "dog"}, timeout=0.3)

    await asyncio.wait_for(gateway.workers.detection.cancelled.wait(), 2)


@pytest.mark.faults
async def test_a_dead_detector_is_a_problem_that_names_it(gateway: LiveGateway, png: bytes) -> None:
    await gateway.workers.detection_server.stop()

    response = await gateway.http.post("/v1/detect", files={"image": png}, data={"phrase": "dog"})

    assert response.status_code == 503
    assert response.json()["service"] == "detection"
    assert response.headers["retry-after"] == "1"


async def test_probes_say_alive_and_ready(gateway: LiveGateway) -> None:
    for path in ("/livez", "/healthz"):
        assert (await gateway.http.get(path)).json() == {"status": "alive"}
    response = await gateway.http.get("/readyz")
    assert response.status_code == 200
    assert [service["name"] for service in response.json()["services"]] == [
        "orchestrator",
        "mllm",
        "detection",
        "segmentation",
        "diffusion",
        "pose",
    ]


@pytest.mark.faults
async def test_readiness_names_the_service_that_is_away(gateway: LiveGateway) -> None:
    await gateway.workers.detection_server.stop()

    response = await gateway.http.get("/readyz")

    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    problem = response.json()
    assert (problem["code"], problem["service"], problem["retryable"]) == ("not_ready", "detection", True)
    assert {service["name"]: service["ready"] for service in problem["services"]} == {
        "orchestrator": True,
        "mllm": True,
        "detection": False,
        "segmentation": True,
        "diffusion": True,
        "pose": True,
    }
    assert (await gateway.http.get("/healthz")).status_code == 200


@pytest.mark.faults
async def test_readiness_without_an_orchestrator(gateway: LiveGateway) -> None:
    await gateway.workers.orchestrator.stop()
    await asyncio.sleep(FRESH_FOR_S)

    response = await gateway.http.get("/readyz")

    assert (response.status_code, response.json()["service"]) == (503, "orchestrator")


@pytest.mark.faults
async def test_a_gateway_has_started_once_the_orchestrator_has_answered_and_not_before(gateway: LiveGateway) -> None:
    assert (await gateway.http.get("/startupz")).json() == {"status": "started"}
    await gateway.workers.orchestrator.stop()
    # What becomes of it later is for /readyz to say.
    assert (await gateway.http.get("/startupz")).status_code == 200
    async with live_gateway() as other:
        await other.workers.orchestrator.stop()
        response = await other.http.get("/startupz")
        problem = response.json()
        assert (response.status_code, problem["code"], problem["service"]) == (503, "not_ready", "orchestrator")
        assert problem["hop"] == "gateway>orchestrator"
        assert response.headers["retry-after"] == "1"


async def test_models_tell_what_the_deployment_can_do(gateway: LiveGateway) -> None:
    [model] = (await gateway.http.get("/v1/models")).json()["data"]
    assert (model["id"], model["object"]) == ("superlink-scripted", "model")
    assert [tool["name"] for tool in model["superlink"]["tools"]] == ["detection", "segmentation", "diffusion", "pose"]
    skeletons = [tool.get("skeletons") for tool in model["superlink"]["tools"]]
    assert skeletons[:3] == [None, None, None]
    assert skeletons[3][0]["names"] == ["person", "people"]
    assert skeletons[3][0]["bones"] == [["nose", "left wrist"], ["nose", "right wrist"]]
    assert (await gateway.http.get("/v1/models/superlink-scripted")).json() == model
    assert (await gateway.http.get("/v1/models/other")).status_code == 404


async def test_metrics_count_by_path_template(gateway: LiveGateway) -> None:
    await gateway.http.get("/v1/models/superlink-scripted")
    await gateway.http.get("/made/up/path")

    exposition = (await gateway.http.get("/metrics")).text

    assert 'path="/v1/models/{model}",status="200"' in exposition
    assert "made" not in exposition


def test_the_process_ends_in_order_on_sigterm(tmp_path: Path) -> None:
    port = free_port()
    with gateway_process(tmp_path, port, alone()) as process:
        try:
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                try:
                    assert httpx.get(f"http://127.0.0.1:{port}/livez", trust_env=False).status_code == 200
                    break
                except httpx.TransportError:
                    assert process.poll() is None
                    time.sleep(0.1)
            assert httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False, timeout=10).status_code == 503
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        finally:
            process.kill()


def test_a_port_in_use_is_named_with_the_way_out(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        with gateway_process(tmp_path, port, alone()) as process:
            assert process.wait(20) == 2
            assert process.stderr is not None
            message = process.stderr.read()
    assert str(port) in message
    assert "--port" in message
    assert "gateway.port" in message


@pytest.mark.faults
async def test_retries_do_not_multiply_over_the_hops(gateway: LiveGateway, png: bytes) -> None:
    gateway.workers.mllm.link_error = SuperlinkError("draining", "Going.", status=grpc.StatusCode.UNAVAILABLE)

    response = await gateway.http.post("/v1/detect", files={"image": png}, data={"phrase": "dog"})

    assert (response.status_code, response.json()["code"]) == (503, "draining")
    # The orchestrator's channel tries four times; the gateway's does not repeat that.
    assert 1 < len(gateway.workers.mllm.link_requests) <= 4
