import asyncio
import signal
import socket
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from scripted_workers import ADAPTER_VERSION, ScriptedDeployment, embedding_of, image, start

from orchestrator.catalogue import FRESH_FOR_S
from superlink.channels import open_channel
from superlink.errors import SuperlinkError, from_rpc_error
from superlink.v1 import decoder_pb2, orchestrator_pb2, orchestrator_pb2_grpc

Stub = orchestrator_pb2_grpc.OrchestratorStub


async def test_detect_links_and_decodes(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    request = orchestrator_pb2.DetectRequest(
        request_id="fast",
        image=image(),
        phrases=["dog", "小狗"],
        options=decoder_pb2.DetectionOptions(max_detections=3),
    )

    response = await orchestrator.Detect(request, timeout=5)

    assert [entry.group for entry in response.detections.detections] == [0, 1]
    assert response.usage.image_tokens == 16
    [linked] = deployment.mllm.link_requests
    assert (linked.route, list(linked.phrases), linked.image) == ("[DET]", ["dog", "小狗"], image())
    [decoded] = deployment.detection.requests
    assert [each.embedding for each in decoded.groups] == [embedding_of("dog"), embedding_of("小狗")]
    assert (decoded.adapter_version, decoded.image, decoded.detection.max_detections) == (ADAPTER_VERSION, image(), 3)
    assert deployment.mllm.request_ids == deployment.detection.request_ids == ["fast"]
    phases = {(entry.service, entry.phase) for entry in response.timings}
    assert {("mllm", "wall"), ("detection", "wall"), ("wire", "mllm"), ("orchestrator", "own")} <= phases


@pytest.mark.parametrize(
    ("phrases", "with_image", "code"),
    [([], True, "empty_prompt"), ([" "], True, "empty_prompt"), (["dog"], False, "no_image")],
)
async def test_detect_refuses_what_it_cannot_answer(
    orchestrator: Stub, phrases: list[str], with_image: bool, code: str
) -> None:
    request = orchestrator_pb2.DetectRequest(phrases=phrases, image=image() if with_image else None)

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await orchestrator.Detect(request, timeout=5)

    assert from_rpc_error(caught.value, "orchestrator").code == code


async def test_detect_names_the_limit_of_phrases(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.detection.max_groups = 2

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await orchestrator.Detect(orchestrator_pb2.DetectRequest(phrases="abc", image=image()), timeout=5)

    error = from_rpc_error(caught.value, "orchestrator")
    assert error.code == "too_many_phrases"
    assert "2" in error.message


@pytest.mark.faults
async def test_detect_fails_with_its_decoder(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    await deployment.detection_server.stop()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await orchestrator.Detect(orchestrator_pb2.DetectRequest(phrases=["dog"], image=image()), timeout=5)

    error = from_rpc_error(caught.value, "orchestrator")
    assert (error.status, error.service) == (grpc.StatusCode.UNAVAILABLE, "detection")


async def test_an_error_of_a_worker_keeps_its_name(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.mllm.link_error = SuperlinkError(
        "image_truncated", "The file ends early.", status=grpc.StatusCode.INVALID_ARGUMENT
    )

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await orchestrator.Detect(orchestrator_pb2.DetectRequest(phrases=["dog"], image=image()), timeout=5)

    error = from_rpc_error(caught.value, "orchestrator")
    assert (error.code, error.service, error.message) == ("image_truncated", "mllm", "The file ends early.")


async def describe(stub: Stub) -> orchestrator_pb2.DescribeOrchestratorResponse:
    return await stub.Describe(orchestrator_pb2.DescribeOrchestratorRequest(), timeout=5)


async def test_describe_names_the_model_and_the_tools(orchestrator: Stub) -> None:
    description = await describe(orchestrator)

    assert description.mllm.name == "superlink-scripted"
    assert [decoder.name for decoder in description.decoders] == ["detection", "segmentation", "diffusion", "pose"]
    assert {state.name: state.ready for state in description.services} == {
        "mllm": True,
        "detection": True,
        "segmentation": True,
        "diffusion": True,
        "pose": True,
    }


@pytest.mark.faults
async def test_describe_says_who_is_away_and_sees_the_return(
    deployment: ScriptedDeployment, orchestrator: Stub
) -> None:
    await describe(orchestrator)
    await deployment.detection_server.stop()
    await asyncio.sleep(FRESH_FOR_S)

    away = {state.name: state for state in (await describe(orchestrator)).services}
    assert away["mllm"].ready
    assert not away["detection"].ready
    assert "detection" in away["detection"].reason

    async with AsyncExitStack() as stack:
        await start(deployment.detection, "detection", stack, deployment.detection_server.address)
        for _ in range(50):
            if all(state.ready for state in (await describe(orchestrator)).services):
                break
            await asyncio.sleep(0.1)
        response = await orchestrator.Detect(orchestrator_pb2.DetectRequest(phrases=["dog"], image=image()), timeout=5)
        assert len(response.detections.detections) == 1


async def test_a_worker_that_warms_up_is_not_ready(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    await deployment.segmentation_server.set_ready(False)

    states = {state.name: state for state in (await describe(orchestrator)).services}

    assert not states["segmentation"].ready
    assert "starting" in states["segmentation"].reason


async def test_weights_that_do_not_belong_together_are_named(
    deployment: ScriptedDeployment, orchestrator: Stub
) -> None:
    deployment.detection.adapter_version = "adapter-8"

    states = {state.name: state for state in (await describe(orchestrator)).services}

    assert not states["detection"].ready
    assert "adapter-8" in states["detection"].reason
    assert ADAPTER_VERSION in states["detection"].reason


async def test_health_follows_the_standard(deployment: ScriptedDeployment) -> None:
    async with open_channel(deployment.orchestrator.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "superlink.v1.Orchestrator"):
            response = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            assert response.status == health_pb2.HealthCheckResponse.SERVING


def start_process(tmp_path: Path, port: int, metrics_port: int = 0) -> subprocess.Popen[str]:
    worker = {"address": "127.0.0.1:1", "weights": "none"}
    content = {
        "name": "alone",
        "mllm": worker,
        "decoders": {"detection": worker},
        "orchestrator": {"address": f"127.0.0.1:{port}", "metrics_port": metrics_port},
    }
    profile = tmp_path / "alone.yaml"
    profile.write_text(yaml.safe_dump(content), encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "--profile", str(profile)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def test_the_process_serves_metrics_and_ends_in_order_on_sigterm(tmp_path: Path) -> None:
    import httpx

    with socket.socket() as probe, socket.socket() as other:
        probe.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        port, metrics_port = probe.getsockname()[1], other.getsockname()[1]
    with start_process(tmp_path, port, metrics_port) as process:
        try:
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                try:
                    exposition = httpx.get(f"http://127.0.0.1:{metrics_port}/metrics", trust_env=False).text
                    break
                except httpx.TransportError:
                    assert process.poll() is None
                    time.sleep(0.1)
            assert "superlink_orchestrator_rounds" in exposition
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                grpc.channel_ready_future(channel).result(timeout=10)
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
        finally:
            process.kill()


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        port = taken.getsockname()[1]
        with start_process(tmp_path, port) as process:
            assert process.wait(20) == 2
            assert process.stderr is not None
            message = process.stderr.read()
    assert str(port) in message
    assert "orchestrator.address" in message
