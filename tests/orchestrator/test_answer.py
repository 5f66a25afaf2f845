import asyncio
from typing import Any

import grpc
import pytest
from scripted_workers import (
    ADAPTER_VERSION,
    ScriptedDeployment,
    Step,
    detection,
    detections,
    embedding_of,
    find_one_object_a_group,
    finish,
    group,
    image,
    observe,
    text,
    usage,
    user_message,
)

from superlink.channels import request_metadata
from superlink.errors import SuperlinkError, from_rpc_error
from superlink.v1 import decoder_pb2, mllm_pb2, orchestrator_pb2, orchestrator_pb2_grpc

Stub = orchestrator_pb2_grpc.OrchestratorStub
Events = list[orchestrator_pb2.AnswerEvent]


def question(**options: Any) -> orchestrator_pb2.AnswerRequest:
    return orchestrator_pb2.AnswerRequest(
        request_id="request-1", messages=[user_message("Where is the dog?", image())], **options
    )


async def ask(stub: Stub, request: orchestrator_pb2.AnswerRequest | None = None, timeout_s: float = 5) -> Events:
    return [event async for event in stub.Answer(request or question(), timeout=timeout_s)]


def kinds(events: Events) -> list[str | None]:
    return [event.WhichOneof("event") for event in events]


def words(events: Events) -> str:
    return "".join(event.text_delta.text for event in events)


def of_kind(events: Events, kind: str) -> list[Any]:
    return [getattr(event, kind) for event in events if event.WhichOneof("event") == kind]


