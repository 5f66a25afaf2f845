"""The orchestrator as the gateway sees it. Every failure is a SuperlinkError."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import grpc

from superlink.errors import SuperlinkError, from_rpc_error
from superlink.outgoing_calls import call, stream
from superlink.v1 import orchestrator_pb2, orchestrator_pb2_grpc

DESCRIBE_TIMEOUT_S = 3.0


class OrchestratorClient:
    """Calls over one channel, and what is remembered of the deployment's model."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = orchestrator_pb2_grpc.OrchestratorStub(channel)
        self._model = ""

    async def describe(self, timeout_s: float = DESCRIBE_TIMEOUT_S) -> orchestrator_pb2.DescribeOrchestratorResponse:
        """The deployment: the model, the tools, and which services are ready."""
        request = orchestrator_pb2.DescribeOrchestratorRequest()
        try:
            return await self._stub.Describe(request, timeout=min(timeout_s, DESCRIBE_TIMEOUT_S))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, "orchestrator") from error

    async def served_model(self, asked: str | None, timeout_s: float = DESCRIBE_TIMEOUT_S) -> str:
        """The name of the served model, which ``asked`` must be unless it is None.

        The deployment is asked again only when ``asked`` is not the name that is remembered. Raises SuperlinkError
        ``unknown_model`` (NOT_FOUND), or UNAVAILABLE when the MLLM has not been heard of yet.
        """
        if self._model and asked in (None, self._model):
            return self._model
        description = await self.describe(timeout_s)
        if not description.HasField("mllm"):
            reason = next((service.reason for service in description.services if service.name == "mllm"), "")
            raise SuperlinkError(
                "unavailable",
                f"The mllm service is not ready: {reason}",
                status=grpc.StatusCode.UNAVAILABLE,
                service="mllm",
                hop="orchestrator>mllm",
            )
        self._model = description.mllm.name
        if asked not in (None, self._model):
            raise SuperlinkError(
                "unknown_model",
                f"There is no model {asked!r} here. Known models: {self._model}.",
                status=grpc.StatusCode.NOT_FOUND,
            )
        return self._model

    def answer(
        self, request: orchestrator_pb2.AnswerRequest, timeout_s: float
    ) -> AsyncGenerator[orchestrator_pb2.AnswerEvent, None]:
        """The events of one answer; closing the generator cancels the call."""
        return stream(self._stub.Answer, request, timeout_s, service="orchestrator", span="orchestrator answer")

    def draw(
        self, request: orchestrator_pb2.DrawRequest, timeout_s: float
    ) -> AsyncGenerator[orchestrator_pb2.DrawEvent, None]:
        """Progress and then the images; closing the generator cancels the call."""
        return stream(self._stub.Draw, request, timeout_s, service="orchestrator", span="orchestrator draw")

    async def detect(
        self, request: orchestrator_pb2.DetectRequest, timeout_s: float
    ) -> orchestrator_pb2.DetectResponse:
        """Detections for known phrases."""
        return await call(self._stub.Detect, request, timeout_s, service="orchestrator", span="orchestrator detect")
