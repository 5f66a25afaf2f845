"""The official OpenAI client against the gateway: what it sends is honoured, ignored or refused, and it reads all."""

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
import pytest_asyncio
from live_gateway import LiveGateway, live_gateway
from request_bodies import chat_body, data_url, encode_picture
from scripted_workers import find_one_object_a_group, finish, group, made_images, progress, text, usage

from superlink.v1 import mllm_pb2

pytestmark = [pytest.mark.surface, pytest.mark.asyncio(loop_scope="module")]

MODEL = "superlink-scripted"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_gateway() -> AsyncIterator[LiveGateway]:
    async with live_gateway(request_timeout_s=60) as running:
        yield running


@pytest.fixture
def gateway(shared_gateway: LiveGateway) -> LiveGateway:
    shared_gateway.workers.reset()
    shared_gateway.workers.mllm.rounds = [[text("Here is the dog"), group("dog", 12), text("."), *ending()]]
    return shared_gateway


@pytest_asyncio.fixture(loop_scope="module")
async def client(gateway: LiveGateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


def ending() -> list[Any]:
    return [usage(30, 16, 9), finish()]


def asked(*images: bytes, words: str = "Where is the dog?") -> Any:
    return chat_body(words, *images)["messages"]


def token(word: str, log_probability: float, *others: str) -> mllm_pb2.TokenChoice:
    def plain(name: str, value: float) -> mllm_pb2.TokenChoice:
        encoded = b"" if name.startswith("[") else name.encode()
        return mllm_pb2.TokenChoice(token=name, encoded=encoded, log_probability=value)

    choice = plain(word, log_probability)
    choice.alternatives.extend(plain(other, log_probability - place) for place, other in enumerate((word, *others)))
    return choice


def written(words: str, *tokens: mllm_pb2.TokenChoice) -> mllm_pb2.GenerateEvent:
    return mllm_pb2.GenerateEvent(text_delta=mllm_pb2.TextDelta(text=words, tokens=tokens))


async def test_a_history_with_several_images_is_read(
    gateway: LiveGateway, client: openai.AsyncOpenAI, png: bytes
) -> None:
    jpeg = encode_picture("JPEG")
    messages: Any = [
        {"role": "developer", "content": "Be brief."},
        *asked(png, words="What is this?"),
        {"role": "assistant", "content": "A dog."},
        *asked(jpeg, png, words="And these?"),
    ]

    completion = await client.chat.completions.create(model=MODEL, messages=messages)

    choice = completion.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", "Here is the dog.")
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert choice.message.tool_calls is None
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (30, 9)
    details: Any = completion.usage.prompt_tokens_details
    assert details.image_tokens == 16
    [request] = gateway.workers.mllm.generate_requests
    assert [message.role for message in request.messages] == [
        mllm_pb2.ROLE_SYSTEM,
        mllm_pb2.ROLE_USER,
        mllm_pb2.ROLE_ASSISTANT,
        mllm_pb2.ROLE_USER,
    ]
    kinds = [[part.WhichOneof("part") for part in message.parts] for message in request.messages]
    assert kinds == [["text"], ["image", "text"], ["text"], ["image", "image", "text"]]


async def test_the_options_of_sampling_reach_the_model(
    gateway: LiveGateway, client: openai.AsyncOpenAI, png: bytes
) -> None:
    await client.chat.completions.create(
        model=MODEL,
        messages=asked(png),
        temperature=0.5,
        top_p=0.9,
        seed=0,
        stop=["\n\n", "END"],
        max_completion_tokens=11,
        n=1,
    )
    await client.chat.completions.create(model=MODEL, messages=asked(png), seed=-3, stop="END", max_tokens=12)
    await client.chat.completions.create(model=MODEL, messages=asked(png))

    full, old, bare = (request.sampling for request in gateway.workers.mllm.generate_requests)
    assert (full.temperature, round(full.top_p, 3), full.HasField("seed"), full.seed) == (0.5, 0.9, True, 0)
    assert (list(full.stop), full.max_new_tokens) == (["\n\n", "END"], 11)
    assert (list(old.stop), old.max_new_tokens, old.seed) == (["END"], 12, 2**64 - 3)
    assert not bare.HasField("seed")
    assert not bare.HasField("top_log_probabilities")


async def test_a_stream_ends_with_its_usage(gateway: LiveGateway, client: openai.AsyncOpenAI, png: bytes) -> None:
    gateway.workers.detection.script = find_one_object_a_group
    stream = await client.chat.completions.create(
        model=MODEL, messages=asked(png), stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]

    *parts, total = chunks
    assert all(part.usage is None and len(part.choices) == 1 for part in parts)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == "Here is the dog."
    assert [part.choices[0].finish_reason for part in parts if part.choices[0].finish_reason] == ["stop"]
    assert total.choices == []
    assert total.usage is not None
    assert total.usage.total_tokens == 39

    plain = await client.chat.completions.create(model=MODEL, messages=asked(png), stream=True)
    assert all([chunk.usage is None and chunk.choices async for chunk in plain])


async def test_log_probabilities_are_those_of_text_and_routing_tokens(
    gateway: LiveGateway, client: openai.AsyncOpenAI, png: bytes
) -> None:
    gateway.workers.mllm.rounds = [
        [
            written("狗", token("狗", -0.5, "猫")),
            written("", token("[DET]", -0.25, "[SEG]")),
            group("狗", 0),
            written(".", token(".", -1.0)),
            *ending(),
        ]
    ]

    completion = await client.chat.completions.create(model=MODEL, messages=asked(png), logprobs=True, top_logprobs=2)
    stream = await client.chat.completions.create(
        model=MODEL, messages=asked(png), logprobs=True, top_logprobs=2, stream=True
    )
    streamed = []
    async for chunk in stream:
        for choice in chunk.choices:
            streamed += (choice.logprobs.content or []) if choice.logprobs is not None else []

    reported = completion.choices[0].logprobs
    assert reported is not None
    assert reported.content is not None
    dog, routed, stop = reported.content
    assert (dog.token, dog.logprob, dog.bytes) == ("狗", -0.5, list("狗".encode()))
    assert (routed.token, routed.logprob, routed.bytes) == ("[DET]", -0.25, None)
    assert [(other.token, other.logprob) for other in routed.top_logprobs] == [("[DET]", -0.25), ("[SEG]", -1.25)]
    assert stop.token == "."  # noqa: S105
    assert [entry.model_dump() for entry in streamed] == [entry.model_dump() for entry in reported.content]
    assert {request.sampling.top_log_probabilities for request in gateway.workers.mllm.generate_requests} == {2}


async def test_log_probabilities_need_no_alternatives(
    gateway: LiveGateway, client: openai.AsyncOpenAI, png: bytes
) -> None:
    completion = await client.chat.completions.create(model=MODEL, messages=asked(png), logprobs=True)

    assert completion.choices[0].logprobs is not None
    assert completion.choices[0].logprobs.content == []
    [request] = gateway.workers.mllm.generate_requests
    assert request.sampling.HasField("top_log_probabilities")


IGNORED: list[dict[str, Any]] = [
    {"user": "someone"},
    {"safety_identifier": "someone"},
    {"metadata": {"topic": "dogs"}},
    {"service_tier": "auto"},
    {"prompt_cache_key": "k", "prompt_cache_retention": "24h", "prompt_cache_options": {"mode": "implicit"}},
    {"prediction": {"type": "content", "content": "A dog."}},
    {"reasoning_effort": "low", "verbosity": "low"},
    {"frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}, "store": False, "modalities": ["text"]},
    {"response_format": {"type": "text"}, "tool_choice": "auto", "parallel_tool_calls": False},
    {"stream_options": {"include_obfuscation": False}, "stream": True},
]


@pytest.mark.parametrize("options", IGNORED, ids=lambda options: next(iter(options)))
async def test_what_changes_nothing_here_is_ignored(
    gateway: LiveGateway, client: openai.AsyncOpenAI, png: bytes, options: dict[str, Any]
) -> None:
    await client.chat.completions.create(model=MODEL, messages=asked(png), **options)

    assert gateway.workers.mllm.generate_requests


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "n"),
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"presence_penalty": -0.5}, "presence_penalty"),
    ({"logit_bias": {"50256": -100}}, "logit_bias"),
    ({"store": True}, "store"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"moderation": {"model": "omni"}}, "moderation"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"function_call": {"name": "f"}}, "function_call"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"top_logprobs": 3}, "logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"extra_body": {"best_of": 3}}, "best_of"),
]


