"""The worker behind real gRPC, in this process and as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image
from small_mllm import build_model

from services.mllm.answer import Phrase
from services.mllm.batch import GroupEvent
from services.mllm.messages import group_message
from services.mllm.model import Mllm
from services.mllm.service import MllmService
from services.mllm.tokenizer import MllmTokenizer
from services.runtime.metrics import WorkerMetrics
from services.runtime.tensors import tensor_from_message
from services.runtime.weights import WeightsError
from superlink.channels import open_channel
from superlink.errors import SuperlinkError, from_rpc_error
from superlink.profile import BatchLimits, ImageLimits, MllmSettings, Profile
from superlink.serving import GrpcServer
from superlink.v1 import mllm_pb2, mllm_pb2_grpc, types_pb2

ROOT = Path(__file__).resolve().parents[2]


def encoded(seed: int = 0, size: tuple[int, int] = (96, 80)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def picture(seed: int = 0, size: tuple[int, int] = (96, 80)) -> types_pb2.Image:
    data = encoded(seed, size)
    return types_pb2.Image(encoded=data, sha256=hashlib.sha256(data).hexdigest())


def question(
    text: str = "Find the dog.", images: int = 1, sampling: mllm_pb2.Sampling | None = None
) -> mllm_pb2.GenerateRequest:
    parts = [*(mllm_pb2.Part(image=picture(seed)) for seed in range(images)), mllm_pb2.Part(text=text)]
    return mllm_pb2.GenerateRequest(
        messages=[mllm_pb2.Message(role=mllm_pb2.ROLE_USER, parts=parts)],
        sampling=sampling or mllm_pb2.Sampling(max_new_tokens=12),
    )


@pytest.fixture(scope="module")
def weights(tokenizer: MllmTokenizer, model: Mllm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mllm")
    model.save(folder, tokenizer)
    return folder


def make_profile(weights: Path) -> Profile:
    settings = MllmSettings(
        address="127.0.0.1:0",
        weights=weights,
        threads=1,
        max_tiles=4,
        max_images=2,
        batch=BatchLimits(max_batch_size=4, max_queue_size=4),
    )
    return Profile(name="test", images=ImageLimits(max_image_pixels=1_000_000), mllm=settings, decoders={})


class Worker:
    def __init__(self, service: MllmService, metrics: WorkerMetrics, channel: grpc.aio.Channel) -> None:
        self.service = service
        self.metrics = metrics
        self.stub = mllm_pb2_grpc.MllmStub(channel)

    async def events(self, request: mllm_pb2.GenerateRequest) -> list[mllm_pb2.GenerateEvent]:
        return [event async for event in self.stub.Generate(request)]

    async def failure(self, request: mllm_pb2.GenerateRequest | mllm_pb2.LinkRequest) -> SuperlinkError:
        answered = self.stub.Link(request) if isinstance(request, mllm_pb2.LinkRequest) else self.events(request)
        with pytest.raises(grpc.RpcError) as caught:
            await answered
        return from_rpc_error(caught.value, "mllm")


@contextlib.asynccontextmanager
async def running(weights: Path) -> AsyncIterator[Worker]:
    metrics = WorkerMetrics("mllm")
    service = MllmService(make_profile(weights), metrics)
    server = GrpcServer("mllm", "127.0.0.1:0", drain_timeout_s=5)
    service.register(server)
    await server.start()
    await service.start()
    await server.set_ready(True)
    async with open_channel(server.address) as channel:
        yield Worker(service, metrics, channel)
    await server.stop()
    await service.close()


@pytest.fixture
async def worker(weights: Path) -> AsyncIterator[Worker]:
    async with running(weights) as started:
        yield started


async def test_it_describes_its_routes_and_limits(worker: Worker) -> None:
    described = await worker.stub.Describe(mllm_pb2.DescribeMllmRequest())
    assert described.name == "superlink-tiny"
    assert described.max_tokens == 512
    assert described.max_images == 2
    assert [(route.token, route.decoder, route.queries_per_group, route.link_width) for route in described.routes] == [
        ("[DET]", "detection", 4, 24),
        ("[GEN]", "diffusion", 6, 20),
    ]
    assert {route.adapter_version for route in described.routes} == {"tiny-1"}


@pytest.mark.parametrize("folds", [True, False])
async def test_capitals_read_like_small_letters_where_the_model_says_so(
    tokenizer: MllmTokenizer, folds: bool, tmp_path: Path
) -> None:
    build_model(tokenizer, fold_capitals=folds).save(tmp_path, tokenizer)
    links, answers = [], []
    async with running(tmp_path) as worker:
        for phrase in ("DOG", "dog"):
            request = mllm_pb2.LinkRequest(route="[DET]", phrases=[phrase], image=picture())
            linked = await worker.stub.Link(request)
            assert linked.groups[0].phrase == phrase
            links.append(linked.groups[0].embedding.data)
        for text in ("FIND THE DOG.", "find the dog."):
            events = await worker.events(question(text))
            answers.append([event.usage.prompt_tokens for event in events if event.HasField("usage")])

    assert (links[0] == links[1]) == folds
    assert (answers[0] == answers[1]) == folds


async def test_an_answer_streams_and_ends_with_usage_and_reason(worker: Worker) -> None:
    events = await worker.events(question())
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[-2:] == ["usage", "finish"]
    usage, finish = events[-2].usage, events[-1].finish
    # 96 x 80 pixels are nearest to one tile, which takes four tokens at 64 px.
    assert usage.image_tokens == 4
    assert usage.prompt_tokens > usage.image_tokens
    assert 0 < usage.completion_tokens <= 12
    assert finish.reason in (mllm_pb2.FINISH_REASON_LENGTH, mllm_pb2.FINISH_REASON_STOP)
    assert {timing.phase for timing in finish.timings} == {"prepare", "queue", "compute", "total"}


async def test_phrases_that_follow_are_linked_behind_the_others_with_their_own_routes(worker: Worker) -> None:
    following = [mllm_pb2.RoutedPhrase(route="[DET]", phrase="cat")]
    apart = await worker.stub.Link(
        mllm_pb2.LinkRequest(route="[DET]", phrases=["dog"], image=picture(), following=following)
    )
    together = await worker.stub.Link(mllm_pb2.LinkRequest(route="[DET]", phrases=["dog", "cat"], image=picture()))

    assert [(group.route, group.phrase) for group in apart.groups] == [("[DET]", "dog"), ("[DET]", "cat")]
    assert [group.embedding for group in apart.groups] == [group.embedding for group in together.groups]
    stray = mllm_pb2.LinkRequest(
        route="[DET]", phrases=["dog"], following=[mllm_pb2.RoutedPhrase(route="[GEN]", phrase="cat")]
    )
    assert (await worker.failure(stray)).code == "unknown_route"


async def test_the_fast_path_gives_one_link_a_phrase_in_order(worker: Worker) -> None:
    phrases = ["dog", "小狗", " the leftmost   dog "]
    response = await worker.stub.Link(mllm_pb2.LinkRequest(route="[DET]", phrases=phrases, image=picture()))
    assert [group.phrase for group in response.groups] == phrases
    for group in response.groups:
        assert group.route == "[DET]"
        assert group.embedding.dtype == "float32"
        assert list(group.embedding.shape) == [24]
        assert len(group.embedding.data) == 96
        assert not group.HasField("span")
    assert response.usage.completion_tokens == 0
    again = await worker.stub.Link(mllm_pb2.LinkRequest(route="[DET]", phrases=phrases, image=picture()))
    assert [group.embedding.data for group in again.groups] == [group.embedding.data for group in response.groups]


async def test_a_tool_that_draws_gets_one_vector_a_query_and_no_image(worker: Worker) -> None:
    phrase = "a cat beside a tree"
    response = await worker.stub.Link(mllm_pb2.LinkRequest(route="[GEN]", phrases=[phrase]))
    [group] = response.groups
    assert list(group.embedding.shape) == [6, 20]
    assert tensor_from_message(group.embedding, "it", [6, 20]).std(dim=0).max() > 0
    assert response.usage.image_tokens == 0


def test_a_written_group_keeps_the_shape_of_its_embedding() -> None:
    event = GroupEvent("[GEN]", Phrase("cat", 8, 11), torch.rand(6, 20), -0.5)
    message = group_message(event)
    assert torch.equal(tensor_from_message(message.embedding, "it", [6, 20]), event.embedding)


async def test_a_known_image_is_not_decoded_again(worker: Worker) -> None:
    for _ in range(3):
        await worker.events(question())
    assert worker.metrics.value("superlink_worker_feature_cache_lookups_total", result="miss") == 1
    assert worker.metrics.value("superlink_worker_feature_cache_lookups_total", result="hit") == 2


async def test_requests_at_once_get_the_answers_they_get_alone(worker: Worker) -> None:
    requests = [
        question(text, sampling=mllm_pb2.Sampling(temperature=4, seed=number + 1, max_new_tokens=20))
        for number, text in enumerate(("Find the dog.", "图中有小狗吗？", "How many?", "Detect: dog", "cat"))
    ]

    def visible(events: list[mllm_pb2.GenerateEvent]) -> str:
        return "".join(event.text_delta.text for event in events)

    alone = [visible(await worker.events(request)) for request in requests]
    together = await asyncio.gather(*(worker.events(request) for request in requests))
    assert [visible(events) for events in together] == alone


async def test_an_observation_goes_on_with_the_same_answer(worker: Worker) -> None:
    request = question()
    observation = mllm_pb2.Observation(groups=[mllm_pb2.ObservedGroup(route="[DET]", phrase="dog")])
    parts = [
        mllm_pb2.Part(routed_phrase=mllm_pb2.RoutedPhrase(route="[DET]", phrase="dog")),
        mllm_pb2.Part(observation=observation),
    ]
    request.messages.append(mllm_pb2.Message(role=mllm_pb2.ROLE_ASSISTANT, parts=parts))
    events = await worker.events(request)
    assert events[-1].WhichOneof("event") == "finish"
    shorter = await worker.events(question())
    assert events[-2].usage.prompt_tokens > shorter[-2].usage.prompt_tokens


async def test_an_answer_fits_its_schema_and_reports_its_tokens(worker: Worker) -> None:
    sampling = mllm_pb2.Sampling(temperature=3, seed=0, max_new_tokens=60, top_log_probabilities=2)
    request = question(sampling=sampling)
    request.json_schema = '{"type": "array", "items": {"enum": ["dog", "小狗", 3]}, "minItems": 2, "maxItems": 2}'

    events = await worker.events(request)

    deltas = [event.text_delta for event in events if event.HasField("text_delta")]
    text = "".join(delta.text for delta in deltas)
    assert len(json.loads(text)) == 2
    tokens = [token for delta in deltas for token in delta.tokens]
    assert b"".join(token.encoded for token in tokens).decode() == text
    assert all(0 < len(token.alternatives) <= 2 for token in tokens)
    assert events[-1].finish.reason == mllm_pb2.FINISH_REASON_STOP
    assert (await worker.events(request))[:-1] == events[:-1]


async def test_a_model_calls_only_the_tools_it_may(worker: Worker) -> None:
    batch = worker.service._engine._side._batch
    bias = batch._allowed._bias
    tokenizer = worker.service._tokenizer
    bias[:, tokenizer.phrase_start_id] += 30
    bias[:, tokenizer.phrase_end_id] += 30
    bias[:, list(tokenizer.route_of_id)] += 60
    request = question(sampling=mllm_pb2.Sampling(max_new_tokens=30))

    called = []
    for tools in (None, ["detection"], ["diffusion", "unknown"], []):
        if tools is not None:
            request.tools.CopyFrom(mllm_pb2.ToolSelection(decoders=tools))
        events = await worker.events(request)
        called.append({event.link_group.route for event in events if event.HasField("link_group")})

    assert called[0]
    assert called[1:] == [{"[DET]"}, {"[GEN]"}, set()]


async def test_a_cancelled_answer_frees_its_row(worker: Worker) -> None:
    call = worker.stub.Generate(question(sampling=mllm_pb2.Sampling(temperature=9, max_new_tokens=400)))
    await call.read()
    call.cancel()
    for _ in range(200):
        if worker.metrics.value("superlink_worker_requests_total", outcome="cancelled") == 1:
            break
        await asyncio.sleep(0.01)
    assert worker.metrics.value("superlink_worker_requests_total", outcome="cancelled") == 1
    assert await worker.events(question())


NO_WORDS = mllm_pb2.GenerateRequest(messages=[mllm_pb2.Message(role=mllm_pb2.ROLE_USER)])
NO_ROLE = mllm_pb2.GenerateRequest(messages=[mllm_pb2.Message(parts=[mllm_pb2.Part(text="hello")])])
WRONG_DIGEST = question(images=0)
WRONG_DIGEST.messages[0].parts.append(mllm_pb2.Part(image=types_pb2.Image(encoded=encoded(), sha256="0" * 64)))
NOT_AN_IMAGE = question(images=0)
NOT_AN_IMAGE.messages[0].parts.append(mllm_pb2.Part(image=types_pb2.Image(encoded=b"not an image")))
UNKNOWN_ROUTE = question()
UNKNOWN_ROUTE.messages.append(
    mllm_pb2.Message(
        role=mllm_pb2.ROLE_ASSISTANT,
        parts=[mllm_pb2.Part(routed_phrase=mllm_pb2.RoutedPhrase(route="[NO]", phrase="dog"))],
    )
)


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (mllm_pb2.GenerateRequest(), "empty_prompt", "no user message"),
        (NO_WORDS, "empty_prompt", "no words"),
        (question("  \n"), "empty_prompt", "no words"),
        (NO_ROLE, "invalid_message", "has no role"),
        (UNKNOWN_ROUTE, "unknown_route", r"\[NO\]"),
        (question("dog " * 400), "prompt_too_long", "reads 512"),
        (question(images=3), "too_many_images", "takes 2"),
        (question(sampling=mllm_pb2.Sampling(temperature=-1)), "invalid_sampling", "temperature"),
        (question(sampling=mllm_pb2.Sampling(top_p=1.5)), "invalid_sampling", "top_p"),
        (
            mllm_pb2.GenerateRequest(messages=question().messages, json_schema='{"uniqueItems": true}'),
            "unsupported_schema",
            "uniqueItems",
        ),
        (NOT_AN_IMAGE, "unsupported_image", "not an image"),
        (WRONG_DIGEST, "image_digest_mismatch", "SHA-256"),
        (mllm_pb2.LinkRequest(route="[NO]", phrases=["dog"], image=picture()), "unknown_route", r"knows \[DET\]"),
        (mllm_pb2.LinkRequest(route="[DET]", image=picture()), "empty_phrase", "at least one"),
        (mllm_pb2.LinkRequest(route="[DET]", phrases=["dog", " "], image=picture()), "empty_phrase", "none empty"),
        (mllm_pb2.LinkRequest(route="[DET]", phrases=["dog"] * 99, image=picture()), "prompt_too_long", "512"),
        (
            mllm_pb2.LinkRequest(route="[DET]", phrases=["dog"], image=picture(size=(2000, 600))),
            "image_too_large",
            "pixels",
        ),
    ],
)
async def test_bad_requests_are_refused_with_a_reason(
    worker: Worker, request_: mllm_pb2.GenerateRequest | mllm_pb2.LinkRequest, code: str, text: str
) -> None:
    error = await worker.failure(request_)
    assert error.status is grpc.StatusCode.INVALID_ARGUMENT
    assert error.code == code
    assert error.service == "mllm"
    assert not error.retryable
    with pytest.raises(SuperlinkError, match=text):
        raise error
    assert await worker.events(question())


async def test_missing_weights_say_how_to_get_them(tmp_path: Path) -> None:
    service = MllmService(make_profile(tmp_path / "nowhere"), WorkerMetrics("mllm"))
    with pytest.raises(WeightsError, match=r"nowhere.*superlink train"):
        await service.start()
    await service.close()


@pytest.fixture(scope="module")
def process(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    profile = tmp_path_factory.mktemp("profile") / "small.yaml"
    mllm = {"address": address, "weights": str(weights), "threads": 1}
    profile.write_text(yaml.safe_dump({"name": "small", "mllm": mllm, "decoders": {}}))
    command = [sys.executable, "-m", "services.mllm.service", "--profile", str(profile)]
    with subprocess.Popen(command, cwd=ROOT) as started:
        yield started, address
        started.kill()


async def test_the_process_serves_and_ends_in_order(process: tuple[subprocess.Popen[bytes], str]) -> None:
    started, address = process
    async with open_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        async with asyncio.timeout(40):
            while True:
                try:
                    state = await health.Check(health_pb2.HealthCheckRequest(service="superlink.v1.Mllm"))
                    if state.status == health_pb2.HealthCheckResponse.SERVING:
                        break
                except grpc.RpcError:
                    assert started.poll() is None
                await asyncio.sleep(0.1)
        stub = mllm_pb2_grpc.MllmStub(channel)
        linked = await stub.Link(mllm_pb2.LinkRequest(route="[DET]", phrases=["dog"], image=picture()))
        assert len(linked.groups) == 1
        call = stub.Generate(question(sampling=mllm_pb2.Sampling(temperature=9, seed=1, max_new_tokens=300)))
        last = await call.read()
        started.send_signal(signal.SIGTERM)
        while (event := await call.read()) is not grpc.aio.EOF:
            last = event
        assert last.WhichOneof("event") == "finish"
    assert await asyncio.to_thread(started.wait, 20) == 0


def marked(*regions: types_pb2.Region, images: int = 1) -> mllm_pb2.GenerateRequest:
    request = question("What is this?", images)
    request.messages[0].parts.extend(mllm_pb2.Part(region=region) for region in regions)
    return request


def boxed(x1: float, y1: float, x2: float, y2: float) -> types_pb2.Region:
    return types_pb2.Region(box=types_pb2.Box(x1=x1, y1=y1, x2=x2, y2=y2))


async def test_a_region_is_read_and_remembered(worker: Worker) -> None:
    def told(events: list[mllm_pb2.GenerateEvent]) -> tuple[str, int]:
        words = "".join(event.text_delta.text for event in events)
        return words, next(event.usage.prompt_tokens for event in events if event.HasField("usage"))

    plain = told(await worker.events(question("What is this?")))
    first = told(await worker.events(marked(boxed(10, 10, 40, 40), boxed(0, 0, 96, 80))))
    again = told(await worker.events(marked(boxed(10, 10, 40, 40), boxed(0, 0, 96, 80))))

    assert first == again
    assert first[1] > plain[1]
    # The image and both regions.
    assert len(worker.service._engine.features) == 3


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (marked(boxed(0, 0, 97, 80)), "region_outside_image"),
        (marked(types_pb2.Region()), "empty_region"),
        (marked(boxed(1, 1, 2, 2), images=0), "region_without_image"),
        (marked(*[boxed(1, 1, 2, 2)] * 17), "too_many_regions"),
    ],
)
async def test_marks_that_mean_nothing_are_refused(
    worker: Worker, request_: mllm_pb2.GenerateRequest, code: str
) -> None:
    error = await worker.failure(request_)

    assert (error.code, error.status) == (code, grpc.StatusCode.INVALID_ARGUMENT)


async def test_a_model_without_visual_prompts_says_so(tokenizer: MllmTokenizer, tmp_path: Path) -> None:
    bare = MllmTokenizer.train(["Find the dog.", "What is this?"] * 20, 320, tokenizer.routes)
    file = tmp_path / "tokenizer.json"
    build_model(bare, region_token_id=None).save(tmp_path, bare)
    # What a release before visual prompts wrote: the tokens are ordinary text there.
    file.write_text(file.read_text().replace('"<region>"', '"<other>"'))
    async with running(tmp_path) as worker:
        error = await worker.failure(marked(boxed(10, 10, 40, 40)))

    assert error.code == "unsupported_region"
