"""The half of the engine that lives in the model thread: one call is one iteration."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import grpc
import torch
from torch import Tensor

from services.mllm.batch import AnswerEvent, Prompt, Row, RunningBatch, link_teacher_forced
from services.mllm.jobs import GenerateJob, ImageInput, Job, LinkJob, RegionInput
from services.mllm.model import Mllm
from services.mllm.region_encoder import RegionBatch
from services.mllm.sampling import Sampling
from services.mllm.tokenizer import MllmTokenizer
from superlink.errors import SuperlinkError

logger = logging.getLogger(__name__)

# Tiles that go through the vision tower at once; more would only cost memory.
TILES_PER_PASS = 32

AnyJob = TypeVar("AnyJob", bound=Job)


@dataclass
class Outcome:
    """What one iteration brought."""

    events: list[tuple[GenerateJob, list[AnswerEvent]]] = field(default_factory=list)
    links: list[tuple[LinkJob, Tensor]] = field(default_factory=list)
    failures: list[tuple[Job, SuperlinkError]] = field(default_factory=list)


class ModelSide:
    """Encodes images, answers the fast path, prefills who joins and steps the running batch."""

    def __init__(
        self, model: Mllm, tokenizer: MllmTokenizer, max_rows: int, keep_features: Callable[[str, Tensor], None]
    ) -> None:
        """``keep_features`` is given the features of every image and region under its key."""
        self._model = model
        self._tokenizer = tokenizer
        self._keep_features = keep_features
        self._batch = RunningBatch(model, tokenizer, max_rows)
        self._jobs: dict[Row, GenerateJob] = {}

    def iterate(
        self, links: Sequence[LinkJob], joining: Sequence[GenerateJob], leaving: Sequence[GenerateJob]
    ) -> Outcome:
        """Let ``leaving`` go, step those who run, answer ``links`` and let ``joining`` in."""
        outcome = Outcome()
        with torch.inference_mode():
            for job in leaving:
                if job.row is not None:
                    self._batch.leave(job.row)
                    self._detach(job)
            if self._batch.rows:
                self._step(outcome)
            self._link(links, outcome)
            self._join(joining, outcome)
        return outcome

    def _step(self, outcome: Outcome) -> None:
        try:
            results = self._batch.step()
        except Exception as error:
            for job in list(self._jobs.values()):
                job.context.copy().run(logger.error, "a decode step failed; the request is given up", exc_info=error)
                self._detach(job)
                outcome.failures.append((job, _internal_error()))
            self._batch.clear()
            return
        for row, events in results:
            job = self._jobs[row]
            _report(job, row, events, outcome)
            if row.finished:
                self._detach(job)

    def _join(self, jobs: Sequence[GenerateJob], outcome: Outcome) -> None:
        if not jobs:
            return
        rows_before = len(self._batch.rows)
        try:
            results = self._batch.join([self._prompt(job, job.sampling) for job in self._marked(self._encoded(jobs))])
        except Exception:
            del self._batch.rows[rows_before:]
            if len(jobs) == 1:
                jobs[0].context.copy().run(logger.exception, "a prefill failed")
                outcome.failures.append((jobs[0], _internal_error()))
                return
            # One request's fault must not become its neighbours': let them in one by one.
            for job in jobs:
                self._join([job], outcome)
            return
        for job, (row, events) in zip(jobs, results, strict=True):
            _report(job, row, events, outcome)
            if not row.finished:
                job.row = row
                self._jobs[row] = job

    def _link(self, jobs: Sequence[LinkJob], outcome: Outcome) -> None:
        if not jobs:
            return
        try:
            prompts = [self._prompt(job, Sampling()) for job in self._encoded(jobs)]
            embeddings = link_teacher_forced(self._model, self._tokenizer, prompts, [job.decoder for job in jobs])
        except Exception:
            if len(jobs) == 1:
                jobs[0].context.copy().run(logger.exception, "a fast-path request failed")
                outcome.failures.append((jobs[0], _internal_error()))
                return
            for job in jobs:
                self._link([job], outcome)
            return
        outcome.links.extend(zip(jobs, embeddings, strict=True))

    def _detach(self, job: GenerateJob) -> None:
        if job.row is not None:
            del self._jobs[job.row]
            job.row = None

    def _encoded(self, jobs: Sequence[AnyJob]) -> Sequence[AnyJob]:
        """The same jobs, with features in every image; those that are new are encoded together, each once."""
        pixels = {
            image.key: image.pixels
            for job in jobs
            for image in job.images
            if image.features is None and image.pixels is not None
        }
        if not pixels:
            return jobs
        device = self._model.internvl.lm_head.weight.device
        tiles = torch.cat(list(pixels.values()))
        passes = torch.split(tiles, TILES_PER_PASS)
        encoded = torch.cat([self._model.encode_images(some.to(device)) for some in passes])
        by_image = torch.split(encoded, [len(own) for own in pixels.values()])
        # (tiles, tokens a tile, hidden) -> (tokens, hidden)
        made = {key: features.flatten(0, 1) for key, features in zip(pixels, by_image, strict=True)}
        for key, features in made.items():
            self._keep_features(key, features)
        for job in jobs:
            job.images = tuple(
                ImageInput(image.key, None, made[image.key]) if image.features is None else image
                for image in job.images
            )
        return jobs

    def _marked(self, jobs: Sequence[AnyJob]) -> Sequence[AnyJob]:
        """The same jobs, with features in every region; those that are new are encoded together, each once."""
        new = {region.key: region for job in jobs for region in job.regions if region.features is None}
        if not new:
            return jobs
        device = self._model.internvl.lm_head.weight.device
        keys, made = list(new), {}
        for start in range(0, len(keys), TILES_PER_PASS):
            some = [new[key] for key in keys[start : start + TILES_PER_PASS]]
            tower = self._model.tower(
                torch.stack([region.pixels for region in some if region.pixels is not None]).to(device)
            )
            batch = RegionBatch.of([region.view for region in some if region.view is not None], range(len(some)))
            embedded = self._model.encode_regions(tower, batch.to(device))
            for region, features in zip(some, embedded.split(1), strict=True):
                made[region.key] = features.clone()
                self._keep_features(region.key, made[region.key])
        for job in jobs:
            job.regions = tuple(
                RegionInput(region.key, None, None, made[region.key]) if region.features is None else region
                for region in job.regions
            )
        return jobs

    @staticmethod
    def _prompt(job: Job, sampling: Sampling) -> Prompt:
        features = [image.features for image in job.images if image.features is not None]
        marked = [region.features for region in job.regions if region.features is not None]
        return Prompt(
            job.rendered,
            torch.cat(features) if features else None,
            sampling,
            torch.cat(marked) if marked else None,
            job.grammar if isinstance(job, GenerateJob) else None,
        )


def _report(job: GenerateJob, row: Row, events: list[AnswerEvent], outcome: Outcome) -> None:
    outcome.events.append((job, events))
    if row.failure is not None:
        outcome.failures.append((job, row.failure))


def _internal_error() -> SuperlinkError:
    return SuperlinkError(
        "internal", "The model failed on this request; the service's log says why.", status=grpc.StatusCode.INTERNAL
    )
