"""The engine: joining, leaving, limits, deadlines, failures and the end."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator

import grpc
import pytest
import torch

from services.mllm.batch import AnswerEvent, FinishEvent, FinishReason, TextEvent
from services.mllm.conversation import ImagePart, Rendered, RoutedPhrase, Text, Turn, fast_path, render
from services.mllm.engine import Engine
from services.mllm.jobs import ImageInput, Times
from services.mllm.model import Mllm
from services.mllm.sampling import Sampling
from services.mllm.tokenizer import MllmTokenizer
from services.runtime.metrics import WorkerMetrics
from services.runtime.model_thread import ModelThread
from superlink.errors import SuperlinkError
from superlink.profile import BatchLimits

LONG = Sampling(temperature=5.0, seed=7, max_new_tokens=400)


class Bench:
    """An engine over the small model, and what it measures."""

    def __init__(self, model: Mllm, tokenizer: MllmTokenizer, limits: BatchLimits) -> None:
        self.metrics = WorkerMetrics("mllm")
        self.thread = ModelThread(1)
        self.engine = Engine(model, tokenizer, self.thread, limits, self.metrics)
        self._tokenizer = tokenizer
        self._count = model.config.tokens_per_tile
        # Nothing ends an answer but its length.
        bias = self.engine._side._batch._allowed._bias
        bias[:, tokenizer.im_end_id] = bias[:, tokenizer.observe_id] = -math.inf

    def prompt(self, question: str) -> Rendered:
        return render([Turn("user", (ImagePart(0), Text(question)))], self._tokenizer, [self._count], True)

    def links(self, *phrases: str) -> Rendered:
        return render(
            fast_path([RoutedPhrase("[DET]", phrase) for phrase in phrases]), self._tokenizer, [self._count], False
        )

    def answer(
        self, sampling: Sampling, deadline: float = math.inf, key: str = "a"
    ) -> AsyncIterator[AnswerEvent | Times]:
        return self.engine.generate(self.prompt("Find the dog."), [picture(key)], sampling, deadline)

    async def text(self, sampling: Sampling, key: str = "a") -> str:
        return "".join([event.text async for event in self.answer(sampling, key=key) if isinstance(event, TextEvent)])

    def outcomes(self, outcome: str) -> float:
        return self.metrics.value("superlink_worker_requests_total", outcome=outcome)


def picture(key: str) -> ImageInput:
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(len(key)))
    return ImageInput(key, pixels)


@contextlib.asynccontextmanager
async def running(model: Mllm, tokenizer: MllmTokenizer, **limits: float) -> AsyncIterator[Bench]:
    bench = Bench(model, tokenizer, BatchLimits(**limits))
    bench.engine.start()
    yield bench
    await bench.engine.close()
    bench.thread.close()


@pytest.fixture
async def bench(model: Mllm, tokenizer: MllmTokenizer) -> AsyncIterator[Bench]:
    async with running(model, tokenizer, max_batch_size=3, max_queue_size=4) as one:
        yield one


async def test_an_answer_ends_with_its_times_and_its_reason(bench: Bench) -> None:
    events = [event async for event in bench.answer(Sampling(max_new_tokens=5))]
    times, finish = events[-2:]
    assert isinstance(times, Times)
    assert times.compute_s > 0
    assert finish == FinishEvent(FinishReason.LENGTH, 5)
    assert bench.outcomes("completed") == 1


async def test_more_requests_than_rows_are_all_answered_as_if_alone(bench: Bench) -> None:
    samplings = [Sampling(temperature=3.0, seed=seed, max_new_tokens=5 * seed) for seed in range(1, 6)]
    alone = [await bench.text(sampling) for sampling in samplings]
    tasks = [asyncio.create_task(bench.text(sampling)) for sampling in samplings[:3]]
    await asyncio.sleep(0.01)
    tasks += [asyncio.create_task(bench.text(sampling)) for sampling in samplings[3:]]
    assert await asyncio.gather(*tasks) == alone


async def test_the_fast_path_runs_beside_long_answers(bench: Bench) -> None:
    writing = asyncio.create_task(bench.text(LONG))
    await asyncio.sleep(0.02)
    linked = await asyncio.gather(
        bench.engine.link(bench.links("dog"), [picture("a")], "detection"),
        bench.engine.link(bench.links("dog", "cat"), [picture("bb")], "detection"),
    )
    assert not writing.done()
    assert [tuple(one.embeddings.shape) for one in linked] == [(1, 24), (2, 24)]
    alone = await bench.engine.link(bench.links("dog", "cat"), [picture("bb")], "detection")
    torch.testing.assert_close(linked[1].embeddings, alone.embeddings, atol=1e-5, rtol=0)
    await writing


async def test_an_image_is_encoded_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    model = bench.engine._side._model
    encoded: list[int] = []
    plain = model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda pixels: encoded.append(len(pixels)) or plain(pixels))
    await asyncio.gather(*(bench.text(Sampling(max_new_tokens=2), key="same") for _ in range(3)))
    features = bench.engine.features.find("same")
    assert features is not None
    assert features.shape == (4, 48)
    known = ImageInput("same", None, features)
    await bench.engine.link(bench.links("dog"), [known], "detection")
    assert encoded == [1]


async def test_a_closed_answer_leaves_the_batch(bench: Bench) -> None:
    answer = bench.answer(LONG)
    await anext(answer)
    assert len(bench.engine._side._batch.rows) == 1
    await answer.aclose()
    for _ in range(100):
        if not bench.engine._side._batch.rows:
            break
        await asyncio.sleep(0.01)
    assert not bench.engine._side._batch.rows
    assert bench.outcomes("cancelled") == 1


async def test_a_cancelled_request_that_waits_never_runs(bench: Bench) -> None:
    busy = [asyncio.create_task(bench.text(LONG)) for _ in range(3)]
    await asyncio.sleep(0.02)
    waiting = asyncio.create_task(bench.text(LONG))
    await asyncio.sleep(0.01)
    waiting.cancel()
    assert all([await task for task in busy])
    assert bench.outcomes("cancelled") == 1
    assert bench.outcomes("completed") == 3


async def test_a_full_queue_says_when_to_come_back(bench: Bench) -> None:
    tasks = [asyncio.create_task(bench.text(LONG)) for _ in range(3)]
    await asyncio.sleep(0.02)
    tasks += [asyncio.create_task(bench.text(LONG)) for _ in range(4)]
    await asyncio.sleep(0.01)
    with pytest.raises(SuperlinkError) as caught:
        await bench.text(LONG)
    assert caught.value.code == "queue_full"
    assert caught.value.status is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.retry_after_ms > 0
    for task in tasks:
        task.cancel()


async def test_a_request_that_waited_too_long_is_refused_and_the_others_go_on(
    model: Mllm, tokenizer: MllmTokenizer
) -> None:
    async with running(model, tokenizer, max_batch_size=1, max_queue_s=0.2) as bench:
        writing = bench.answer(LONG)
        await anext(writing)
        with pytest.raises(SuperlinkError) as caught:
            await bench.text(LONG)
        assert (caught.value.code, caught.value.status) == ("queued_too_long", grpc.StatusCode.RESOURCE_EXHAUSTED)
        assert caught.value.retryable
        assert caught.value.retry_after_ms > 0
        assert bench.outcomes("overdue") == 1
        # It runs for longer than anybody may wait.
        assert await anext(writing)
        await writing.aclose()
        assert await bench.text(Sampling(max_new_tokens=5))


async def test_admission_is_bounded_before_images_are_decoded(bench: Bench) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(7):
            stack.enter_context(bench.engine.admission())
        with pytest.raises(SuperlinkError, match="Try again"), bench.engine.admission():
            pass
    with bench.engine.admission():
        pass


async def test_an_answer_that_runs_out_of_time_ends_with_an_error(bench: Bench) -> None:
    with pytest.raises(SuperlinkError) as caught:
        async for _ in bench.answer(LONG, time.monotonic() + 0.05):
            pass
    assert caught.value.status is grpc.StatusCode.DEADLINE_EXCEEDED
    with pytest.raises(SuperlinkError):
        await bench.engine.link(bench.links("dog"), [picture("a")], "detection", time.monotonic() - 1)
    assert bench.outcomes("expired") == 2


async def test_a_prompt_that_does_not_fit_never_runs(bench: Bench) -> None:
    prompt = bench.prompt("dog " * 300)
    with pytest.raises(SuperlinkError, match=r"takes \d+ tokens.*reads 512") as caught:
        async for _ in bench.engine.generate(prompt, [picture("a")], LONG):
            pass
    assert caught.value.code == "prompt_too_long"
    assert caught.value.status is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_broken_request_does_not_break_its_neighbours(bench: Bench) -> None:
    broken = ImageInput("broken", torch.zeros(1, 3, 7, 7))

    async def ask_broken() -> None:
        async for _ in bench.engine.generate(bench.prompt("?"), [broken], LONG):
            pass

    results = await asyncio.gather(
        bench.text(Sampling(max_new_tokens=3)),
        ask_broken(),
        bench.engine.link(bench.links("dog"), [broken], "detection"),
        bench.engine.link(bench.links("dog"), [picture("a")], "detection"),
        return_exceptions=True,
    )
    assert results[0]
    assert isinstance(results[1], SuperlinkError)
    assert results[1].status is grpc.StatusCode.INTERNAL
    assert isinstance(results[2], SuperlinkError)
    assert not isinstance(results[3], BaseException)
    assert bench.outcomes("failed") == 2


async def test_a_failed_step_gives_up_its_requests_and_serves_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = bench.answer(LONG)
    await anext(answer)

    def fail() -> None:
        raise RuntimeError("broken step")

    monkeypatch.setattr(bench.engine._side._batch, "step", fail)
    with pytest.raises(SuperlinkError, match="log says why"):
        async for _ in answer:
            pass
    monkeypatch.undo()
    assert await bench.text(Sampling(max_new_tokens=3))


async def test_closing_finishes_what_is_inside_and_refuses_what_comes(model: Mllm, tokenizer: MllmTokenizer) -> None:
    async with running(model, tokenizer, max_batch_size=2) as bench:
        tasks = [asyncio.create_task(bench.text(Sampling(max_new_tokens=20))) for _ in range(4)]
        await asyncio.sleep(0.01)
        closing = asyncio.create_task(bench.engine.close())
        await asyncio.sleep(0)
        with pytest.raises(SuperlinkError, match="shutting down"):
            await bench.text(LONG)
        assert all(await asyncio.gather(*tasks))
        await closing
