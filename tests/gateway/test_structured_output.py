"""``response_format``: the text is JSON, the draft that it was written from stands beside it."""

import json
from collections.abc import AsyncIterator
from typing import Any, Literal

import openai
import pytest
import pytest_asyncio
from live_gateway import LiveGateway, live_gateway
from pydantic import BaseModel, Field
from request_bodies import chat_body
from scripted_workers import finish, group, observe, text, usage

from superlink.v1 import mllm_pb2

pytestmark = [pytest.mark.surface, pytest.mark.asyncio(loop_scope="module")]

MODEL = "superlink-scripted"


class Count(BaseModel):
    kind: Literal["dog", "cat"]
    count: int = Field(ge=0, le=99)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_gateway() -> AsyncIterator[LiveGateway]:
    async with live_gateway(request_timeout_s=60) as running:
        yield running


@pytest.fixture
def gateway(shared_gateway: LiveGateway) -> LiveGateway:
    shared_gateway.workers.reset()
    routed = mllm_pb2.TextDelta(tokens=[mllm_pb2.TokenChoice(token="[DET]", log_probability=-0.25)])  # noqa: S106
    drafted = mllm_pb2.TextDelta(text=".", tokens=[mllm_pb2.TokenChoice(token=".", encoded=b".")])  # noqa: S106
    shared_gateway.workers.mllm.rounds = [
        [
            text("Searching for dog"),
            mllm_pb2.GenerateEvent(text_delta=routed),
            group("dog", 14),
            mllm_pb2.GenerateEvent(text_delta=drafted),
            usage(30, 16, 9),
            observe(),
        ],
        [text("There is one dog."), finish()],
    ]
    shared_gateway.workers.mllm.structured = [
        text('{"kind": "dog", '),
        text('"count": 1}'),
        usage(40, 16, 12),
        finish(),
    ]
    return shared_gateway


@pytest_asyncio.fixture(loop_scope="module")
async def client(gateway: LiveGateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def asked(png: bytes) -> Any:
    return list(chat_body("How many dogs?", png)["messages"])


def schema(**keywords: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": {"type": "object", **keywords}}}


async def test_an_answer_is_read_as_the_clients_own_type(
    gateway: LiveGateway, client: openai.AsyncOpenAI, png: bytes
) -> None:
    completion = await client.chat.completions.parse(model=MODEL, messages=asked(png), response_format=Count)

    choice = completion.choices[0]
    assert choice.message.parsed == Count(kind="dog", count=1)
    assert choice.finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 21
    extension: Any = choice.message.model_extra
    assert extension["superlink"]["draft"] == "Searching for dog."
    [call] = extension["superlink"]["tool_calls"]
    assert call["phrases"][0]["span"] == {"start": 14, "end": 17}
    assert extension["superlink"]["observations"][0]["position"] == 18
    sent = json.loads(gateway.workers.mllm.generate_requests[-1].json_schema)
    assert sent["properties"]["count"]["maximum"] == 99
    assert sent["additionalProperties"] is False


async def test_only_json_is_streamed_as_content(gateway: LiveGateway, client: openai.AsyncOpenAI, png: bytes) -> None:
    stream = await client.chat.completions.create(
        model=MODEL, messages=asked(png), response_format={"type": "json_object"}, stream=True, logprobs=True
    )
    content, draft, tokens = "", "", []
    async for chunk in stream:
        for choice in chunk.choices:
            content += choice.delta.content or ""
            draft += (choice.delta.model_extra or {}).get("superlink", {}).get("draft", "")
            tokens += (choice.logprobs.content or []) if choice.logprobs is not None else []

    assert (json.loads(content), draft) == ({"kind": "dog", "count": 1}, "Searching for dog.")
    # Of the draft only what calls a tool.
    assert [token.token for token in tokens] == ["[DET]"]
    assert json.loads(gateway.workers.mllm.generate_requests[-1].json_schema) == {"type": "object"}


async def test_free_answers_have_no_draft(gateway: LiveGateway, client: openai.AsyncOpenAI, png: bytes) -> None:
    completion = await client.chat.completions.create(
        model=MODEL, messages=asked(png), response_format={"type": "text"}
    )

    extension: Any = completion.choices[0].message.model_extra
    assert "draft" not in extension["superlink"]
    assert not any(request.json_schema for request in gateway.workers.mllm.generate_requests)


@pytest.mark.parametrize(
    ("keywords", "told"),
    [
        ({"properties": {"a": {"type": "array", "uniqueItems": True}}}, "uniqueItems"),
        ({"not": {"required": ["a"]}, "propertyNames": {}}, "not, propertyNames"),
        ({"properties": {"a": {"format": "regex", "type": "string"}}}, "regex"),
        ({"description": "x" * 60_000}, "50,000"),
    ],
)
async def test_a_schema_with_other_keywords_is_refused_before_anything_is_written(
    gateway: LiveGateway, client: openai.AsyncOpenAI, png: bytes, keywords: dict[str, Any], told: str
) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=told) as refused:
            await client.chat.completions.create(
                model=MODEL, messages=asked(png), response_format=schema(**keywords), stream=stream
            )
        assert refused.value.code == "unsupported_schema"
    assert not gateway.workers.mllm.generate_requests


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"response_format": {"type": "json_object"}, "stop": "}"}, "stop"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "it"}}}, "schema"),
    ],
)
async def test_formats_that_make_no_sense_are_refused(
    gateway: LiveGateway, client: openai.AsyncOpenAI, png: bytes, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=told):
        await client.chat.completions.create(model=MODEL, messages=asked(png), **options)


