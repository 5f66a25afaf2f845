"""The diffusion worker: ``python -m services.diffusion.service --profile tiny``."""

from __future__ import annotations

import asyncio
import contextlib
import io
import sys
import time
from collections.abc import AsyncIterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from services.diffusion.jobs import DrawingJob, DrawingRequest, frame_region, read_request
from services.diffusion.layers import lay_over
from services.diffusion.model import Diffuser
from services.runtime.batcher import Batcher, Completed
from services.runtime.images import ImageExecutor, decode_image, image_digest
from services.runtime.links import read_links
from services.runtime.metrics import WorkerMetrics
from services.runtime.model_thread import ModelThread
from services.runtime.progress import ProgressReports
from services.runtime.regions import region_mask
from services.runtime.worker import Worker, decoder_settings, run_worker
from superlink.image_header import check_image_size
from superlink.profile import Profile, WorkerSettings, weights_folder
from superlink.served_calls import note
from superlink.serving import Context, GrpcServer, deadline_of
from superlink.telemetry import record_phase
from superlink.v1 import decoder_pb2, decoder_pb2_grpc, types_pb2

NAME = "diffusion"
# Edits of larger sources come back with this longer side: enlarging them further would add bytes and nothing to see.
LARGEST_EDIT = 2048


class EverybodyLeft(Exception):
    """Nobody waits for any image of the batch any more."""


