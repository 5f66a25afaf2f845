"""The worker of any decoder: ``superlink.v1.Decoder`` over the contract of ``services.runtime.decoder``.

A room adds three things: how its weights load, what its options are, and how its result looks as a message.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import numpy as np
import torch
from torch import Tensor

from services.runtime.batcher import Batcher, Completed
from services.runtime.decoder import Decoder, Options, PreparedImage, Result, Skeleton, pad_links
from services.runtime.feature_cache import FeatureCache
from services.runtime.images import ImageExecutor, decode_image, image_digest
from services.runtime.links import read_links
from services.runtime.metrics import WorkerMetrics
from services.runtime.model_thread import ModelThread
from services.runtime.regions import RegionPoints, pad_regions, region_mask, region_points
from services.runtime.worker import Worker
from superlink.errors import invalid_argument
from superlink.image_header import check_image_size
from superlink.profile import Profile, WorkerSettings, weights_folder
from superlink.regions import MOST_REGIONS
from superlink.served_calls import note
from superlink.serving import Context, GrpcServer, deadline_of
from superlink.telemetry import record_phase
from superlink.v1 import decoder_pb2, decoder_pb2_grpc, types_pb2

# Side of the blank square image that warms the model up.
_WARM_UP_SIDE = 256


@dataclass(frozen=True)
class EncodedImage:
    """An image's features, as kept in the cache."""

    # By level, each [1, channels, height, width].
    features: tuple[Tensor, ...]
    # Height and width of the upright original in pixels.
    original_size: tuple[int, int]


@dataclass(frozen=True)
class DecodeJob(Generic[Options]):
    """One request as the model thread gets it: everything validated, nothing left to parse."""

    digest: str
    # Already encoded, or still to be.
    image: EncodedImage | PreparedImage
    # [groups, link_width] float32; no groups: only the image is encoded.
    links: Tensor
    options: Options
    # Of groups that mean a marked region: the group, and where to look at the region, in pixels of the original.
    regions: tuple[tuple[int, RegionPoints], ...] = ()
    # Groups at the end that name keypoints of what the others mean.
    keypoints: int = 0

    @property
    def size_bytes(self) -> int:
        """What the job adds to a batch."""
        pixels = self.image.pixels.nbytes if isinstance(self.image, PreparedImage) else 0
        return pixels + self.links.nbytes