@pytest.mark.parametrize(("options", "name"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
async def test_what_it_cannot_do_is_refused_by_name(
    gateway: LiveGateway, client: openai.AsyncOpenAI, png: bytes, options: dict[str, Any], name: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=name) as refused:
        await client.chat.completions.create(model=MODEL, messages=asked(png), **options)

    assert refused.value.code in ("unsupported_parameter", "conflicting_fields", "invalid_request")
    assert not gateway.workers.mllm.generate_requests


async def test_parts_that_no_model_here_reads_are_refused_by_name(client: openai.AsyncOpenAI) -> None:
    sound = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
    content: Any = [sound, {"type": "text", "text": "What is it?"}]

    with pytest.raises(openai.BadRequestError, match="input_audio"):
        await client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}])


async def test_models_are_listed_and_retrieved(client: openai.AsyncOpenAI) -> None:
    listed = [model async for model in client.models.list()]
    found = await client.models.retrieve(MODEL)

    assert [model.id for model in listed] == [MODEL]
    assert (found.id, found.object, found.owned_by) == (MODEL, "model", "superlink")
    with pytest.raises(openai.NotFoundError) as unknown:
        await client.models.retrieve("gpt-6")
    assert unknown.value.code == "unknown_model"


async def test_images_are_drawn_and_edited(gateway: LiveGateway, client: openai.AsyncOpenAI, png: bytes) -> None:
    gateway.workers.diffusion.script = lambda request: [made_images(*[png] * max(1, request.diffusion.count))]
    drawn = await client.images.generate(
        model=MODEL, prompt="a cat", n=2, size="128x128", response_format="b64_json", quality="low", user="someone"
    )
    edited = await client.images.edit(model=MODEL, image=("scene.png", png), prompt="make it blue")

    assert drawn.data is not None
    assert [image.b64_json for image in drawn.data] == [data_url(png).partition(",")[2]] * 2
    assert drawn.usage is not None
    assert edited.data is not None
    assert edited.data[0].b64_json
    generation, edit = gateway.workers.diffusion.requests
    assert (generation.diffusion.count, generation.diffusion.width) == (2, 128)
    assert edit.image.encoded == png


async def test_a_drawing_is_streamed(gateway: LiveGateway, client: openai.AsyncOpenAI, png: bytes) -> None:
    gateway.workers.diffusion.script = lambda request: [progress(1, 2), made_images(png)]

    stream = await client.images.generate(model=MODEL, prompt="a cat", stream=True, partial_images=1)

    events = [event async for event in stream]
    kinds: list[str] = [event.type for event in events]
    assert kinds[-1] == "image_generation.completed"
    assert getattr(events[-1], "b64_json", "") == data_url(png).partition(",")[2]


@pytest.mark.parametrize(
    "options",
    [
        {"response_format": "url"},
        {"output_format": "webp"},
        {"background": "transparent"},
        {"style": "vivid"},
        {"extra_body": {"frame_count": 3}},
        {"extra_body": {"svg": {"model": "x"}}},
    ],
)
async def test_drawings_that_it_cannot_make_are_refused_by_name(
    gateway: LiveGateway, client: openai.AsyncOpenAI, options: dict[str, Any]
) -> None:
    name = next(iter(options.get("extra_body", options)))
    with pytest.raises(openai.BadRequestError, match=name):
        await client.images.generate(model=MODEL, prompt="a cat", **options)
    assert not gateway.workers.diffusion.requests
