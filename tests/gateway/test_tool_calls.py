"""Tool calls as OpenAI's clients know them: asked for with ``tools``, answered with ``tool`` messages."""

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from live_gateway import LiveGateway, live_gateway
from request_bodies import chat_body
from scripted_workers import detection, detections, finish, group, made_images, observe, text, usage

from superlink.errors import SuperlinkError
from superlink.v1 import mllm_pb2

pytestmark = [pytest.mark.surface, pytest.mark.asyncio(loop_scope="module")]

MODEL = "superlink-scripted"
PARAMETERS = {"type": "object", "properties": {"phrases": {"type": "array", "items": {"type": "object"}}}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_gateway() -> AsyncIterator[LiveGateway]:
    async with live_gateway(request_timeout_s=60) as running:
        yield running


@pytest.fixture
def gateway(shared_gateway: LiveGateway) -> LiveGateway:
    """The model looks for dogs, cuts them out, and counts them from what it is told."""
    shared_gateway.workers.reset()
    shared_gateway.workers.mllm.rounds = [
        [
            text("Searching for dog"),
            group("dog", 14),
            text(" and dog"),
            group("dog", 22, "[SEG]"),
            usage(30, 16, 9),
            observe(),
        ],
        [text("There are two dogs."), usage(40, 16, 6), finish()],
    ]
    shared_gateway.workers.detection.script = lambda request: [
        detections([detection(0, 0.8), detection(0, 0.9, (0, 0, 200, 100))])
    ]
    return shared_gateway


@pytest_asyncio.fixture(loop_scope="module")
async def client(gateway: LiveGateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def offered(*names: str) -> Any:
    function = {"description": "Looks for things.", "parameters": PARAMETERS, "strict": True}
    return [{"type": "function", "function": {"name": name, **function}} for name in names]


def asked(png: bytes, words: str = "How many dogs?") -> list[Any]:
    return list(chat_body(words, png)["messages"])


async def first_turn(client: openai.AsyncOpenAI, messages: list[Any], *names: str) -> Any:
    completion = await client.chat.completions.create(
        model=MODEL, messages=messages, tools=offered(*(names or ("detection", "segmentation")))
    )
    return completion.choices[0]


def standard_fields(message: Any) -> dict[str, Any]:
    """What clients keep that know only OpenAI's API."""
    return {
        "role": "assistant",
        "content": message.content,
        "tool_calls": [call.model_dump() for call in message.tool_calls],
    }


def entry_of(message: Any, call_id: str) -> str:
    """A result as the extension has it."""
    calls = message.model_extra["superlink"]["tool_calls"]
    return json.dumps(next(call for call in calls if call["id"] == call_id))


def last_parts(gateway: LiveGateway) -> Any:
    """The parts of the answer that the model goes on with."""
    message = gateway.workers.mllm.generate_requests[-1].messages[-1]
    assert message.role == mllm_pb2.ROLE_ASSISTANT
    return message.parts


async def test_an_answer_ends_at_its_calls_with_their_arguments(
    gateway: LiveGateway, client: openai.AsyncOpenAI, png: bytes
) -> None:
    choice = await first_turn(client, asked(png))

    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Searching for dog and dog"
    find, cut = choice.message.tool_calls
    assert (find.type, find.function.name, cut.function.name) == ("function", "detection", "segmentation")
    assert json.loads(cut.function.arguments) == {
        "phrases": [{"phrase": "dog", "route": "[SEG]", "span": {"start": 22, "end": 25}}]
    }
    assert find.id != cut.id
    # The platform ran them, and reports what they found where it always does.
    results = choice.message.model_extra["superlink"]["tool_calls"]
    assert [(call["id"], call["status"]) for call in results] == [(find.id, "completed"), (cut.id, "completed")]
    assert len(results[0]["phrases"][0]["detections"]) == 2
    assert len(gateway.workers.mllm.generate_requests) == 1


async def test_calls_are_streamed_whole(gateway: LiveGateway, client: openai.AsyncOpenAI, png: bytes) -> None:
    whole = await first_turn(client, asked(png))
    stream = await client.chat.completions.create(
        model=MODEL, messages=asked(png), tools=offered("detection", "segmentation"), stream=True
    )
    calls, reasons = [], []
    async for chunk in stream:
        calls += chunk.choices[0].delta.tool_calls or []
        reasons.append(chunk.choices[0].finish_reason)

    assert [call.index for call in calls] == [0, 1]
    assert [call.function.arguments for call in calls if call.function is not None] == [
        call.function.arguments for call in whole.message.tool_calls
    ]
    assert len({call.id for call in calls} | {call.id for call in whole.message.tool_calls}) == 4
    assert reasons[-1] == "tool_calls"


@pytest.mark.parametrize("keeps_extension", [True, False])
async def test_the_model_goes_on_from_the_results_that_come_back(
    gateway: LiveGateway, client: openai.AsyncOpenAI, png: bytes, keeps_extension: bool
) -> None:
    messages = asked(png)
    choice = await first_turn(client, messages)
    find, cut = choice.message.tool_calls
    sent_back = choice.message.model_dump() if keeps_extension else standard_fields(choice.message)
    own_word = {
        "categories": [{"phrase": "dog", "found": True, "score": 0.7}],
        "detections": [{"category": "dog", "category_index": 0, "bbox": [100, 50, 100, 50], "score": 0.7}],
    }
    messages += [
        sent_back,
        # In any order: one as the platform reported it, one as a client's own tool did.
        {"role": "tool", "tool_call_id": cut.id, "content": [{"type": "text", "text": json.dumps(own_word)}]},
        {"role": "tool", "tool_call_id": find.id, "content": entry_of(choice.message, find.id)},
    ]

    final = await client.chat.completions.create(model=MODEL, messages=messages, tools=offered("detection"))

    assert (final.choices[0].finish_reason, final.choices[0].message.content) == ("stop", "There are two dogs.")
    assert final.choices[0].message.tool_calls is None
    *parts, read = last_parts(gateway)
    assert [part.WhichOneof("part") for part in parts] == ["text", "routed_phrase", "text", "routed_phrase"]
    assert [(part.routed_phrase.route, part.routed_phrase.phrase) for part in parts[1::2]] == [
        ("[DET]", "dog"),
        ("[SEG]", "dog"),
    ]
    found, cut_out = read.observation.groups
    assert (found.route, len(found.objects), round(found.objects[0].score, 2)) == ("[DET]", 2, 0.9)
    [only] = cut_out.objects
    assert (cut_out.route, only.x1, only.y1, only.x2, only.y2) == ("[SEG]", 500, 500, 1000, 1000)

    # And the whole conversation can be gone on with.
    messages += [final.choices[0].message.model_dump(), {"role": "user", "content": "Thanks."}]
    await client.chat.completions.create(model=MODEL, messages=messages)
    user, answer, thanks = gateway.workers.mllm.generate_requests[2].messages
    assert [message.role for message in (user, answer, thanks)] == [
        mllm_pb2.ROLE_USER,
        mllm_pb2.ROLE_ASSISTANT,
        mllm_pb2.ROLE_USER,
    ]
    assert [part.WhichOneof("part") for part in answer.parts[-2:]] == ["observation", "text"]


async def test_a_tool_that_failed_is_told_to_the_model(
    gateway: LiveGateway, client: openai.AsyncOpenAI, png: bytes
) -> None:
    gateway.workers.detection.script = lambda request: [SuperlinkError("broken", "It broke.")]
    messages = asked(png)
    choice = await first_turn(client, messages)
    find, cut = choice.message.tool_calls
    messages += [
        standard_fields(choice.message),
        {"role": "tool", "tool_call_id": find.id, "content": entry_of(choice.message, find.id)},
        {"role": "tool", "tool_call_id": cut.id, "content": '{"error": "My disk is full."}'},
    ]

    await client.chat.completions.create(model=MODEL, messages=messages)

    assert [group.failed for group in last_parts(gateway)[-1].observation.groups] == [True, True]


async def test_a_drawing_that_comes_back_is_what_the_next_turn_is_about(
    gateway: LiveGateway, client: openai.AsyncOpenAI, png: bytes
) -> None:
    gateway.workers.diffusion.script = lambda request: [made_images(png)]
    gateway.workers.mllm.rounds = [[text("A cat"), group("cat", 2, "[GEN]"), finish()], [text("Done."), finish()]]
    messages: list[Any] = [{"role": "user", "content": "Draw a cat"}]
    choice = await first_turn(client, messages, "diffusion")
    [call] = choice.message.tool_calls
    messages += [
        standard_fields(choice.message),
        {"role": "tool", "tool_call_id": call.id, "content": entry_of(choice.message, call.id)},
    ]

    final = await client.chat.completions.create(model=MODEL, messages=messages, tools=offered("diffusion"))
    messages += [standard_final(final), {"role": "user", "content": "Where is it?"}]
    gateway.workers.mllm.rounds[0] = [text("cat"), group("cat", 0), finish()]
    await client.chat.completions.create(model=MODEL, messages=messages)

    assert final.choices[0].message.content == "Done."
    assert gateway.workers.detection.requests[-1].image.encoded == png


def standard_final(completion: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": completion.choices[0].message.content}


async def test_without_a_call_the_answer_just_ends(
    gateway: LiveGateway, client: openai.AsyncOpenAI, png: bytes
) -> None:
    gateway.workers.mllm.rounds = [[text("Hello."), finish()]]

    choice = await first_turn(client, asked(png))

    assert (choice.finish_reason, choice.message.tool_calls) == ("stop", None)


async def test_the_model_may_call_what_is_offered_and_nothing_else(
    gateway: LiveGateway, client: openai.AsyncOpenAI, png: bytes
) -> None:
    await first_turn(client, asked(png), "segmentation")
    for choice in ("none", "auto"):
        await client.chat.completions.create(
            model=MODEL, messages=asked(png), tools=offered("detection"), tool_choice=choice
        )
    await client.chat.completions.create(model=MODEL, messages=asked(png), tool_choice="none")

    selections = [list(request.tools.decoders) for request in gateway.workers.mllm.generate_requests]
    # The second of them observes, because nothing is left to the client: two rounds.
    assert selections == [["segmentation"], [], [], ["detection"], [], []]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"tools": offered("get_weather")}, "get_weather"),
        ({"tools": offered("detection"), "tool_choice": "required"}, "tool_choice"),
        ({"tools": offered("detection"), "parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"tools": [{"type": "custom", "custom": {"name": "detection"}}]}, "tools.0.type"),
    ],
)
async def test_tools_of_ones_own_are_refused(
    gateway: LiveGateway, client: openai.AsyncOpenAI, png: bytes, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=told):
        await client.chat.completions.create(model=MODEL, messages=asked(png), **options)
    assert not gateway.workers.mllm.generate_requests


CALL = {"id": "call_0", "type": "function", "function": {"name": "detection", "arguments": '{"phrases": []}'}}
FOUND = '{"categories": [], "detections": []}'


@pytest.mark.parametrize(
    ("messages", "code", "told"),
    [
        ([{"role": "tool", "tool_call_id": "call_0", "content": FOUND}], "invalid_conversation", "must follow"),
        (
            [
                {"role": "assistant", "content": "", "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "call_7", "content": FOUND},
            ],
            "invalid_conversation",
            "call_7",
        ),
        (
            [
                {"role": "assistant", "content": "", "tool_calls": [CALL, {**CALL, "id": "call_1"}]},
                {"role": "tool", "tool_call_id": "call_0", "content": FOUND},
            ],
            "invalid_conversation",
            "call_1",
        ),
        *(
            (
                [
                    {"role": "assistant", "content": "", "tool_calls": [CALL]},
                    {"role": "tool", "tool_call_id": "call_0", "content": content},
                ],
                "invalid_tool_result",
                "call_0",
            )
            for content in ("three dogs", "{}", '{"categories": 3}', [{"type": "image_url", "image_url": {"url": "x"}}])
        ),
        (
            [
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{**CALL, "function": {"name": "detection", "arguments": "dog"}}],
                },
                {"role": "tool", "tool_call_id": "call_0", "content": FOUND},
            ],
            "invalid_conversation",
            "arguments",
        ),
        ([{"role": "assistant", "content": "Hi"}], "invalid_conversation", "last message"),
    ],
)
async def test_results_that_answer_no_call_are_refused(
    gateway: LiveGateway, client: openai.AsyncOpenAI, png: bytes, messages: list[Any], code: str, told: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=told) as refused:
        await client.chat.completions.create(model=MODEL, messages=[*asked(png), *messages])
    assert refused.value.code == code
    assert not gateway.workers.mllm.generate_requests


