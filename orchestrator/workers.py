"""The workers as the answer engine sees them, and the gRPC clients behind that view.

Every failure of a call is a SuperlinkError that names the worker. Ending an iteration early cancels the call.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.util.types import AttributeValue

from superlink.errors import SuperlinkError, from_rpc_error
from superlink.outgoing_calls import call, stream
from superlink.v1 import decoder_pb2, decoder_pb2_grpc, mllm_pb2, mllm_pb2_grpc


class Mllm(Protocol):
    """The multimodal language model."""

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

    async def describe(self, timeout_s: float) -> decoder_pb2.DescribeResponse:
        """What it is and which routes it answers. Raises SuperlinkError when it is not ready."""

    def decode(
        self, request: decoder_pb2.DecodeRequest, timeout_s: float
    ) -> AsyncGenerator[decoder_pb2.DecodeEvent, None]:
        """Progress, then the result."""


class MllmClient:
    """The MLLM worker behind a channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = mllm_pb2_grpc.MllmStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)

    async def describe(self, timeout_s: float) -> mllm_pb2.DescribeMllmResponse:
        """See ``Mllm.describe``."""
        try:
            await _check_health(self._health, "mllm", timeout_s)
            return await self._stub.Describe(mllm_pb2.DescribeMllmRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, "mllm") from error

    def generate(
        self, request: mllm_pb2.GenerateRequest, timeout_s: float
    ) -> AsyncGenerator[mllm_pb2.GenerateEvent, None]:
        """See ``Mllm.generate``."""
        return stream(self._stub.Generate, request, timeout_s, service="mllm", span="mllm generate")

    async def link(self, request: mllm_pb2.LinkRequest, timeout_s: float) -> mllm_pb2.LinkResponse:
        """See ``Mllm.link``."""
        return await call(self._stub.Link, request, timeout_s, service="mllm", span="mllm link")


class DecoderClient:
    """A decoder worker behind a channel."""

    def __init__(self, name: str, channel: grpc.aio.Channel) -> None:
        """``name`` is the decoder's name in the profile."""
        self._name = name
        self._stub = decoder_pb2_grpc.DecoderStub(channel)
        self._health = health_pb2_grpc.HealthStub(channel)

    async def describe(self, timeout_s: float) -> decoder_pb2.DescribeResponse:
        """See ``Decoder.describe``."""
        try:
            await _check_health(self._health, self._name, timeout_s)
            return await self._stub.Describe(decoder_pb2.DescribeRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self._name) from error

    def decode(
        self, request: decoder_pb2.DecodeRequest, timeout_s: float
    ) -> AsyncGenerator[decoder_pb2.DecodeEvent, None]:
        """See ``Decoder.decode``."""
        # A call without groups only sends the image ahead.
        kind = "tool_call" if request.groups else "prefetch"
        attributes: dict[str, AttributeValue] = {
            "superlink.decoder": self._name,
            "superlink.routes": sorted({group.route for group in request.groups}),
            "superlink.groups": len(request.groups),
        }
        span = f"{kind} {self._name}"
        return stream(self._stub.Decode, request, timeout_s, service=self._name, span=span, attributes=attributes)


async def _check_health(stub: health_pb2_grpc.HealthStub, service: str, timeout_s: float) -> None:
    response = await stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
    if response.status != health_pb2.HealthCheckResponse.SERVING:
        raise SuperlinkError(
            "not_ready",
            f"The {service} service is starting or draining.",
            status=grpc.StatusCode.UNAVAILABLE,
            service=service,
        )
