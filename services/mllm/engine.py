"""Iteration-level batching: requests join and leave the running batch between decode steps.

The event loop queues, cancels and hands events out; the model thread computes. Each iteration is one visit to the model
thread: it steps everybody who runs, answers the fast-path requests that wait, and prefills those who join.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import TypeVar

import grpc
from torch import Tensor

from services.mllm.batch import AnswerEvent, FinishEvent
from services.mllm.conversation import Rendered
from services.mllm.jobs import GenerateJob, ImageInput, Job, Linked, LinkJob, RegionInput, Times
from services.mllm.json_grammar import JsonGrammar
from services.mllm.model import Mllm
from services.mllm.model_side import ModelSide
from services.mllm.sampling import Sampling
from services.mllm.tokenizer import MllmTokenizer
from services.runtime.feature_cache import FeatureCache
from services.runtime.metrics import WorkerMetrics
from services.runtime.model_thread import ModelThread
from services.runtime.refusals import queued_too_long, shutting_down
from superlink.errors import SuperlinkError, invalid_argument
from superlink.profile import BatchLimits
from superlink.telemetry import record_phase

AnyJob = TypeVar("AnyJob", bound=Job)


class Engine:
    """Answers requests with one model. Use it within one event loop."""

    def __init__(
        self,
        model: Mllm,
        tokenizer: MllmTokenizer,
        thread: ModelThread,
        limits: BatchLimits,
        metrics: WorkerMetrics,
        feature_cache_entries: int = 64,
    ) -> None:
        """``limits.max_batch_size`` rows run together; ``limits.max_queue_size`` requests may wait."""
        # Features [image tokens, hidden] by the key of ``ImageInput``, and [1, hidden] by that of ``RegionInput``.
        self.features: FeatureCache[Tensor] = FeatureCache(feature_cache_entries)
        self._max_tokens = model.config.max_tokens
        self._side = ModelSide(model, tokenizer, limits.max_batch_size, self.features.keep)
        self._thread = thread
        self._limits = limits
        self._metrics = metrics
        self._links: deque[LinkJob] = deque()
        self._generations: deque[GenerateJob] = deque()
        self._running: list[GenerateJob] = []
        # How long an answer usually takes, in seconds: what a refused caller is advised to wait.
        self._typical_s = 0.5
        # Requests inside, those whose images are still being decoded included.
        self._admitted = 0
        self._changed = asyncio.Event()
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to answer."""
        self._task = asyncio.create_task(self._run(), name="engine")

    async def close(self) -> None:
        """Refuse new requests, finish those inside, and stop."""
        self._closed = True
        self._changed.set()
        if self._task is not None:
            await self._task

    @contextlib.contextmanager
    def admission(self) -> Iterator[None]:
        """Hold a place in the worker while a request's images are decoded, before it can be queued.

        Raises SuperlinkError (RESOURCE_EXHAUSTED with a retry delay) when as many requests are inside as may wait and
        run.
        """
        if self._admitted >= self._limits.max_queue_size + self._limits.max_batch_size:
            raise self._overloaded(self._admitted)
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    async def link(
        self, rendered: Rendered, images: Sequence[ImageInput], decoder: str, deadline: float = math.inf
    ) -> Linked:
        """Link embeddings of a conversation that holds its answer already. Raises SuperlinkError."""
        self._check_length(len(rendered.input_ids))
        job = LinkJob(rendered, tuple(images), deadline, decoder=decoder)
        self._admit(self._links, job)
        try:
            return await job.done
        finally:
            self._release(job)

    async def generate(
        self,
        rendered: Rendered,
        images: Sequence[ImageInput],
        sampling: Sampling,
        deadline: float = math.inf,
        regions: Sequence[RegionInput] = (),
        grammar: JsonGrammar | None = None,
    ) -> AsyncGenerator[AnswerEvent | Times, None]:
        """Let the model go on from ``rendered``. ``Times`` and then the ``FinishEvent`` come last.

        ``grammar``, which is used up, holds the text to a schema; special tokens then never come.

        Closing the iterator takes the request out of the batch before the next step. Raises SuperlinkError.
        """
        # One token at least must fit behind the prompt.
        self._check_length(len(rendered.input_ids) + 1)
        job = GenerateJob(rendered, tuple(images), deadline, sampling=sampling, regions=tuple(regions), grammar=grammar)
        self._admit(self._generations, job)
        try:
            while True:
                events = await job.events.get()
                if isinstance(events, SuperlinkError):
                    raise events
                for event in events:
                    if isinstance(event, FinishEvent):
                        yield Times(job.started - job.arrived, time.monotonic() - job.started)
                        yield event
                        return
                    yield event
        finally:
            self._release(job)

    def _check_length(self, tokens: int) -> None:
        if tokens > self._max_tokens:
            raise invalid_argument(
                "prompt_too_long",
                f"The conversation takes {tokens} tokens, images included; this model reads {self._max_tokens}. "
                "Send fewer words, images or phrases.",
            )

    def _admit(self, queue: deque[AnyJob], job: AnyJob) -> None:
        if self._closed:
            raise shutting_down()
        if self._waiting >= self._limits.max_queue_size:
            raise self._overloaded(self._waiting)
        queue.append(job)
        self._signal()

    def _overloaded(self, ahead: int) -> SuperlinkError:
        self._metrics.count_request("rejected")
        return SuperlinkError(
            "queue_full",
            f"{ahead} requests are before this one, which is all that may. Try again after the delay.",
            status=grpc.StatusCode.RESOURCE_EXHAUSTED,
            retry_after_ms=self._retry_after_ms(ahead),
        )

    def _retry_after_ms(self, ahead: int) -> int:
        return math.ceil((1 + ahead / self._limits.max_batch_size) * self._typical_s * 1000)

    @property
    def _waiting(self) -> int:
        return len(self._links) + len(self._generations)

    def _release(self, job: Job) -> None:
        """The caller is gone, with or without its answer."""
        job.context.copy().run(_record, job)
        job.cancelled = True
        self._signal()

    def _signal(self) -> None:
        self._metrics.set_queue_size(self._waiting)
        self._changed.set()

    async def _run(self) -> None:
        while True:
            self._drop_unwanted()
            if self._links or self._generations or self._running:
                await self._iterate()
            elif self._closed:
                return
            else:
                self._changed.clear()
                await self._changed.wait()

    def _drop_unwanted(self) -> None:
        """Requests that were cancelled, ran out of time or waited too long never reach the model.

        Those that run will leave it, but for having waited.
        """
        now = time.monotonic()
        jobs: list[Job] = [*self._links, *self._generations, *self._running]
        for job in jobs:
            if job.cancelled:
                self._metrics.count_request("cancelled")
            elif job.deadline <= now:
                self._metrics.count_request("expired")
                job.cancelled = True
                job.fail(_out_of_time())
            elif not job.started and now - job.arrived >= self._limits.max_queue_s:
                self._metrics.count_request("overdue")
                job.cancelled = True
                job.fail(queued_too_long(self._limits.max_queue_s, self._retry_after_ms(self._waiting)))
        self._links = deque(job for job in self._links if not job.cancelled)
        self._generations = deque(job for job in self._generations if not job.cancelled)

    async def _iterate(self) -> None:
        links = _take(self._links, self._limits.max_batch_size)
        leaving = [job for job in self._running if job.cancelled]
        staying = len(self._running) - len(leaving)
        joining = _take(self._generations, self._limits.max_batch_size - staying)
        self._metrics.set_queue_size(self._waiting)
        started = time.monotonic()
        for job in (*links, *joining):
            job.started = started
            self._metrics.observe_queue_wait(started - job.arrived)
        outcome = await self._thread.run(self._side.iterate, links, joining, leaving)
        self._metrics.observe_batch(len(links) + len(joining) + staying, time.monotonic() - started, "iteration")
        for link_job, embeddings in outcome.links:
            link_job.answer(embeddings)
            self._metrics.count_request("completed")
        for generate_job, events in outcome.events:
            generate_job.events.put_nowait(events)
            if events and isinstance(events[-1], FinishEvent):
                self._typical_s += 0.1 * (time.monotonic() - generate_job.started - self._typical_s)
                self._metrics.count_request("completed")
        for failed, error in outcome.failures:
            failed.fail(error)
            self._metrics.count_request("failed")
        self._running = [job for job in (*self._running, *joining) if job.row is not None]


def _take(queue: deque[AnyJob], count: int) -> list[AnyJob]:
    return [queue.popleft() for _ in range(min(count, len(queue)))]


def _record(job: Job) -> None:
    """Where the time of a request went that ends now, as spans."""
    now = time.monotonic()
    record_phase("queue", job.arrived, (job.started or now) - job.arrived)
    if job.started:
        record_phase("compute", job.started, now - job.started)


def _out_of_time() -> SuperlinkError:
    return SuperlinkError(
        "deadline_exceeded",
        "The time for this request ran out before its answer was complete. Allow more time.",
        status=grpc.StatusCode.DEADLINE_EXCEEDED,
    )
