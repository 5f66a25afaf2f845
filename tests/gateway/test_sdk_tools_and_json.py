"""The SDK's ``tools``, ``tool_choice`` and ``response_format``, and conversations that go on, by a live gateway."""

import asyncio
import json
from typing import Any, Literal

import pytest
from live_gateway import LiveGateway
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scripted_workers import detection, detections, finish, group, observe, text, usage

from superlink import AsyncClient, Client
from superlink.client_errors import BadRequest
from superlink.results import Answer, Finished, TextDelta
from superlink.v1 import mllm_pb2

pytestmark = pytest.mark.surface


class Dog(BaseModel):
    colour: Literal["red", "blue"] = "red"


class Dogs(BaseModel):
    count: int = Field(ge=0, le=99)
    first: Dog = Dog()


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


@pytest.fixture
def counting(gateway: LiveGateway) -> LiveGateway:
    """The model looks for dogs and counts them from what it is told; asked for JSON it says the same in JSON."""
    gateway.workers.mllm.rounds = [
        [text("Searching for dog"), group("dog", 14), text("."), usage(30, 16, 9), observe()],
        [text("There are two dogs."), usage(40, 16, 6), finish()],
    ]
    gateway.workers.mllm.structured = [text('{"count": '), text("2}"), usage(40, 16, 12), finish()]
    gateway.workers.detection.script = lambda request: [
        detections([detection(0, 0.9), detection(0, 0.8, (60, 10, 90, 50))])
    ]
    return gateway


async def ask(client: AsyncClient, streams: bool, *asked: Any, **options: Any) -> Answer:
    if not streams:
        return await client.chat(*asked, **options)
    async with client.chat(*asked, stream=True, **options) as events:
        *_, last = [event async for event in events]
    assert isinstance(last, Finished)
    return last.answer


def parts_of(message: mllm_pb2.Message) -> list[str | None]:
    return [part.WhichOneof("part") for part in message.parts]


@pytest.mark.parametrize("streams", [False, True])
async def test_an_answer_in_json_is_read_as_a_model_of_pydantic(
    counting: LiveGateway, png: bytes, streams: bool
) -> None:
    async with AsyncClient(counting.url) as client:
        answer = await ask(client, streams, png, "How many dogs?", response_format=Dogs)

    assert Dogs.model_validate_json(answer.text) == Dogs(count=2)
    assert answer.draft == "Searching for dog."
    # Boxes and spans are those of the draft.
    assert len(answer.detections) == 2
    [phrase] = answer.phrases
    assert phrase.span is not None
    assert answer.draft[phrase.span.start : phrase.span.end] == "dog"
    sent = json.loads(counting.workers.mllm.generate_requests[-1].json_schema)
    assert sent["properties"]["count"]["maximum"] == 99
    # No room for what the model has no field for.
    assert sent["additionalProperties"] is sent["$defs"]["Dog"]["additionalProperties"] is False


async def test_only_the_json_is_streamed_as_text(counting: LiveGateway, png: bytes) -> None:
    async with (
        AsyncClient(counting.url) as client,
        client.chat(png, "How many dogs?", stream=True, response_format="json_object") as events,
    ):
        said = [event.text async for event in events if isinstance(event, TextDelta)]
    assert json.loads("".join(said)) == {"count": 2}


@pytest.mark.parametrize(
    ("wanted", "schema"),
    [
        ("json_object", {"type": "object"}),
        ({"type": "array", "items": {"type": "integer"}, "maxItems": 3}, None),
        (Open, {"additionalProperties": True, "properties": {}, "title": "Open", "type": "object"}),
        ("text", ""),
        (None, ""),
    ],
)
async def test_formats_arrive_as_they_were_meant(
    counting: LiveGateway, png: bytes, wanted: Any, schema: dict[str, Any] | None
) -> None:
    async with AsyncClient(counting.url) as client:
        await client.chat(png, "How many dogs?", response_format=wanted)
    sent = counting.workers.mllm.generate_requests[-1].json_schema
    assert (json.loads(sent) if sent else sent) == (wanted if schema is None else schema)


async def test_what_is_no_format_is_refused(counting: LiveGateway, png: bytes) -> None:
    async with AsyncClient(counting.url) as client:
        with pytest.raises(TypeError, match="response_format"):
            await client.chat(png, "How many?", response_format=7)  # type: ignore[arg-type]
        with pytest.raises(BadRequest, match="uniqueItems"):
            await client.chat(png, "How many?", response_format={"type": "array", "uniqueItems": True})
        with pytest.raises(BadRequest, match="response_format"):
            await client.chat(png, "How many?", response_format="yaml")  # type: ignore[arg-type]


