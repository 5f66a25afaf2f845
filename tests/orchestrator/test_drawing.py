"""Tools that make images: within answers, and on the fast path."""

import asyncio
from typing import Any

import grpc
import pytest
from scripted_workers import (
    ADAPTER_VERSION,
    ScriptedDeployment,
    detection,
    detections,
    embedding_of,
    find_one_object_a_group,
    finish,
    group,
    image,
    made_images,
    observe,
    progress,
    scripted_deployment,
    text,
    user_message,
)

from superlink.channels import open_channel
from superlink.errors import SuperlinkError, from_rpc_error
from superlink.v1 import decoder_pb2, mllm_pb2, orchestrator_pb2, orchestrator_pb2_grpc, types_pb2

Stub = orchestrator_pb2_grpc.OrchestratorStub


async def ask(stub: Stub, *messages: mllm_pb2.Message, **options: Any) -> list[orchestrator_pb2.AnswerEvent]:
    request = orchestrator_pb2.AnswerRequest(request_id="request-1", messages=messages, **options)
    return [event async for event in stub.Answer(request, timeout=5)]


def of_kind(events: list[orchestrator_pb2.AnswerEvent], kind: str) -> list[Any]:
    return [getattr(event, kind) for event in events if event.WhichOneof("event") == kind]


def answered(words: str, picture: types_pb2.Image) -> mllm_pb2.Message:
    parts = [mllm_pb2.Part(text=words), mllm_pb2.Part(image=picture)]
    return mllm_pb2.Message(role=mllm_pb2.ROLE_ASSISTANT, parts=parts)


async def draw(stub: Stub, **fields: Any) -> list[orchestrator_pb2.DrawEvent]:
    return [event async for event in stub.Draw(orchestrator_pb2.DrawRequest(request_id="r", **fields), timeout=5)]


async def failure_of_draw(stub: Stub, **fields: Any) -> SuperlinkError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await draw(stub, **fields)
    return from_rpc_error(caught.value, "orchestrator")