async def test_text_and_boxes_come_back(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.mllm.rounds = [[text("Here is the dog"), group("dog", 12), text("."), usage(30, 16, 9), finish()]]

    events = await ask(orchestrator)

    assert words(events) == "Here is the dog."
    [call] = of_kind(events, "tool_call")
    assert (call.id, call.decoder, [each.phrase for each in call.groups]) == ("call_0", "detection", ["dog"])
    assert not call.groups[0].HasField("embedding")
    [result] = of_kind(events, "tool_result")
    assert result.id == "call_0"
    assert result.detections.detections[0].box.x2 == 60
    [total] = of_kind(events, "usage")
    assert (total.prompt_tokens, total.image_tokens, total.completion_tokens) == (30, 16, 9)
    assert kinds(events)[-2:] == ["usage", "finish"]


async def test_the_decoder_gets_what_the_model_made(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.mllm.rounds = [[text("dog"), group("dog", 0), finish()]]
    options = decoder_pb2.DetectionOptions(score_threshold=0.25, max_detections=7)

    await ask(orchestrator, question(detection=options))

    [request] = deployment.detection.requests
    assert request.image == image()
    assert request.groups[0].embedding == embedding_of("dog")
    assert request.adapter_version == ADAPTER_VERSION
    assert request.input_mode == decoder_pb2.INPUT_MODE_LINK
    assert request.detection == options


async def test_the_request_id_travels_in_field_and_metadata(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.mllm.rounds = [[text("dog"), group("dog", 0), finish()]]
    request = question()
    request.request_id = ""

    call = orchestrator.Answer(request, timeout=5, metadata=request_metadata("from-metadata"))
    async for _ in call:
        pass

    assert deployment.mllm.request_ids == ["from-metadata"]
    assert deployment.mllm.generate_requests[0].request_id == "from-metadata"
    assert deployment.detection.request_ids == ["from-metadata"]
    assert deployment.detection.requests[0].request_id == "from-metadata"


async def test_text_goes_on_while_a_tool_works(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    tool_may_answer = asyncio.Event()
    deployment.detection.script = lambda request: [tool_may_answer, *find_one_object_a_group(request)]
    deployment.mllm.rounds = [
        [text("A dog"), group("dog", 2), text(" sits"), group("sits", 6, "[SEG]"), text(" still."), finish()]
    ]
    events: Events = []

    async for event in orchestrator.Answer(question(), timeout=5):
        events.append(event)
        if event.text_delta.text == " still.":
            await asyncio.wait_for(deployment.detection.started.wait(), 2)
            tool_may_answer.set()

    order = kinds(events)
    assert order.index("tool_call") < order.index("tool_result")
    assert [call.decoder for call in of_kind(events, "tool_call")] == ["detection", "segmentation"]
    detection_result = next(index for index, event in enumerate(events) if event.tool_result.id == "call_0")
    assert words(events[:detection_result]) == "A dog sits still."


async def test_consecutive_groups_of_one_decoder_are_one_call(
    deployment: ScriptedDeployment, orchestrator: Stub
) -> None:
    deployment.mllm.rounds = [
        [
            text("dog, cat, man, owl"),
            group("dog", 0),
            group("cat", 5),
            group("man", 10, "[SEG]"),
            group("owl", 15),
            finish(),
        ]
    ]

    events = await ask(orchestrator)

    calls = of_kind(events, "tool_call")
    assert [[each.phrase for each in call.groups] for call in calls] == [["dog", "cat"], ["man"], ["owl"]]
    assert [call.id for call in calls] == ["call_0", "call_1", "call_2"]
    assert {result.id for result in of_kind(events, "tool_result")} == {"call_0", "call_1", "call_2"}


async def test_a_call_never_exceeds_what_its_decoder_takes(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.detection.max_groups = 2
    deployment.mllm.rounds = [[*(group(phrase) for phrase in ("a", "b", "c", "d", "e")), finish()]]

    events = await ask(orchestrator)

    assert [len(call.groups) for call in of_kind(events, "tool_call")] == [2, 2, 1]


async def test_the_model_goes_on_from_an_observation(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    found = [detection(0, 0.6, (0, 0, 100, 50)), detection(0, 0.9, (50, 25, 200, 100))]
    deployment.detection.script = lambda request: [detections(found, 2, absent=[1])]
    deployment.mllm.rounds = [
        [text("I look for dog"), group("dog", 11), text(" and cat"), group("cat", 19), usage(9, 4, 3), observe()],
        [text("There are 2 dogs and no cat."), usage(20, 4, 8), finish()],
    ]

    events = await ask(orchestrator)

    assert words(events) == "I look for dog and cat\nThere are 2 dogs and no cat."
    order = kinds(events)
    assert order.index("tool_result") < order.index("observation") < len(order) - 3
    second = deployment.mllm.generate_requests[1]
    assert second.messages[0] == question().messages[0]
    assert second.messages[1].role == mllm_pb2.ROLE_ASSISTANT
    parts = second.messages[1].parts
    assert [part.WhichOneof("part") for part in parts] == [
        "text",
        "routed_phrase",
        "text",
        "routed_phrase",
        "observation",
    ]
    assert (parts[0].text, parts[2].text) == ("I look for ", " and ")
    assert (parts[1].routed_phrase.route, parts[1].routed_phrase.phrase) == ("[DET]", "dog")
    dogs, cats = parts[4].observation.groups
    assert [(each.x1, each.y1, each.x2, each.y2) for each in dogs.objects] == [
        (250, 250, 1000, 1000),
        (0, 0, 500, 500),
    ]
    assert (dogs.phrase, cats.phrase, len(cats.objects)) == ("dog", "cat", 0)
    [total] = of_kind(events, "usage")
    assert (total.prompt_tokens, total.completion_tokens) == (29, 11)


async def test_a_low_threshold_shows_weak_detections_but_the_model_does_not_count_them(
    deployment: ScriptedDeployment, orchestrator: Stub
) -> None:
    deployment.detection.script = lambda request: [detections([detection(0, 0.9), detection(0, 0.1)])]
    deployment.mllm.rounds = [[group("dog"), observe()], [text("One."), finish()]]

    events = await ask(orchestrator, question(detection=decoder_pb2.DetectionOptions(score_threshold=0.0)))

    [result] = of_kind(events, "tool_result")
    assert len(result.detections.detections) == 2
    [observation] = of_kind(events, "observation")
    assert len(observation.groups[0].objects) == 1


async def test_rounds_are_bounded(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    endless: list[Step] = [text("again dog"), group("dog", 6), observe()]
    deployment.mllm.rounds = [endless] * 9

    events = await ask(orchestrator)
    assert len(of_kind(events, "observation")) == 2
    assert len(deployment.mllm.generate_requests) == 3
    assert events[-1].finish.reason == mllm_pb2.FINISH_REASON_OBSERVE

    events = await ask(orchestrator, question(max_rounds=0))
    assert len(of_kind(events, "observation")) == 0
    assert len(of_kind(events, "tool_result")) == 1


async def test_spans_count_code_points_over_all_rounds(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.mllm.rounds = [
        [text("这里有"), text("小狗"), group("小狗", 3), text("🙂"), observe()],
        [text("还有小猫"), group("小猫", 2), text("。"), finish()],
    ]

    events = await ask(orchestrator)

    answer = words(events)
    assert answer == "这里有小狗🙂\n还有小猫。"
    for call in of_kind(events, "tool_call"):
        for each in call.groups:
            assert answer[each.span.start : each.span.end] == each.phrase


async def test_a_failing_decoder_leaves_the_rest_standing(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    full = SuperlinkError(
        "queue_full", "The queue is full.", status=grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_ms=700
    )
    deployment.detection.script = lambda request: [full]
    deployment.mllm.rounds = [[text("dog man"), group("dog", 0), group("man", 4, "[SEG]"), finish()]]

    events = await ask(orchestrator)

    [failure] = of_kind(events, "tool_failure")
    assert (failure.id, failure.error.code, failure.error.service) == ("call_0", "queue_full", "detection")
    assert (failure.error.retryable, failure.error.retry_after_ms) == (True, 700)
    assert failure.error.request_id == "request-1"
    assert [result.id for result in of_kind(events, "tool_result")] == ["call_1"]
    assert events[-1].finish.reason == mllm_pb2.FINISH_REASON_STOP


async def test_the_model_is_told_that_a_tool_failed(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    await deployment.detection_server.stop()
    deployment.mllm.rounds = [[text("dog"), group("dog", 0), observe()], [text("I could not look."), finish()]]

    events = await ask(orchestrator)

    [failure] = of_kind(events, "tool_failure")
    assert (failure.error.code, failure.error.service) == ("decoder_unavailable", "detection")
    [observation] = of_kind(events, "observation")
    assert observation.groups[0].failed
    assert deployment.mllm.generate_requests[1].messages[-1].parts[-1].observation == observation
    assert words(events).endswith("I could not look.")


@pytest.mark.faults
async def test_text_arrives_when_a_decoder_dies_at_work(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.detection.script = lambda request: [asyncio.Event()]
    deployment.mllm.rounds = [[text("dog"), group("dog", 0), text("."), finish()]]
    asking = asyncio.create_task(ask(orchestrator))
    await deployment.detection.started.wait()

    await deployment.detection_server.stop()

    events = await asking
    assert words(events) == "dog."
    [failure] = of_kind(events, "tool_failure")
    assert failure.error.service == "detection"
    assert failure.error.retryable
    assert events[-1].HasField("finish")


@pytest.mark.faults
async def test_a_slow_decoder_fails_alone_before_the_deadline(
    deployment: ScriptedDeployment, orchestrator: Stub
) -> None:
    deployment.detection.script = lambda request: [asyncio.Event()]
    deployment.mllm.rounds = [[text("dog"), group("dog", 0), finish()]]

    events = await ask(orchestrator, timeout_s=1)

    [failure] = of_kind(events, "tool_failure")
    assert (failure.error.code, failure.error.service) == ("deadline_exceeded", "detection")
    assert events[-1].HasField("finish")
    await asyncio.wait_for(deployment.detection.cancelled.wait(), 2)


@pytest.mark.faults
async def test_a_slow_model_is_an_error(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.mllm.rounds = [[text("dog"), asyncio.Event()]]

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(orchestrator, timeout_s=1)

    error = from_rpc_error(caught.value, "orchestrator")
    assert (error.code, error.service) == ("deadline_exceeded", "mllm")
    await asyncio.wait_for(deployment.mllm.cancelled.wait(), 2)


@pytest.mark.faults
async def test_cancelling_reaches_model_and_tools(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.detection.script = lambda request: [asyncio.Event()]
    deployment.mllm.rounds = [[text("dog"), group("dog", 0), group("man", None, "[SEG]"), asyncio.Event()]]
    call = orchestrator.Answer(question(), timeout=30)
    await call.read()
    await asyncio.wait_for(deployment.detection.started.wait(), 2)

    call.cancel()

    await asyncio.wait_for(deployment.mllm.cancelled.wait(), 2)
    await asyncio.wait_for(deployment.detection.cancelled.wait(), 2)


@pytest.mark.faults
async def test_a_failing_model_cancels_its_tools(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    broken = SuperlinkError("internal", "It broke.", status=grpc.StatusCode.INTERNAL)
    deployment.detection.script = lambda request: [asyncio.Event()]
    started = deployment.detection.started
    deployment.mllm.rounds = [[text("dog"), group("dog", 0), group("man", None, "[SEG]"), started, broken]]

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(orchestrator)

    assert from_rpc_error(caught.value, "orchestrator").service == "mllm"
    await asyncio.wait_for(deployment.detection.cancelled.wait(), 2)


@pytest.mark.faults
async def test_a_dead_model_is_an_error(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    await deployment.mllm_server.stop()

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(orchestrator)

    error = from_rpc_error(caught.value, "orchestrator")
    assert (error.status, error.service) == (grpc.StatusCode.UNAVAILABLE, "mllm")


async def test_an_error_of_the_model_passes_through(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    too_long = SuperlinkError("prompt_too_long", "Too long.", status=grpc.StatusCode.INVALID_ARGUMENT)
    deployment.mllm.rounds = [[too_long]]

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(orchestrator)

    error = from_rpc_error(caught.value, "orchestrator")
    assert (error.code, error.service, error.request_id) == ("prompt_too_long", "mllm", "request-1")


async def test_a_route_that_nobody_serves_is_a_failed_call(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.mllm.rounds = [[text("dog cat"), group("dog", 0, "[TABLE]"), group("cat", 4), finish()]]

    events = await ask(orchestrator)

    [failure] = of_kind(events, "tool_failure")
    assert (failure.id, failure.error.code) == ("call_0", "unknown_tool")
    assert "[TABLE]" in failure.error.message
    assert [result.id for result in of_kind(events, "tool_result")] == ["call_1"]


async def test_tools_look_at_the_latest_image(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.mllm.rounds = [[group("dog"), finish()]]
    first, latest = image(b"first"), image(b"latest")
    answered = mllm_pb2.Message(role=mllm_pb2.ROLE_ASSISTANT, parts=[mllm_pb2.Part(text="Yes.")])
    messages = [user_message("?", first), user_message("?", latest), answered, user_message("And now?")]

    await ask(orchestrator, orchestrator_pb2.AnswerRequest(messages=messages))

    assert deployment.detection.requests[0].image == latest


async def test_a_tool_without_an_image_fails(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.mllm.rounds = [[group("dog"), finish()]]

    events = await ask(orchestrator, orchestrator_pb2.AnswerRequest(messages=[user_message("Where?")]))

    [failure] = of_kind(events, "tool_failure")
    assert failure.error.code == "no_image"


async def test_an_empty_conversation_is_refused(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ask(orchestrator, orchestrator_pb2.AnswerRequest(request_id="empty"))

    assert from_rpc_error(caught.value, "orchestrator").code == "empty_prompt"


async def test_timings_say_where_the_time_went(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.detection.script = lambda request: [0.05, *find_one_object_a_group(request)]
    deployment.mllm.rounds = [[0.03, text("dog"), group("dog", 0), finish()]]

    events = await ask(orchestrator)

    timings = {(entry.service, entry.phase): entry.milliseconds for entry in events[-1].finish.timings}
    assert timings["mllm", "wall"] >= timings["mllm", "first_event"] >= 29
    assert timings["detection", "wall"] >= 49
    assert timings["mllm", "total"] == 0.25
    assert timings["wire", "detection"] == pytest.approx(timings["detection", "wall"] - 0.25)
    assert timings["orchestrator", "own"] < timings["orchestrator", "total"]
    [result] = of_kind(events, "tool_result")
    assert ("detection", "wall") in {(entry.service, entry.phase) for entry in result.timings}


async def test_progress_is_passed_on(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    step = decoder_pb2.DecodeEvent(progress=decoder_pb2.Progress(done=1, total=2))
    deployment.detection.script = lambda request: [step, *find_one_object_a_group(request)]
    deployment.mllm.rounds = [[group("dog"), finish()]]

    events = await ask(orchestrator)

    [progress] = of_kind(events, "tool_progress")
    assert (progress.id, progress.progress.done, progress.progress.total) == ("call_0", 1, 2)


async def test_many_answers_at_once_stay_apart(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.mllm.rounds = [[text("dog"), 0.01, group("dog", 0), observe()], [text("One."), finish()]]

    answers = await asyncio.gather(*(ask(orchestrator) for _ in range(20)))

    assert {words(events) for events in answers} == {"dog\nOne."}
    assert {tuple(kinds(events)) for events in answers} == {tuple(kinds(answers[0]))}
