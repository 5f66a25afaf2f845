"""The image goes ahead of the tool call, and nobody notices when it does not."""

import grpc
from scripted_workers import (
    ADAPTER_VERSION,
    ScriptedDeployment,
    finish,
    group,
    image,
    scripted_deployment,
    text,
    user_message,
)

from superlink.channels import open_channel
from superlink.errors import SuperlinkError
from superlink.profile import OrchestratorSettings
from superlink.v1 import orchestrator_pb2, orchestrator_pb2_grpc

Stub = orchestrator_pb2_grpc.OrchestratorStub


async def ask(stub: Stub, with_image: bool = True) -> list[str]:
    messages = [user_message("Where is the dog?", image() if with_image else None)]
    request = orchestrator_pb2.AnswerRequest(request_id="r-1", messages=messages)
    return [str(event.WhichOneof("event")) async for event in stub.Answer(request, timeout=5)]


async def test_the_image_is_there_before_the_tool_call(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    await orchestrator.Describe(orchestrator_pb2.DescribeOrchestratorRequest(), timeout=5)
    deployment.mllm.rounds = [[text("Hm, "), 0.2, text("dog"), group("dog", 4), finish()]]

    assert "tool_result" in await ask(orchestrator)

    [prefetch] = deployment.detection.prefetches
    assert (prefetch.image, prefetch.adapter_version, prefetch.request_id) == (image(), ADAPTER_VERSION, "r-1")
    assert len(deployment.segmentation.prefetches) == 1


async def test_the_fast_path_prefetches_for_its_decoder_alone(
    deployment: ScriptedDeployment, orchestrator: Stub
) -> None:
    response = await orchestrator.Detect(orchestrator_pb2.DetectRequest(phrases=["dog"], image=image()), timeout=5)

    assert len(response.detections.detections) == 1
    assert len(deployment.detection.prefetches) <= 1
    assert not deployment.segmentation.prefetches


async def test_a_failing_prefetch_changes_nothing(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.detection.prefetch_error = SuperlinkError("internal", "No.", status=grpc.StatusCode.INTERNAL)
    deployment.mllm.rounds = [[0.2, text("dog"), group("dog", 0), finish()]]

    events = await ask(orchestrator)

    assert "tool_result" in events
    assert "tool_failure" not in events
    assert deployment.detection.prefetches


async def test_without_an_image_nothing_is_sent_ahead(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    await ask(orchestrator, with_image=False)

    assert not deployment.detection.prefetches


async def test_prefetching_can_be_turned_off() -> None:
    settings = OrchestratorSettings(address="127.0.0.1:0", drain_timeout_s=2, prefetch=False)
    async with (
        scripted_deployment(orchestrator_settings=settings) as deployment,
        open_channel(deployment.orchestrator.address) as channel,
    ):
        deployment.mllm.rounds = [[0.2, text("dog"), group("dog", 0), finish()]]

        assert "tool_result" in await ask(Stub(channel))
        assert not deployment.detection.prefetches
