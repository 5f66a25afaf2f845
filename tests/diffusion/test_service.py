"""The worker over real gRPC, with tiny untrained networks."""

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio
import torch
from PIL import Image

from services.diffusion.configuration import (
    AutoencoderConfig,
    DenoiserConfig,
    DiffusionConfig,
    MapperConfig,
    SketcherConfig,
)
from services.diffusion.model import Diffuser
from services.diffusion.service import NAME, DiffusionService
from services.runtime.metrics import WorkerMetrics
from superlink.channels import open_channel
from superlink.errors import SuperlinkError, from_rpc_error
from superlink.profile import BatchLimits, MllmSettings, Profile, WorkerSettings
from superlink.serving import GrpcServer
from superlink.v1 import decoder_pb2, decoder_pb2_grpc, types_pb2

# One worker for all tests that do without limits of their own: loading takes longer than drawing.
pytestmark = pytest.mark.asyncio(loop_scope="module")

QUERIES, WIDTH, SIDE = 4, 16, 32


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("diffusion")
    config = DiffusionConfig(
        adapter_version="a1",
        queries_per_group=QUERIES,
        link_width=WIDTH,
        vocabulary=6,
        image_side=SIDE,
        max_groups=2,
        default_steps=2,
        autoencoder=AutoencoderConfig(latent_channels=4, channels=(16, 16, 16), decoder_blocks=(1, 1, 1)),
        mapper=MapperConfig(width=16, heads=2, queries=3),
        sketcher=SketcherConfig(things=(1, 3), hidden=8, width=8, channels=8),
        denoiser=DenoiserConfig(channels=(16, 32), attention=(False, True), heads_width=16),
    )
    Diffuser(config).save(folder)
    return folder


class Worker:
    def __init__(self, metrics: WorkerMetrics, channel: grpc.aio.Channel) -> None:
        self.metrics = metrics
        self.stub = decoder_pb2_grpc.DecoderStub(channel)

    async def events(self, request: decoder_pb2.DecodeRequest, timeout_s: float = 60) -> list[decoder_pb2.DecodeEvent]:
        return [event async for event in self.stub.Decode(request, timeout=timeout_s)]

    async def images(self, request: decoder_pb2.DecodeRequest) -> list[np.ndarray]:
        made = (await self.events(request))[-1].images.images
        return [pixels_of(image) for image in made]

    async def failure(self, request: decoder_pb2.DecodeRequest, timeout_s: float = 60) -> SuperlinkError:
        with pytest.raises(grpc.RpcError) as caught:
            await self.events(request, timeout_s)
        return from_rpc_error(caught.value, NAME)

    async def until(self, outcome: str, count: float = 1) -> None:
        async with asyncio.timeout(30):
            while self.metrics.value("superlink_worker_requests_total", outcome=outcome) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(weights: Path, **limits: Any) -> AsyncIterator[Worker]:
    settings = WorkerSettings(address="127.0.0.1:0", weights=weights, threads=1, batch=BatchLimits(**limits))
    profile = Profile(name="test", mllm=MllmSettings(address="127.0.0.1:0", weights=weights), decoders={NAME: settings})
    metrics = WorkerMetrics(NAME)
    service = DiffusionService(profile, settings, metrics)
    server = GrpcServer(NAME, "127.0.0.1:0", drain_timeout_s=5)
    service.register(server)
    await server.start()
    await service.start()
    await server.set_ready(True)
    async with open_channel(server.address) as channel:
        yield Worker(metrics, channel)
    await server.stop()
    await service.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(weights: Path) -> AsyncIterator[Worker]:
    async with running(weights, max_wait_ms=300) as started:
        yield started


def pixels_of(image: types_pb2.GeneratedImage) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image.encoded))).astype(int)


def picture(width: int = 60, height: int = 40) -> types_pb2.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return types_pb2.Image(encoded=file.getvalue())