class DecoderService(Worker, decoder_pb2_grpc.DecoderServicer, Generic[Options, Result]):
    """Validates requests, batches them through one decoder and streams the results back."""

    def __init__(self, profile: Profile, settings: WorkerSettings, metrics: WorkerMetrics) -> None:
        self._limits = profile.images
        self._settings = settings
        self._metrics = metrics
        self._images = ImageExecutor()
        self._thread = ModelThread(settings.threads)
        self._cache: FeatureCache[EncodedImage] = FeatureCache(settings.feature_cache_entries)
        self._batcher: Batcher[DecodeJob[Options], Result | None] = Batcher(
            self._compute, self._thread, settings.batch, metrics
        )
        self._decoder: Decoder[Any, Any, Options, Result]

    @abstractmethod
    def load(self, folder: Path) -> Decoder[Any, Any, Options, Result]:
        """The decoder in evaluation mode. Raises WeightsError."""

    @abstractmethod
    def read_options(self, request: decoder_pb2.DecodeRequest | None) -> Options:
        """The options of a request, or the defaults for None. Raises SuperlinkError for values out of range."""

    @abstractmethod
    def write_result(self, result: Result, size: tuple[int, int]) -> decoder_pb2.DecodeEvent:
        """The last event of an answer about an image of ``size`` (height, width), without timings."""

    def register(self, server: GrpcServer) -> None:
        """Add ``superlink.v1.Decoder``."""
        server.add(decoder_pb2_grpc.add_DecoderServicer_to_server, self, "superlink.v1.Decoder")

    async def start(self) -> None:
        """Load the weights and run the smallest and the largest batch once."""
        self._decoder = await self._thread.run(self.load, weights_folder(self._settings))
        await self._thread.run(self._warm_up)
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
        """What this decoder answers, in which width, and its limits."""
        spec = self._decoder.spec
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
            score_threshold=spec.score_threshold,
            takes_regions=spec.takes_regions,
            keypoint_route=spec.keypoint_route,
            skeletons=[_skeleton_message(skeleton) for skeleton in spec.skeletons],
        )

    async def Decode(  # noqa: N802 - the contract's name
        self, request: decoder_pb2.DecodeRequest, context: Context
    ) -> AsyncIterator[decoder_pb2.DecodeEvent]:
        """Answer one request; the last event carries the result and where the time went."""
        arrived = time.monotonic()
        note(groups=len(request.groups))
        links = self._read_links(request)
        keypoints = self._count_keypoints(request)
        options = self.read_options(request)
        with self._batcher.admission():
            digest, image = await self._images.run(self._prepare, request.image)
            prepared = time.monotonic()
            self._metrics.observe_prepare(prepared - arrived)
            record_phase("prepare", arrived, prepared - arrived)
            if not request.groups and (isinstance(image, EncodedImage) or not self._settings.feature_cache_entries):
                # A prefetch of what is there already, or of what would not be kept.
                yield decoder_pb2.DecodeEvent()
                return
            regions = await self._images.run(self._read_regions, request, image.original_size)
            job = DecodeJob(digest, image, links, options, regions, keypoints)
            completed = await self._batcher.submit(job, size_bytes=job.size_bytes, deadline=deadline_of(context))
        result = completed.response
        event = decoder_pb2.DecodeEvent() if result is None else self.write_result(result, image.original_size)
        event.timings.extend(self._timings(arrived, prepared - arrived, completed))
        yield event

    def _read_links(self, request: decoder_pb2.DecodeRequest) -> Tensor:
        """The validated link embeddings ``[groups, link_width]``; a prefetch has no groups."""
        spec = self._decoder.spec
        links = read_links(request, spec, [spec.link_width])
        return torch.stack(links) if links else torch.empty(0, spec.link_width)

    def _count_keypoints(self, request: decoder_pb2.DecodeRequest) -> int:
        """How many groups name keypoints: the last ones, after at least one thing that may have them."""
        route = self._decoder.spec.keypoint_route
        if not route:
            return 0
        names_keypoint = [group.route == route for group in request.groups]
        count = sum(names_keypoint)
        if count and (count == len(names_keypoint) or any(names_keypoint[:-count])):
            raise invalid_argument(
                "misplaced_keypoints",
                f"Groups of {route} name keypoints of the things before them: send the things first.",
            )
        return count

    def _read_regions(
        self, request: decoder_pb2.DecodeRequest, size: tuple[int, int]
    ) -> tuple[tuple[int, RegionPoints], ...]:
        """The regions of a request about an image of ``size`` (height, width), validated."""
        marked = [(index, group.region) for index, group in enumerate(request.groups) if group.HasField("region")]
        if marked and not self._decoder.spec.takes_regions:
            raise invalid_argument(
                "unsupported_region", f"The {self._decoder.spec.name} decoder takes no regions; ask it by phrases."
            )
        if len(marked) > MOST_REGIONS:
            raise invalid_argument(
                "too_many_regions", f"The request has {len(marked)} regions; at most {MOST_REGIONS} are allowed."
            )
        return tuple((index, region_points(region_mask(region, *size))) for index, region in marked)

    def _prepare(self, image: types_pb2.Image) -> tuple[str, EncodedImage | PreparedImage]:
        """In an image thread: the digest, and the cached features or else the pixels as the decoder wants them."""
        # Before the digest, so that an oversized file costs no more than a comparison.
        check_image_size(image.encoded, self._limits)
        digest = image_digest(image)
        cached = self._cache.find(digest)
        self._metrics.count_cache_lookup(cached is not None)
        if cached is not None:
            return digest, cached
        return digest, self._decoder.prepare(decode_image(image.encoded, self._limits))

    def _compute(self, jobs: Sequence[DecodeJob[Options]]) -> list[Result | None]:
        """In the model thread: encode the images that nobody has encoded yet, then decode the jobs that have groups."""
        images = self._encode(jobs)
        asked = [row for row, job in enumerate(jobs) if len(job.links)]
        results: dict[int, Result] = {}
        for places in _by_shape([images[jobs[row].digest].features[0].shape for row in asked]):
            rows = [asked[place] for place in places]
            batch = [jobs[row] for row in rows]
            levels = zip(*(images[job.digest].features for job in batch), strict=True)
            links, link_mask = pad_links([job.links for job in batch])
            sizes = [images[job.digest].original_size for job in batch]
            marks: dict[str, Any] = {}
            if self._decoder.spec.keypoint_route:
                counts = link_mask.sum(dim=1) - torch.tensor([job.keypoints for job in batch])
                marks["names_keypoint"] = torch.arange(links.shape[1]) >= counts[:, None]
            if any(job.regions for job in batch):
                marks["regions"] = pad_regions(
                    [
                        [(group, points.scaled(max(size))) for group, points in job.regions]
                        for job, size in zip(batch, sizes, strict=True)
                    ]
                )
            outputs = self._decoder(tuple(torch.cat(level) for level in levels), links, link_mask, **marks)
            answers = self._decoder.decode(
                outputs,
                sizes,
                [job.links.shape[0] for job in batch],
                [job.options for job in batch],
            )
            results.update(zip(rows, answers, strict=True))
        return [results.get(row) for row in range(len(jobs))]

    def _encode(self, jobs: Sequence[DecodeJob[Options]]) -> dict[str, EncodedImage]:
        """The features of every job's image by digest; each image is encoded once, those of one shape together."""
        images: dict[str, EncodedImage] = {}
        missing: dict[str, PreparedImage] = {}
        for job in jobs:
            if isinstance(job.image, EncodedImage):
                images[job.digest] = job.image
            elif (cached := self._cache.find(job.digest)) is not None:
                # Another request brought the same image while this one was prepared.
                images[job.digest] = cached
            else:
                missing[job.digest] = job.image
        digests = list(missing)
        for rows in _by_shape([missing[digest].pixels.shape for digest in digests]):
            levels = self._decoder.encode(torch.stack([missing[digests[row]].pixels for row in rows]))
            for index, row in enumerate(rows):
                # Clones, because a slice would keep the features of the whole batch alive.
                encoded = EncodedImage(
                    tuple(level[index : index + 1].clone() for level in levels), missing[digests[row]].original_size
                )
                images[digests[row]] = encoded
                self._cache.keep(digests[row], encoded)
        return images

    def _warm_up(self) -> None:
        blank = self._decoder.prepare(np.zeros((_WARM_UP_SIDE, _WARM_UP_SIDE, 3), dtype=np.uint8))
        links = torch.zeros(1, self._decoder.spec.link_width)
        options = self.read_options(None)
        for size in (1, self._settings.batch.max_batch_size):
            self._compute([DecodeJob(f"warm-up {index}", blank, links, options) for index in range(size)])
            self._cache.clear()

    def _timings(self, arrived: float, prepare_s: float, completed: Completed[Result | None]) -> list[types_pb2.Timing]:
        phases = {
            "prepare": prepare_s,
            "queue": completed.queue_s,
            "compute": completed.compute_s,
            "total": time.monotonic() - arrived,
        }
        return [
            types_pb2.Timing(service=self._decoder.spec.name, phase=phase, milliseconds=seconds * 1000)
            for phase, seconds in phases.items()
        ]


def _skeleton_message(skeleton: Skeleton) -> decoder_pb2.Skeleton:
    return decoder_pb2.Skeleton(
        names=skeleton.names,
        keypoints=skeleton.keypoints,
        bones=[decoder_pb2.Bone(first=first, second=second) for first, second in skeleton.bones],
    )


def _by_shape(shapes: Sequence[torch.Size]) -> list[list[int]]:
    """Indices of equal shapes, in order of first appearance: only these can be stacked."""
    rows: dict[torch.Size, list[int]] = {}
    for row, shape in enumerate(shapes):
        rows.setdefault(shape, []).append(row)
    return list(rows.values())
