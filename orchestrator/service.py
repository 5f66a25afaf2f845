"""The gRPC shell of the answer engine: deadlines, request ids, metrics and what is noted, around pure logic."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager

from opentelemetry import trace

from orchestrator.admission import Admission, Place
from orchestrator.catalogue import Catalogue
from orchestrator.deadline import Deadline
from orchestrator.drawing import TOOL as DRAWING_TOOL
from orchestrator.drawing import draw
from orchestrator.engine import AnswerEngine
from orchestrator.fast_path import DEFAULT_TOOL, detect
from orchestrator.metrics import Metrics
from superlink.logs import current_request_id
from superlink.served_calls import count, note
from superlink.serving import Context
from superlink.telemetry import failure_code
from superlink.v1 import orchestrator_pb2, orchestrator_pb2_grpc


class OrchestratorService(orchestrator_pb2_grpc.OrchestratorServicer):
    """Answers ``superlink.v1.Orchestrator``."""

    def __init__(
        self,
        engine: AnswerEngine,
        catalogue: Catalogue,
        admissions: Mapping[str, Admission],
        metrics: Metrics,
        default_timeout_s: float,
    ) -> None:
        """``admissions``: "mllm" lets answers in, and each decoder's requests of the fast path.

        ``default_timeout_s``: for callers that set no deadline.
        """
        self._engine = engine
        self._catalogue = catalogue
        self._admissions = admissions
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
        deadline = self._deadline(context)
        with self._measure("Answer"):
            async with (
                self._place("mllm", deadline) as place,
                aclosing(self._engine.answer(request, deadline)) as events,
            ):
                async for event in events:
                    place.answered()
                    _note(event)
                    yield event

    async def Detect(  # noqa: N802
        self, request: orchestrator_pb2.DetectRequest, context: Context
    ) -> orchestrator_pb2.DetectResponse:
        """See ``orchestrator.fast_path.detect``."""
        request.request_id = current_request_id.get()
        note(phrases=len(request.phrases))
        deadline = self._deadline(context)
        with self._measure("Detect"):
            async with self._place(request.tool or DEFAULT_TOOL, deadline) as place:
                response = await detect(self._engine, request, deadline)
                place.answered()
        note(detections=len(response.detections.detections))
        return response

    async def Draw(  # noqa: N802
        self, request: orchestrator_pb2.DrawRequest, context: Context
    ) -> AsyncIterator[orchestrator_pb2.DrawEvent]:
        """See ``orchestrator.drawing.draw``."""
        request.request_id = current_request_id.get()
        deadline = self._deadline(context)
        with self._measure("Draw"):
            async with (
                self._place(DRAWING_TOOL, deadline) as place,
                aclosing(draw(self._engine, request, deadline)) as events,
            ):
                async for event in events:
                    place.answered()
                    if event.HasField("response"):
                        note(images=len(event.response.images.images))
                    yield event

    def _deadline(self, context: Context) -> Deadline:
        remaining_s = context.time_remaining()
        return Deadline(self._default_timeout_s if remaining_s is None else remaining_s)

    @asynccontextmanager
    async def _place(self, kind: str, deadline: Deadline) -> AsyncIterator[Place]:
        """Hold a place for a request. One for a tool that is not deployed has none of its own, and is refused soon."""
        admission = self._admissions.get(kind, self._admissions["mllm"])
        place = await admission.enter(deadline)
        error: BaseException | None = None
        try:
            yield place
        except BaseException as raised:
            error = raised
            raise
        finally:
            admission.leave(place, error)

    @contextmanager
    def _measure(self, method: str) -> Iterator[None]:
        """Count the request and its outcome."""
        code = "ok"
        try:
            with self._metrics.in_flight.labels(method).track_inprogress():
                yield
        except BaseException as error:
            code = failure_code(error)
            raise
        finally:
            self._metrics.requests.labels(method, code).inc()


def _note(event: orchestrator_pb2.AnswerEvent) -> None:
    """Note what is worth it of an answer; never its words."""
    match event.WhichOneof("event"):
        case "tool_call":
            count("tool_calls")
        case "tool_failure":
            count("tool_failures")
            error = event.tool_failure.error
            failed = {"superlink.tool_call": event.tool_failure.id, "error.type": error.code}
            trace.get_current_span().add_event("tool_failure", failed)
        case "observation":
            count("rounds")
        case "usage":
            note(prompt_tokens=event.usage.prompt_tokens, completion_tokens=event.usage.completion_tokens)