class DiffusionService(Worker, decoder_pb2_grpc.DecoderServicer):
    """Draws and edits: validates requests, batches those of one kind, reports every step, and sends PNG files."""

    def __init__(self, profile: Profile, settings: WorkerSettings, metrics: WorkerMetrics) -> None:
        self._limits = profile.images
        self._settings = settings
        self._metrics = metrics
        self._images = ImageExecutor()
        self._thread = ModelThread(settings.threads)
        self._batcher: Batcher[DrawingJob, NDArray[np.uint8]] = Batcher(
            self._compute, self._thread, settings.batch, metrics
        )
        self._diffuser: Diffuser

    def register(self, server: GrpcServer) -> None:
        """Add ``superlink.v1.Decoder``."""
        server.add(decoder_pb2_grpc.add_DecoderServicer_to_server, self, "superlink.v1.Decoder")

    async def start(self) -> None:
        """Load the weights, draw and edit once. Raises WeightsError."""
        self._diffuser = await self._thread.run(Diffuser.load, weights_folder(self._settings))
        await self._thread.run(self._warm_up, ProgressReports())
        self._batcher.start()

    def drain(self) -> None:
        """Start each batch at once."""
        self._batcher.drain()

    async def close(self) -> None:
        """Stop the batcher and the threads."""
        await self._batcher.close()
        self._images.close()
        self._thread.close()

    async def Describe(  # noqa: N802 - the contract's name
        self,
        request: decoder_pb2.DescribeRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> decoder_pb2.DescribeResponse:
        """What this tool answers, in which width, and its limits."""
        spec = self._diffuser.spec
        return decoder_pb2.DescribeResponse(
            name=spec.name,
            version=spec.version,
            routes=spec.routes,
            link_width=spec.link_width,
            queries_per_group=spec.queries_per_group,
            adapter_version=spec.adapter_version,
            input_modes=[decoder_pb2.INPUT_MODE_LINK],
            max_groups=spec.max_groups,
            max_image_bytes=self._limits.max_image_bytes,
            max_image_pixels=self._limits.max_image_pixels,
            takes_regions=True,
        )

    async def Decode(  # noqa: N802 - the contract's name
        self, request: decoder_pb2.DecodeRequest, context: Context
    ) -> AsyncIterator[decoder_pb2.DecodeEvent]:
        """Answer one request: progress after every step, then the images and where the time went."""
        arrived = time.monotonic()
        note(groups=len(request.groups))
        spec = self._diffuser.spec
        links = read_links(request, spec, [spec.queries_per_group, spec.link_width])
        if not links:
            # A prefetch; what an edit sees of its source is cheap beside its steps, and nothing is kept.
            yield decoder_pb2.DecodeEvent()
            return
        wish = read_request(request, self._diffuser.config)
        with self._batcher.admission():
            reports = ProgressReports()
            job, source = await self._images.run(self._prepare, request, wish, links, reports)
            prepared = time.monotonic()
            self._metrics.observe_prepare(prepared - arrived)
            record_phase("prepare", arrived, prepared - arrived)
            submission = asyncio.create_task(
                self._batcher.submit(job, size_bytes=job.size_bytes, deadline=deadline_of(context), kind=wish.kind)
            )
            async with contextlib.aclosing(reports.until(submission)) as progress:
                async for done, total in progress:
                    yield decoder_pb2.DecodeEvent(progress=decoder_pb2.Progress(done=done, total=total))
            completed = submission.result()
            computed = time.monotonic()
            images = await self._images.run(_encode, completed.response, job.seeds, source, wish)
            record_phase("encode", computed, time.monotonic() - computed)
        note(images=len(images), steps=wish.options.steps)
        groups = [group for group in range(len(links)) for _ in wish.seeds]
        yield decoder_pb2.DecodeEvent(
            images=types_pb2.GeneratedImages(images=images, groups=groups),
            timings=self._timings(arrived, prepared - arrived, completed),
        )

    def _prepare(
        self, request: decoder_pb2.DecodeRequest, wish: DrawingRequest, links: list[Tensor], reports: ProgressReports
    ) -> tuple[DrawingJob, NDArray[np.uint8] | None]:
        """In an image thread: the job, and the ``[height, width, 3]`` that an edit will lie over."""
        count = len(wish.seeds)
        rows = torch.stack(links).repeat_interleave(count, dim=0)
        seeds = wish.seeds * len(links)
        if not wish.edits:
            return DrawingJob(rows, seeds, wish.options, None, None, reports), None
        check_image_size(request.image.encoded, self._limits)
        image_digest(request.image)
        image = decode_image(request.image.encoded, self._limits)
        source = self._diffuser.prepare(image)
        side = self._diffuser.config.image_side
        maps = [
            frame_region(region_mask(group.region, *source.original_size), side)
            if group.HasField("region")
            else torch.zeros(1, side, side)
            for group in request.groups
        ]
        sources = source.pixels.expand(len(rows), -1, -1, -1)
        region_maps = torch.stack(maps).repeat_interleave(count, dim=0)
        return DrawingJob(rows, seeds, wish.options, sources, region_maps, reports), _within(image, LARGEST_EDIT)

    def _compute(self, jobs: Sequence[DrawingJob]) -> list[NDArray[np.uint8]]:
        """In the model thread: what the network made for each job; all are of one kind.

        Drawings are ``[images, height, width, 3]``, edits layers ``[images, side, side, 4]``.

        Raises EverybodyLeft between two steps when nobody waits any more.
        """

        def on_step(done: int, total: int) -> None:
            if all(job.reports.abandoned for job in jobs):
                raise EverybodyLeft
            for job in jobs:
                job.reports.report(done, total)

        sources = [job.sources for job in jobs if job.sources is not None]
        maps = [job.region_maps for job in jobs if job.region_maps is not None]
        pixels = self._diffuser.sample(
            torch.cat([job.links for job in jobs]),
            torch.cat(sources) if sources else None,
            torch.cat(maps) if maps else None,
            [seed for job in jobs for seed in job.seeds],
            jobs[0].options,
            on_step,
        )
        made = pixels.permute(0, 2, 3, 1).cpu()
        return [rows.numpy() for rows in torch.split(made, [len(job.seeds) for job in jobs])]

    def _warm_up(self, reports: ProgressReports) -> None:
        spec, config = self._diffuser.spec, self._diffuser.config
        links = [torch.zeros(spec.queries_per_group, spec.link_width)]
        side = config.image_side
        for edits in (False, True):
            request = decoder_pb2.DecodeRequest()
            request.groups.add(route="[EDIT]" if edits else "[GEN]")
            request.diffusion.steps = 1
            wish = read_request(request, config)
            source = torch.zeros(1, 3, side, side) if edits else None
            region_map = torch.zeros(1, 1, side, side) if edits else None
            self._compute([DrawingJob(torch.stack(links), wish.seeds, wish.options, source, region_map, reports)])

    def _timings(
        self, arrived: float, prepare_s: float, completed: Completed[NDArray[np.uint8]]
    ) -> list[types_pb2.Timing]:
        phases = {
            "prepare": prepare_s,
            "queue": completed.queue_s,
            "compute": completed.compute_s,
            "total": time.monotonic() - arrived,
        }
        return [
            types_pb2.Timing(service=self._diffuser.spec.name, phase=phase, milliseconds=seconds * 1000)
            for phase, seconds in phases.items()
        ]


def _encode(
    pixels: NDArray[np.uint8], seeds: Sequence[int], source: NDArray[np.uint8] | None, wish: DrawingRequest
) -> list[types_pb2.GeneratedImage]:
    """In an image thread: drawings ``[images, height, width, 3]``, or layers of edits over ``source``, as PNG files."""
    made = []
    for rows, seed in zip(pixels, seeds, strict=True):
        image = Image.fromarray(rows if source is None else lay_over(source, rows))
        if source is not None:
            height, width = wish.edited_size
            image = image.resize((width or image.width, height or image.height), Image.Resampling.BICUBIC)
        file = io.BytesIO()
        image.save(file, "PNG")
        made.append(
            types_pb2.GeneratedImage(encoded=file.getvalue(), width=image.width, height=image.height, seed=seed)
        )
    return made


def _within(image: NDArray[np.uint8], longest: int) -> NDArray[np.uint8]:
    """``[height, width, 3]``, smaller where a side is longer than ``longest``."""
    height, width = image.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0))


def make_worker(profile: Profile, metrics: WorkerMetrics) -> DiffusionService:
    """The worker of the profile's decoder "diffusion"."""
    return DiffusionService(profile, decoder_settings(profile, NAME), metrics)


def main() -> int:
    """Run the worker; see ``services.runtime.worker`` for its life and exit codes."""
    return run_worker(NAME, make_worker, lambda profile: decoder_settings(profile, NAME), f"decoders.{NAME}")


if __name__ == "__main__":
    sys.exit(main())