async def test_an_answer_draws_without_an_image(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.mllm.rounds = [[text("Here is a cat."), group("a cat", 8, "[GEN]"), finish()]]
    deployment.diffusion.script = lambda request: [progress(1, 2), progress(2, 2), made_images(b"one", b"two")]
    options = decoder_pb2.DiffusionOptions(steps=2, seed=5, count=2)

    events = await ask(orchestrator, user_message("Draw a cat"), diffusion=options)

    [result] = of_kind(events, "tool_result")
    assert [each.encoded for each in result.images.images] == [b"one", b"two"]
    assert [(each.id, each.progress.done) for each in of_kind(events, "tool_progress")] == [
        ("call_0", 1),
        ("call_0", 2),
    ]
    [request] = deployment.diffusion.requests
    assert request.diffusion == options
    assert (request.adapter_version, request.groups[0].embedding) == (ADAPTER_VERSION, embedding_of("a cat"))
    assert not request.HasField("image")


async def test_an_edit_gets_the_image_and_a_drawing_beside_it_does_not(
    deployment: ScriptedDeployment, orchestrator: Stub
) -> None:
    deployment.mllm.rounds = [[group("make it blue", None, "[EDIT]"), group("a cat", None, "[GEN]"), finish()]]

    events = await ask(orchestrator, user_message("Edit this, and draw a cat", image()))

    assert len(of_kind(events, "tool_result")) == 2
    by_route = {request.groups[0].route: request for request in deployment.diffusion.requests}
    assert by_route["[EDIT]"].image == image()
    assert not by_route["[GEN]"].HasField("image")
    # Nobody encodes an image ahead that only an edit might read.
    assert deployment.diffusion.prefetches == []


async def test_an_edit_without_an_image_fails_beside_the_drawing(
    deployment: ScriptedDeployment, orchestrator: Stub
) -> None:
    deployment.mllm.rounds = [[group("a cat", None, "[GEN]"), group("make it blue", None, "[EDIT]"), finish()]]

    events = await ask(orchestrator, user_message("Draw a cat. Make it blue."))

    [failure] = of_kind(events, "tool_failure")
    assert (failure.id, failure.error.code) == ("call_1", "no_image")
    assert "[EDIT]" in failure.error.message
    assert [result.id for result in of_kind(events, "tool_result")] == ["call_0"]


async def test_the_next_turn_is_about_the_image_that_was_made(
    deployment: ScriptedDeployment, orchestrator: Stub
) -> None:
    deployment.mllm.rounds = [[group("remove the second one", None, "[EDIT]"), group("dog"), finish()]]
    shown, edited = image(b"shown"), image(b"edited")

    await ask(
        orchestrator,
        user_message("Make the dogs blue", shown),
        answered("Done.", edited),
        user_message("Now remove the second one and find the dog"),
    )

    assert deployment.diffusion.requests[0].image == edited
    assert deployment.detection.requests[0].image == edited
    read = deployment.mllm.generate_requests[0].messages
    # The model reads images where users show them.
    assert [part.WhichOneof("part") for part in read[1].parts] == ["text"]
    assert [part.WhichOneof("part") for part in read[2].parts] == ["image", "text"]
    assert read[2].parts[0].image == edited


async def test_a_newer_image_of_the_user_comes_after_one_that_was_made(
    deployment: ScriptedDeployment, orchestrator: Stub
) -> None:
    deployment.mllm.rounds = [[group("dog"), finish()]]
    newer = image(b"newer")

    await ask(orchestrator, user_message("Draw"), answered("Done.", image(b"made")), user_message("And here?", newer))

    assert deployment.detection.requests[0].image == newer


async def test_the_model_does_not_read_images_that_were_made(
    deployment: ScriptedDeployment, orchestrator: Stub
) -> None:
    deployment.mllm.rounds = [[text("A cat"), group("a cat", 0, "[GEN]"), observe()]]

    events = await ask(orchestrator, user_message("Draw a cat"))

    assert of_kind(events, "observation") == []
    assert len(deployment.mllm.generate_requests) == 1
    assert events[-1].finish.reason == mllm_pb2.FINISH_REASON_STOP


async def test_what_was_found_beside_a_drawing_is_observed(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.mllm.rounds = [
        [group("a cat", None, "[GEN]"), group("dog"), observe()],
        [text("One dog."), finish()],
    ]
    deployment.detection.script = lambda request: [detections([detection(0)])]

    events = await ask(orchestrator, user_message("Draw a cat and count the dogs", image()))

    [observation] = of_kind(events, "observation")
    assert [entry.phrase for entry in observation.groups] == ["dog"]


async def test_the_model_is_told_that_a_drawing_failed(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    broken = SuperlinkError("internal", "It broke.", status=grpc.StatusCode.INTERNAL)
    deployment.diffusion.script = lambda request: [progress(1, 2), broken]
    deployment.mllm.rounds = [[group("a cat", None, "[GEN]"), observe()], [text("I could not draw it."), finish()]]

    events = await ask(orchestrator, user_message("Draw a cat"))

    [observation] = of_kind(events, "observation")
    assert observation.groups[0].failed


async def test_three_tools_work_side_by_side(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    workers = (deployment.detection, deployment.segmentation, deployment.diffusion)

    def once_all_have_begun(*results: decoder_pb2.DecodeEvent) -> Any:
        return lambda request: [*(worker.started for worker in workers), *results]

    found = detections([detection(0)])
    deployment.detection.script = once_all_have_begun(found)
    deployment.segmentation.script = once_all_have_begun(found)
    deployment.diffusion.script = once_all_have_begun(made_images(b"a cat"))
    deployment.mllm.rounds = [[group("dog"), group("tree", None, "[SEG]"), group("a cat", None, "[GEN]"), finish()]]

    # None of them answers before all were called: one after the other would never end.
    events = await ask(orchestrator, user_message("Find the dog, mask the tree, draw a cat", image()))

    assert {result.id for result in of_kind(events, "tool_result")} == {"call_0", "call_1", "call_2"}


async def test_draw_links_the_prompt_and_streams_progress(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.diffusion.script = lambda request: [progress(1, 2), progress(2, 2), made_images(b"a cat")]
    options = decoder_pb2.DiffusionOptions(steps=2, seed=7)

    *steps, last = await draw(orchestrator, prompt="a cat", options=options)

    assert [(event.progress.done, event.progress.total) for event in steps] == [(1, 2), (2, 2)]
    [made] = last.response.images.images
    assert made.encoded == b"a cat"
    [linked] = deployment.mllm.link_requests
    assert (linked.route, list(linked.phrases), linked.HasField("image")) == ("[GEN]", ["a cat"], False)
    [decoded] = deployment.diffusion.requests
    assert (decoded.diffusion, decoded.HasField("image")) == (options, False)
    assert decoded.groups[0].embedding == embedding_of("a cat")
    assert {("mllm", "wall"), ("diffusion", "wall")} <= {(each.service, each.phase) for each in last.response.timings}


async def test_draw_with_an_image_edits_what_is_marked(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    region = types_pb2.Region(box=types_pb2.Box(x1=1, y1=2, x2=3, y2=4))

    await draw(orchestrator, prompt="make it blue", image=image(), region=region)

    [linked] = deployment.mllm.link_requests
    assert (linked.route, linked.image) == ("[EDIT]", image())
    [decoded] = deployment.diffusion.requests
    assert (decoded.image, decoded.groups[0].route, decoded.groups[0].region) == (image(), "[EDIT]", region)


async def test_draw_refuses_what_it_cannot_answer(orchestrator: Stub) -> None:
    assert (await failure_of_draw(orchestrator, prompt=" ")).code == "empty_prompt"
    marked = types_pb2.Region(box=types_pb2.Box(x2=3, y2=4))
    assert (await failure_of_draw(orchestrator, prompt="blue", region=marked)).code == "no_image"


async def test_a_deployment_without_the_tool_says_so() -> None:
    async with (
        scripted_deployment(without=["diffusion"]) as deployment,
        open_channel(deployment.orchestrator.address) as channel,
    ):
        stub = orchestrator_pb2_grpc.OrchestratorStub(channel)
        deployment.mllm.rounds = [[group("a cat", None, "[GEN]"), finish()]]

        error = await failure_of_draw(stub, prompt="a cat")
        events = await ask(stub, user_message("Draw a cat"))

    assert (error.code, error.status) == ("unknown_tool", grpc.StatusCode.UNIMPLEMENTED)
    assert "diffusion" in error.message
    assert of_kind(events, "tool_failure")[0].error.code == "unknown_tool"


@pytest.mark.faults
async def test_leaving_a_drawing_cancels_the_tool(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.diffusion.script = lambda request: [progress(1, 9), asyncio.Event()]
    call = orchestrator.Draw(orchestrator_pb2.DrawRequest(prompt="a cat"), timeout=30)
    await call.read()

    call.cancel()

    await asyncio.wait_for(deployment.diffusion.cancelled.wait(), 2)


@pytest.mark.faults
async def test_an_error_of_the_tool_keeps_its_name(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    full = SuperlinkError("queue_full", "Full.", status=grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_ms=700)
    deployment.diffusion.script = lambda request: [full]

    error = await failure_of_draw(orchestrator, prompt="a cat")

    assert (error.code, error.service, error.retry_after_ms) == ("queue_full", "diffusion", 700)
    deployment.diffusion.script = find_one_object_a_group
    assert (await failure_of_draw(orchestrator, prompt="a cat")).code == "no_result"