def request_to(route: str, *prompts: int, **options: Any) -> decoder_pb2.DecodeRequest:
    """One group with a random link embedding for each seed in ``prompts``; edits come with an image."""
    request = decoder_pb2.DecodeRequest(adapter_version="a1", diffusion=decoder_pb2.DiffusionOptions(**options))
    if route == "[EDIT]":
        request.image.CopyFrom(picture())
    for prompt in prompts:
        values = np.random.default_rng(prompt).standard_normal((QUERIES, WIDTH)).astype("<f4")
        tensor = types_pb2.Tensor(data=values.tobytes(), dtype="float32", shape=[QUERIES, WIDTH])
        request.groups.add(route=route, phrase=f"prompt {prompt}", embedding=tensor)
    return request


def draw(*prompts: int, **options: Any) -> decoder_pb2.DecodeRequest:
    return request_to("[GEN]", *prompts, **options)


def edit(*prompts: int, **options: Any) -> decoder_pb2.DecodeRequest:
    return request_to("[EDIT]", *prompts, **options)


async def test_it_describes_itself(worker: Worker) -> None:
    described = await worker.stub.Describe(decoder_pb2.DescribeRequest())
    assert (described.name, list(described.routes)) == (NAME, ["[GEN]", "[EDIT]"])
    assert (described.queries_per_group, described.link_width, described.takes_regions) == (QUERIES, WIDTH, True)


async def test_every_step_is_reported_before_the_image(worker: Worker) -> None:
    *steps, last = await worker.events(draw(1, steps=3))
    assert [(event.progress.done, event.progress.total) for event in steps] == [(1, 3), (2, 3), (3, 3)]
    [image] = last.images.images
    assert (image.width, image.height) == (SIDE, SIDE)
    assert {timing.phase for timing in last.timings} == {"prepare", "queue", "compute", "total"}


async def test_every_image_names_the_seed_that_makes_it_alone(worker: Worker) -> None:
    together = (await worker.events(draw(1, 2, seed=7, count=2)))[-1].images
    assert list(together.groups) == [0, 0, 1, 1]
    assert [image.seed for image in together.images] == [7, 8, 7, 8]
    for image, prompt in zip(together.images, (1, 1, 2, 2), strict=True):
        [alone] = await worker.images(draw(prompt, seed=image.seed))
        assert np.abs(alone - pixels_of(image)).max() <= 1


async def test_without_a_seed_images_differ_and_can_be_made_again(worker: Worker) -> None:
    one, other = [(await worker.events(draw(1)))[-1].images.images[0] for _ in range(2)]
    assert one.seed != other.seed
    again = (await worker.events(draw(1, seed=one.seed)))[-1].images.images[0]
    assert again.encoded == one.encoded


async def test_drawings_have_the_size_that_is_asked_for(worker: Worker) -> None:
    [image] = await worker.images(draw(1, width=64, height=48))
    assert image.shape == (48, 64, 3)


async def test_an_edit_has_its_sources_size_unless_another_is_asked_for(worker: Worker) -> None:
    [image] = await worker.images(edit(1))
    assert image.shape == (40, 60, 3)
    [image] = await worker.images(edit(1, width=32, height=64))
    assert image.shape == (64, 32, 3)


async def test_a_mark_changes_an_edit(worker: Worker) -> None:
    request = edit(1, seed=1)
    [unmarked] = await worker.images(request)
    request.groups[0].region.box.CopyFrom(types_pb2.Box(x1=2, y1=2, x2=30, y2=30))
    [marked] = await worker.images(request)
    assert not np.array_equal(unmarked, marked)


async def test_requests_of_one_kind_share_a_batch_and_others_do_not(worker: Worker) -> None:
    [alone] = await worker.images(draw(1, seed=1))
    batches = worker.metrics.value("superlink_worker_batch_size_count")
    requests = [draw(1, seed=1), draw(2, steps=3), draw(3), edit(4), draw(5, image_guidance=9.0), edit(6)]

    answers = await asyncio.gather(*(worker.images(request) for request in requests))

    assert [len(images) for images in answers] == [1] * 6
    assert np.abs(alone - answers[0][0]).max() <= 1
    # Two steps; three steps; edits. What only edits understand keeps no drawings apart.
    assert worker.metrics.value("superlink_worker_batch_size_count") - batches == 3


