"""The gRPC shell of the answer engine: deadlines, request ids, metrics and logs around pure logic."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import NoReturn

from grpc_status import rpc_status

from orchestrator.catalogue import Catalogue
from orchestrator.deadline import Deadline
from orchestrator.drawing import draw
from orchestrator.engine import AnswerEngine
from orchestrator.fast_path import detect
from orchestrator.metrics import Metrics
from superlink.errors import SuperlinkError, to_rpc_status
from superlink.logs import current_request_id
from superlink.serving import Context
from superlink.v1 import orchestrator_pb2, orchestrator_pb2_grpc

logger = logging.getLogger(__name__)

# gRPC's server pushback (proposal A6): a negative delay forbids the channel's retry policy to try again.
_DO_NOT_RETRY = ("grpc-retry-pushback-ms", "-1")


class OrchestratorService(orchestrator_pb2_grpc.OrchestratorServicer):
    """Answers ``superlink.v1.Orchestrator``."""

    def __init__(self, engine: AnswerEngine, catalogue: Catalogue, metrics: Metrics, default_timeout_s: float) -> None:
        """``default_timeout_s``: for callers that set no deadline."""
        self._engine = engine
        self._catalogue = catalogue
        self._metrics = metrics
        self._default_timeout_s = default_timeout_s

    async def Describe(  # noqa: N802
        self,
        request: orchestrator_pb2.DescribeOrchestratorRequest,  # noqa: ARG002
        context: Context,  # noqa: ARG002
    ) -> orchestrator_pb2.DescribeOrchestratorResponse:
        """The workers' descriptions and readiness."""
        snapshot = await self._catalogue.current()
        return orchestrator_pb2.DescribeOrchestratorResponse(
            mllm=snapshot.mllm, decoders=snapshot.decoders.values(), services=snapshot.services
        )

    async def Answer(  # noqa: N802
        self, request: orchestrator_pb2.AnswerRequest, context: Context
    ) -> AsyncIterator[orchestrator_pb2.AnswerEvent]:
        """See ``AnswerEngine.answer``."""
        request.request_id = current_request_id.get()
        try:
            with self._measure("Answer") as facts:
                async with aclosing(self._engine.answer(request, self._deadline(context))) as events:
                    async for event in events:
                        _note(event, facts)
                        yield event
        except SuperlinkError as error:
            await _abort(context, error, request.request_id)

    async def Detect(  # noqa: N802
        self, request: orchestrator_pb2.DetectRequest, context: Context
    ) -> orchestrator_pb2.DetectResponse:
        """See ``orchestrator.fast_path.detect``."""
        request.request_id = current_request_id.get()
        try:
            with self._measure("Detect") as facts:
                response = await detect(self._engine, request, self._deadline(context))
                facts["phrases"] = len(request.phrases)
                facts["detections"] = len(response.detections.detections)
                return response
        except SuperlinkError as error:
            await _abort(context, error, request.request_id)

    async def Draw(  # noqa: N802
        self, request: orchestrator_pb2.DrawRequest, context: Context
    ) -> AsyncIterator[orchestrator_pb2.DrawEvent]:
        """See ``orchestrator.drawing.draw``."""
        request.request_id = current_request_id.get()
        try:
            with self._measure("Draw") as facts:
                async with aclosing(draw(self._engine, request, self._deadline(context))) as events:
                    async for event in events:
                        if event.HasField("response"):
                            facts["images"] = len(event.response.images.images)
                        yield event
        except SuperlinkError as error:
            await _abort(context, error, request.request_id)

    def _deadline(self, context: Context) -> Deadline:
        remaining_s = context.time_remaining()
        return Deadline(self._default_timeout_s if remaining_s is None else remaining_s)

    @contextmanager
    def _measure(self, method: str) -> Iterator[dict[str, int]]:
        """Count the request and log one line about it; the caller fills in the facts."""
        facts: dict[str, int] = {}
        started = time.perf_counter()
        code = "ok"
        try:
            with self._metrics.in_flight.labels(method).track_inprogress():
                yield facts
        except SuperlinkError as error:
            code = error.code
            raise
        except (asyncio.CancelledError, GeneratorExit):
            code = "cancelled"
            raise
        except Exception:
            code = "internal"
            raise
        finally:
            self._metrics.requests.labels(method, code).inc()
            milliseconds = round((time.perf_counter() - started) * 1000, 2)
            fields = {"method": method, "code": code, "milliseconds": milliseconds, **facts}
            logger.info("request finished", extra=fields)


async def _abort(context: Context, error: SuperlinkError, request_id: str) -> NoReturn:
    """End the call with ``error``, and keep the caller's channel from repeating it.

    A worker that is away was tried again on the way to it. If the hop before did the same, every hop would multiply the
    attempts, and each would run the MLLM once more.
    """
    error.service = error.service or "orchestrator"
    error.request_id = error.request_id or request_id
    status = rpc_status.to_status(to_rpc_status(error))
    await context.abort(status.code, status.details, (*status.trailing_metadata, _DO_NOT_RETRY))
    raise AssertionError("abort returned")


def _note(event: orchestrator_pb2.AnswerEvent, facts: dict[str, int]) -> None:
    """Count what a log line should say of an answer; never its words."""
    match event.WhichOneof("event"):
        case "tool_call":
            facts["tool_calls"] = facts.get("tool_calls", 0) + 1
        case "tool_failure":
            facts["tool_failures"] = facts.get("tool_failures", 0) + 1
        case "observation":
            facts["rounds"] = facts.get("rounds", 0) + 1
        case "usage":
            facts["prompt_tokens"] = event.usage.prompt_tokens
            facts["completion_tokens"] = event.usage.completion_tokens