@pytest.mark.parametrize("streams", [False, True])
async def test_calls_that_are_left_to_the_caller_end_in_an_answer_from_their_results(
    counting: LiveGateway, png: bytes, streams: bool
) -> None:
    async with AsyncClient(counting.url) as client:
        first = await ask(client, streams, png, "How many dogs?", tools=["detection"])
        assert (first.finish_reason, first.text) == ("tool_calls", "Searching for dog.")
        [call] = first.tool_calls
        assert [found.score for found in call.detections] == [0.9, 0.8]

        history = [*first.messages, call.result_message()]
        answer = await ask(client, streams, None, None, history=history, tools=["detection"])

    assert (answer.finish_reason, answer.text) == ("stop", "There are two dogs.")
    first_asked, second_asked = counting.workers.mllm.generate_requests
    assert list(first_asked.tools.decoders) == list(second_asked.tools.decoders) == ["detection"]
    said = second_asked.messages[-1].parts
    assert [len(group.objects) for part in said for group in part.observation.groups] == [2]
    assert [message["role"] for message in answer.messages] == ["user", "assistant", "tool", "assistant"]


async def test_tools_of_the_callers_own_may_look(counting: LiveGateway, png: bytes) -> None:
    async with AsyncClient(counting.url) as client:
        first = await client.chat(png, "How many dogs?", tools=["detection"])
        [call] = first.tool_calls
        counting.workers.detection.script = lambda request: [detections([detection(0)])]
        found = await client.detect(png, [phrase.phrase for phrase in call.phrases])
        seen = []
        for result in (found, {"categories": [{"phrase": "dog", "found": False}]}, {"error": "No film."}):
            # The script of the model begins anew.
            counting.workers.mllm.generate_requests.clear()
            await client.chat(None, None, history=[*first.messages, call.result_message(result)])
            said = counting.workers.mllm.generate_requests[0].messages[-1].parts
            [observed] = [group for part in said for group in part.observation.groups]
            seen.append((len(observed.objects), observed.failed))
    assert seen == [(1, False), (0, False), (0, True)]


async def test_no_tool_is_called_where_none_may_be(counting: LiveGateway, png: bytes) -> None:
    async with AsyncClient(counting.url) as client:
        await client.chat(png, "How many dogs?", tool_choice="none")
        request = counting.workers.mllm.generate_requests[0]
        assert request.HasField("tools")
        assert list(request.tools.decoders) == []
        with pytest.raises(BadRequest, match="unknown_function"):
            await client.chat(png, "How many dogs?", tools=["hammer"])
        with pytest.raises(TypeError, match="tools"):
            await client.chat(png, "How many dogs?", tools="detection")


@pytest.mark.parametrize("streams", [False, True])
async def test_the_next_question_goes_on_from_an_answer(counting: LiveGateway, png: bytes, streams: bool) -> None:
    async with AsyncClient(counting.url) as client:
        first = await ask(client, streams, png, "How many dogs?")
        counting.workers.mllm.generate_requests.clear()
        counting.workers.mllm.rounds = [[text("Yes."), finish()]]
        second = await ask(client, streams, None, "Sure?", history=first.messages)

    asked, answered, again = counting.workers.mllm.generate_requests[0].messages
    assert parts_of(asked) == ["image", "text"]
    # As the model wrote it, with what it read in between.
    assert parts_of(answered) == ["text", "routed_phrase", "text", "observation", "text"]
    assert parts_of(again) == ["text"]
    assert [message["role"] for message in second.messages] == ["user", "assistant"] * 2
    assert "messages" not in second.model_dump()
    assert "base64" not in repr(second)


async def test_a_prompt_is_missing_only_behind_results(counting: LiveGateway, png: bytes) -> None:
    async with AsyncClient(counting.url) as client:
        with pytest.raises(ValueError, match="need a prompt"):
            await client.chat(png, None)
        with pytest.raises(ValueError, match="Give a prompt"):
            await client.chat(None, None)
        first = await client.chat(png, "How many dogs?")
        with pytest.raises(BadRequest, match="last message"):
            await client.chat(None, None, history=first.messages)


async def test_threads_have_the_same(counting: LiveGateway, png: bytes) -> None:
    def loop() -> Answer:
        with Client(counting.url) as client:
            answer = client.chat(png, "How many dogs?", tools=["detection"], response_format=Dogs)
            while answer.finish_reason == "tool_calls":
                results = [call.result_message() for call in answer.tool_calls]
                history = [*answer.messages, *results]
                answer = client.chat(None, None, history=history, tools=["detection"], response_format=Dogs)
            return answer

    answer = await asyncio.to_thread(loop)
    assert Dogs.model_validate_json(answer.text).count == 2
    with pytest.raises(ValidationError):
        Dogs.model_validate_json('{"count": 100}')