async def test_leaving_ends_the_work_within_a_step(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    sample = Diffuser.sample

    def counted(self: Diffuser, *arguments: Any) -> Any:
        *others, on_step = arguments

        def count(step: int, total: int) -> None:
            done.append(step)
            on_step(step, total)

        return sample(self, *others, count)

    monkeypatch.setattr(Diffuser, "sample", counted)
    async with running(weights, max_wait_ms=300) as worker:
        calls = [worker.stub.Decode(draw(seed, steps=100, count=4)) for seed in (1, 2)]
        for call in calls:
            assert (await call.read()).progress.done == 1
        calls[0].cancel()
        await worker.until("cancelled", 1)
        # The other one still waits: the batch goes on.
        seen = done[-1]
        while (await calls[1].read()).progress.done <= seen:
            pass
        calls[1].cancel()
        await worker.until("cancelled", 2)
        left_at = done[-1]
        await worker.images(draw(3, steps=1))
    assert left_at < 100
    # At most the step that was under way and one more, then the one of the request that came after.
    assert done[-1] == 1
    assert done[-2] <= left_at + 2


async def test_a_deadline_ends_a_drawing(worker: Worker) -> None:
    error = await worker.failure(draw(1, steps=100, width=512, height=512), timeout_s=1)
    assert error.status is grpc.StatusCode.DEADLINE_EXCEEDED
    await worker.until("expired")
    assert await worker.images(draw(1))


@pytest.mark.faults
async def test_more_requests_than_may_wait_are_refused(weights: Path) -> None:
    async with running(weights, max_batch_size=1, max_queue_size=1) as worker:
        first = worker.stub.Decode(draw(1, steps=100, count=4, width=256, height=256))
        await first.read()
        second = asyncio.create_task(worker.events(draw(2)))
        async with asyncio.timeout(10):
            while worker.metrics.value("superlink_worker_queue_size") < 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        error = await worker.failure(draw(3))
        first.cancel()
        assert (await second)[-1].HasField("images")
    assert (error.code, error.status) == ("queue_full", grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert error.retry_after_ms > 0


async def test_a_prefetch_is_answered_at_once(worker: Worker) -> None:
    [event] = await worker.events(decoder_pb2.DecodeRequest(adapter_version="a1", image=picture()))
    assert event.WhichOneof("event") is None


def without_image() -> decoder_pb2.DecodeRequest:
    request = edit(1)
    request.ClearField("image")
    return request


def marked_drawing() -> decoder_pb2.DecodeRequest:
    request = draw(1)
    request.groups[0].region.box.CopyFrom(types_pb2.Box(x2=3, y2=3))
    return request


def mixed() -> decoder_pb2.DecodeRequest:
    request = draw(1)
    request.groups.extend(edit(2).groups)
    return request


REFUSED = [
    (draw(1, steps=0), "invalid_option", "steps is 0; it must lie in 1..100"),
    (draw(1, steps=101), "invalid_option", "steps is 101"),
    (draw(1, guidance=31.0), "invalid_option", "guidance is 31; it must lie in 0..30"),
    (draw(1, guidance=float("nan")), "invalid_option", "guidance is nan"),
    (edit(1, image_guidance=-1.0), "invalid_option", "image_guidance is -1"),
    (draw(1, count=5), "invalid_option", "count is 5; it must lie in 1..4"),
    (draw(1, width=100), "invalid_option", "width is 100; it must be a multiple of 16 in 32..1024"),
    (draw(1, height=2048), "invalid_option", "height is 2048"),
    (draw(1, 2, 3), "too_many_groups", "at most 2"),
    (request_to("[DET]", 1), "unknown_route", "[GEN], [EDIT]"),
    (without_image(), "image_missing", "no image"),
    (marked_drawing(), "unsupported_region", "drawing"),
    (mixed(), "mixed_routes", "either draws or edits"),
]


async def test_what_it_cannot_do_is_refused(worker: Worker) -> None:
    for request, code, words in REFUSED:
        error = await worker.failure(request)
        assert (error.status, error.code) == (grpc.StatusCode.INVALID_ARGUMENT, code)
        assert words in error.message
    assert await worker.images(draw(1))
