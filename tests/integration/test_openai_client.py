"""The official OpenAI client against the real processes and the weights of profile tiny."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel, Field

from superlink.images import encode_image
from superlink.stack import LocalStack

pytestmark = pytest.mark.surface

MODEL = "superlink-tiny"


class Dogs(BaseModel):
    count: int = Field(ge=0)


@pytest.fixture
def openai_client(stack: LocalStack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def asked(sample: bytes, words: str) -> list[Any]:
    image = {"type": "image_url", "image_url": {"url": encode_image(sample).data_url()}}
    return [{"role": "user", "content": [image, {"type": "text", "text": words}]}]


def test_a_count_comes_back_as_the_clients_own_type(openai_client: openai.OpenAI, sample: bytes) -> None:
    completion = openai_client.chat.completions.parse(
        model=MODEL, messages=asked(sample, "How many dogs are there?"), response_format=Dogs
    )

    message = completion.choices[0].message
    extension: Any = message.model_extra
    assert isinstance(message.parsed, Dogs)
    assert completion.choices[0].finish_reason == "stop"
    assert extension["superlink"]["draft"]
    assert [call["tool"] for call in extension["superlink"]["tool_calls"]] == ["detection"]


def test_a_loop_of_the_clients_own_ends_in_an_answer(openai_client: openai.OpenAI, sample: bytes) -> None:
    messages = asked(sample, "How many dogs are there?")
    tools: Any = [{"type": "function", "function": {"name": "detection"}}]

    first = openai_client.chat.completions.create(
        model=MODEL, messages=messages, tools=tools, logprobs=True, top_logprobs=2
    )
    choice: Any = first.choices[0]
    assert choice.finish_reason == "tool_calls"
    routed = [token for token in choice.logprobs.content if token.bytes is None]
    assert [token.token for token in routed] == ["[DET]"] * len(choice.message.tool_calls)
    calls = [call.model_dump() for call in choice.message.tool_calls]
    results = choice.message.superlink["tool_calls"]
    messages.append({"role": "assistant", "content": choice.message.content, "tool_calls": calls})
    messages += [{"role": "tool", "tool_call_id": call["id"], "content": json.dumps(call)} for call in results]
    final = openai_client.chat.completions.create(model=MODEL, messages=messages, tools=tools)

    assert final.choices[0].finish_reason == "stop"
    assert final.choices[0].message.content


def test_an_answer_may_be_forbidden_all_tools(openai_client: openai.OpenAI, sample: bytes) -> None:
    completion = openai_client.chat.completions.create(
        model=MODEL, messages=asked(sample, "Find the dogs."), tool_choice="none"
    )

    extension: Any = completion.choices[0].message.model_extra
    assert extension["superlink"]["tool_calls"] == []


def test_files_are_kept_in_the_state_folder_and_images_asked_about_by_id(
    openai_client: openai.OpenAI, stack: LocalStack, sample: bytes
) -> None:
    picture = openai_client.files.create(file=("dogs.png", sample), purpose="vision")
    assert (stack.state.artifacts / "anyone" / f"{picture.id}.json").is_file()
    question: Any = [
        {"type": "file", "file": {"file_id": picture.id}},
        {"type": "text", "text": "How many dogs are there?"},
    ]

    completion = openai_client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": question}])

    assert completion.choices[0].message.content
    assert openai_client.files.content(picture.id).content == sample
    openai_client.files.delete(picture.id)
    assert not list(stack.state.artifacts.rglob(f"{picture.id}*"))