async def test_boxes_need_an_image_before_them(gateway: LiveGateway, client: openai.AsyncOpenAI) -> None:
    call = {**CALL, "function": {"name": "detection", "arguments": '{"phrases": [{"phrase": "a", "route": "[DET]"}]}'}}
    found = {
        "categories": [{"phrase": "a", "found": True}],
        "detections": [{"category": "a", "bbox": [1, 2, 3, 4], "score": 0.5}],
    }
    messages: list[Any] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "a", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_0", "content": json.dumps(found)},
    ]
    with pytest.raises(openai.BadRequestError, match="no image"):
        await client.chat.completions.create(model=MODEL, messages=messages)
    messages[2]["content"] = json.dumps({**found, "image": {"width": 10, "height": 10}})

    await client.chat.completions.create(model=MODEL, messages=messages)

    [entry] = last_parts(gateway)[-1].observation.groups[0].objects
    assert (entry.x1, entry.y1, entry.x2, entry.y2) == (100, 200, 400, 600)


async def test_uploads_belong_to_a_users_message(gateway: LiveGateway, png: bytes) -> None:
    document = {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_0", "content": FOUND},
        ]
    }

    response = await gateway.http.post(
        "/v1/chat/completions", data={"request": json.dumps(document)}, files={"image": ("a.png", png)}
    )

    assert (response.status_code, response.json()["code"]) == (400, "invalid_conversation")
