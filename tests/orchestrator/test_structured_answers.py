"""Answers that are to fit a schema, that leave tool calls to the client, or whose tokens are counted and reported."""

from typing import Any

from scripted_workers import (
    ScriptedDeployment,
    finish,
    group,
    image,
    made_images,
    observe,
    text,
    usage,
    user_message,
)

from superlink.v1 import mllm_pb2, orchestrator_pb2, orchestrator_pb2_grpc

Stub = orchestrator_pb2_grpc.OrchestratorStub
SCHEMA = '{"type": "object"}'


def question(**options: Any) -> orchestrator_pb2.AnswerRequest:
    return orchestrator_pb2.AnswerRequest(messages=[user_message("How many dogs?", image())], **options)


async def ask(stub: Stub, request: orchestrator_pb2.AnswerRequest) -> list[orchestrator_pb2.AnswerEvent]:
    return [event async for event in stub.Answer(request, timeout=30)]


def words(events: list[orchestrator_pb2.AnswerEvent], kind: str) -> str:
    return "".join(getattr(event, kind).text for event in events)


def counting(deployment: ScriptedDeployment) -> None:
    deployment.mllm.rounds = [
        [text("Searching for dog"), group("dog", 14), text("."), usage(30, 16, 9), observe()],
        [text("There is one dog."), usage(40, 16, 6), finish()],
    ]
    deployment.mllm.structured = [text('{"count": 1}'), usage(41, 16, 7), finish()]


async def test_json_is_written_from_what_the_tools_found(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    counting(deployment)

    events = await ask(orchestrator, question(json_schema=SCHEMA))

    assert words(events, "text_delta") == '{"count": 1}'
    assert words(events, "draft_delta") == "Searching for dog."
    draft, written = deployment.mllm.generate_requests
    assert (draft.json_schema, written.json_schema) == ("", SCHEMA)
    parts = written.messages[-1].parts
    assert [part.WhichOneof("part") for part in parts] == ["text", "routed_phrase", "text", "observation"]
    assert parts[-1].observation.groups[0].objects
    assert events[-1].finish.reason == mllm_pb2.FINISH_REASON_STOP
    assert events[-2].usage.completion_tokens == 16


async def test_json_follows_a_draft_that_needs_no_results(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.mllm.rounds = [[text("A quiet street."), usage(30, 16, 4), finish()]]

    events = await ask(orchestrator, question(json_schema=SCHEMA))

    assert words(events, "draft_delta") == "A quiet street."
    assert words(events, "text_delta") == "{}"
    parts = deployment.mllm.generate_requests[1].messages[-1].parts
    assert "".join(part.text for part in parts) == "A quiet street.\n"


async def test_results_that_the_client_sends_are_read_at_once(
    deployment: ScriptedDeployment, orchestrator: Stub
) -> None:
    counting(deployment)
    read = mllm_pb2.Observation(groups=[mllm_pb2.ObservedGroup(route="[DET]", phrase="dog")])
    request = question(json_schema=SCHEMA)
    request.messages.add(role=mllm_pb2.ROLE_ASSISTANT, parts=[mllm_pb2.Part(observation=read)])

    events = await ask(orchestrator, request)

    assert words(events, "text_delta") == '{"count": 1}'
    assert len(deployment.mllm.generate_requests) == 1


async def test_an_answer_ends_at_its_tool_calls(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    counting(deployment)

    for schema in ("", SCHEMA):
        events = await ask(orchestrator, question(ends_at_tool_calls=True, json_schema=schema))

        assert events[-1].finish.reason == mllm_pb2.FINISH_REASON_TOOL_CALLS
        kinds = [event.WhichOneof("event") for event in events]
        assert "tool_result" in kinds
        assert "observation" not in kinds
    assert len(deployment.mllm.generate_requests) == 2


async def test_an_answer_without_tools_just_ends(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    events = await ask(orchestrator, question(ends_at_tool_calls=True))

    assert events[-1].finish.reason == mllm_pb2.FINISH_REASON_STOP


async def test_an_answer_cut_off_at_its_tool_calls_says_so(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.mllm.rounds = [[group("dog"), finish(mllm_pb2.FINISH_REASON_LENGTH)]]

    events = await ask(orchestrator, question(ends_at_tool_calls=True))

    assert events[-1].finish.reason == mllm_pb2.FINISH_REASON_LENGTH


async def test_drawings_are_left_to_the_client_too(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    deployment.diffusion.script = lambda request: [made_images(b"a picture")]
    deployment.mllm.rounds = [[text("A cat"), group("cat", 2, "[GEN]"), observe()]]

    events = await ask(orchestrator, question(ends_at_tool_calls=True))

    assert events[-1].finish.reason == mllm_pb2.FINISH_REASON_TOOL_CALLS


async def test_the_model_is_told_which_tools_it_may_call(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    await ask(orchestrator, question(tools=mllm_pb2.ToolSelection(decoders=["detection"])))
    await ask(orchestrator, question(tools=mllm_pb2.ToolSelection()))
    await ask(orchestrator, question())

    some, none, every = deployment.mllm.generate_requests
    assert list(some.tools.decoders) == ["detection"]
    assert none.HasField("tools")
    assert not every.HasField("tools")


async def test_the_limit_of_tokens_is_the_whole_answers(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    counting(deployment)

    events = await ask(orchestrator, question(sampling=mllm_pb2.Sampling(max_new_tokens=15)))

    assert [request.sampling.max_new_tokens for request in deployment.mllm.generate_requests] == [15, 6]
    assert events[-1].finish.reason == mllm_pb2.FINISH_REASON_STOP


async def test_no_round_begins_without_a_token_left(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    counting(deployment)

    for schema in ("", SCHEMA):
        request = question(sampling=mllm_pb2.Sampling(max_new_tokens=9), json_schema=schema)
        events = await ask(orchestrator, request)

        assert events[-1].finish.reason == mllm_pb2.FINISH_REASON_LENGTH
    assert len(deployment.mllm.generate_requests) == 2


async def test_reported_tokens_come_through(deployment: ScriptedDeployment, orchestrator: Stub) -> None:
    choice = mllm_pb2.TokenChoice(token="[DET]", log_probability=-0.5)  # noqa: S106
    routed = mllm_pb2.GenerateEvent(text_delta=mllm_pb2.TextDelta(tokens=[choice]))
    deployment.mllm.rounds = [[text("dog"), routed, group("dog", 0), finish()]]

    for schema, kind in (("", "text_delta"), (SCHEMA, "draft_delta")):
        events = await ask(orchestrator, question(json_schema=schema))

        reported = [token for event in events for token in getattr(event, kind).tokens]
        assert reported == [choice]
