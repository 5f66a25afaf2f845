"""The workers as the answer engine sees them, and the gRPC clients behind that view.

Every failure of a call is a SuperlinkError that names the worker. Ending an iteration early cancels the call.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from opentelemetry.util.types import AttributeValue

from orchestrator.metrics import Metrics
from orchestrator.replica_calls import MOST_ATTEMPTS, ReplicaCalls
from orchestrator.replicas import ReplicaPool, Standing
from orchestrator.retry_budget import RetryBudget
from orchestrator.shown_images import latest_image
from superlink.outgoing_calls import call, stream
from superlink.v1 import decoder_pb2, decoder_pb2_grpc, mllm_pb2, mllm_pb2_grpc


class Mllm(Protocol):
    """The multimodal language model."""

    def standing(self) -> Standing:
        """How its replicas stand."""

    async def describe(self, timeout_s: float) -> mllm_pb2.DescribeMllmResponse:
        """What it is and which routes it writes. Raises SuperlinkError when it is not ready."""

    def generate(
        self, request: mllm_pb2.GenerateRequest, timeout_s: float
    ) -> AsyncGenerator[mllm_pb2.GenerateEvent, None]:
        """The events of one response."""

    async def link(self, request: mllm_pb2.LinkRequest, timeout_s: float) -> mllm_pb2.LinkResponse:
        """Link embeddings of a known list of phrases."""


class Decoder(Protocol):
    """A vision tool."""

    def standing(self) -> Standing:
        """How its replicas stand."""

    def check_available(self) -> None:
        """Raise SuperlinkError when no replica takes calls, so that nothing is computed for one in vain."""

    async def describe(self, timeout_s: float) -> decoder_pb2.DescribeResponse:
        """What it is and which routes it answers. Raises SuperlinkError when it is not ready."""

    def decode(
        self, request: decoder_pb2.DecodeRequest, timeout_s: float
    ) -> AsyncGenerator[decoder_pb2.DecodeEvent, None]:
        """Progress, then the result."""


class MllmClient:
    """The MLLM workers."""

    def __init__(self, pool: ReplicaPool[mllm_pb2_grpc.MllmAsyncStub], budget: RetryBudget, metrics: Metrics) -> None:
        self._pool = pool
        self._calls = ReplicaCalls(pool, budget, metrics)

    def standing(self) -> Standing:
        """See ``Mllm.standing``."""
        return self._pool.standing()

    async def describe(self, timeout_s: float) -> mllm_pb2.DescribeMllmResponse:
        """See ``Mllm.describe``."""
        request = mllm_pb2.DescribeMllmRequest()
        return await self._calls.describe(lambda stub, left_s: stub.Describe(request, timeout=left_s), timeout_s)

    def generate(
        self, request: mllm_pb2.GenerateRequest, timeout_s: float
    ) -> AsyncGenerator[mllm_pb2.GenerateEvent, None]:
        """See ``Mllm.generate``."""
        image = latest_image(request.messages)
        return self._calls.events(
            lambda stub, left_s: stream(stub.Generate, request, left_s, service="mllm", span="mllm generate"),
            timeout_s,
            key=image.sha256 if image is not None else "",
        )

    async def link(self, request: mllm_pb2.LinkRequest, timeout_s: float) -> mllm_pb2.LinkResponse:
        """See ``Mllm.link``."""

        async def linked(
            stub: mllm_pb2_grpc.MllmAsyncStub, left_s: float
        ) -> AsyncGenerator[mllm_pb2.LinkResponse, None]:
            yield await call(stub.Link, request, left_s, service="mllm", span="mllm link")

        async with aclosing(self._calls.events(linked, timeout_s, key=request.image.sha256)) as responses:
            return await anext(responses)


class DecoderClient:
    """The workers of one decoder."""

    def __init__(
        self, pool: ReplicaPool[decoder_pb2_grpc.DecoderAsyncStub], budget: RetryBudget, metrics: Metrics
    ) -> None:
        """The pool has the decoder's name in the profile."""
        self._pool = pool
        self._calls = ReplicaCalls(pool, budget, metrics)

    def standing(self) -> Standing:
        """See ``Decoder.standing``."""
        return self._pool.standing()

    def check_available(self) -> None:
        """See ``Decoder.check_available``."""
        self._pool.check_available()

    async def describe(self, timeout_s: float) -> decoder_pb2.DescribeResponse:
        """See ``Decoder.describe``."""
        request = decoder_pb2.DescribeRequest()
        return await self._calls.describe(lambda stub, left_s: stub.Describe(request, timeout=left_s), timeout_s)

    def decode(
        self, request: decoder_pb2.DecodeRequest, timeout_s: float
    ) -> AsyncGenerator[decoder_pb2.DecodeEvent, None]:
        """See ``Decoder.decode``."""
        name = self._pool.service
        # A call without groups only sends the image ahead, and is not worth a second attempt.
        kind, attempts = ("tool_call", MOST_ATTEMPTS) if request.groups else ("prefetch", 1)
        attributes: dict[str, AttributeValue] = {
            "superlink.decoder": name,
            "superlink.routes": sorted({group.route for group in request.groups}),
            "superlink.groups": len(request.groups),
        }
        return self._calls.events(
            lambda stub, left_s: stream(
                stub.Decode, request, left_s, service=name, span=f"{kind} {name}", attributes=attributes
            ),
            timeout_s,
            key=request.image.sha256,
            attempts=attempts,
        )