async def test_a_structured_answer_sent_back_is_what_the_model_wrote(
    gateway: LiveGateway, client: openai.AsyncOpenAI, png: bytes
) -> None:
    messages = asked(png)
    first = await client.chat.completions.create(
        model=MODEL, messages=messages, response_format={"type": "json_object"}
    )
    # The part in which the JSON was written, as it stood before.
    before = gateway.workers.mllm.generate_requests[-1].messages[-1].parts
    messages += [first.choices[0].message.model_dump(), {"role": "user", "content": "Sure?"}]

    await client.chat.completions.create(model=MODEL, messages=messages)

    replayed = gateway.workers.mllm.generate_requests[2].messages[1].parts
    assert list(replayed[:-1]) == list(before)
    assert replayed[-1].text == first.choices[0].message.content


async def test_a_draft_without_results_is_replayed_with_its_json_on_a_line_of_its_own(
    gateway: LiveGateway, client: openai.AsyncOpenAI, png: bytes
) -> None:
    gateway.workers.mllm.rounds = [[text("A street."), finish()]]
    messages = asked(png)
    first = await client.chat.completions.create(
        model=MODEL, messages=messages, response_format={"type": "json_object"}
    )
    messages += [first.choices[0].message.model_dump(), {"role": "user", "content": "Sure?"}]

    await client.chat.completions.create(model=MODEL, messages=messages)

    parts = gateway.workers.mllm.generate_requests[2].messages[1].parts
    assert "".join(part.text for part in parts) == 'A street.\n{"kind": "dog", "count": 1}'


async def test_calls_that_are_left_to_the_client_come_before_the_json(
    gateway: LiveGateway, client: openai.AsyncOpenAI, png: bytes
) -> None:
    messages = asked(png)
    options: Any = {
        "model": MODEL,
        "tools": [{"type": "function", "function": {"name": "detection"}}],
        "response_format": {"type": "json_object"},
    }
    first = await client.chat.completions.create(messages=messages, **options)
    message: Any = first.choices[0].message
    [call] = message.tool_calls
    assert (first.choices[0].finish_reason, message.content) == ("tool_calls", "")
    messages += [
        # Without the extension the draft is lost, and the phrase stands alone.
        {"role": "assistant", "content": "", "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": json.dumps(message.superlink["tool_calls"][0])},
    ]

    second = await client.chat.completions.create(messages=messages, **options)

    assert json.loads(second.choices[0].message.content or "") == {"kind": "dog", "count": 1}
    parts = gateway.workers.mllm.generate_requests[-1].messages[-1].parts
    assert [part.WhichOneof("part") for part in parts] == ["routed_phrase", "observation"]
