"""The answer engine: follows the MLLM's stream, calls tools beside it, merges what comes back.

Pure logic: it sees the workers through the protocols of ``orchestrator.workers`` and knows no socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

import grpc

from orchestrator.catalogue import Catalogue
from orchestrator.deadline import Deadline
from orchestrator.metrics import Metrics
from orchestrator.observations import observe
from orchestrator.prefetch import Prefetcher
from orchestrator.references import References, refer
from orchestrator.shown_images import latest_image, shown_by_users
from orchestrator.timings import TimingLedger
from orchestrator.tool_calls import PendingCall, ToolCallFormer, ToolOutcome
from orchestrator.transcript import Transcript
from orchestrator.workers import Decoder, Mllm
from superlink.errors import SuperlinkError, invalid_argument
from superlink.profile import ImageLimits, OrchestratorSettings
from superlink.v1 import decoder_pb2, mllm_pb2, orchestrator_pb2

# Events that may wait for a slow client before the engine stops reading from the MLLM.
EVENT_BACKLOG = 256
# Of the time that is left: for a tool whose results, or whose failure, the model has yet to read.
TOOL_SHARE = 0.75
# With less time than that the model does not begin to read results; what is there by then is the answer.
SHORTEST_ROUND_S = 0.2


class AnswerEngine:
    """Answers conversations; holds no state between them."""

    def __init__(
        self,
        mllm: Mllm,
        decoders: Mapping[str, Decoder],
        catalogue: Catalogue,
        settings: OrchestratorSettings,
        metrics: Metrics,
        limits: ImageLimits,
    ) -> None:
        """``decoders`` by their names in the profile."""
        self.mllm = mllm
        self.decoders = decoders
        self.catalogue = catalogue
        self.settings = settings
        self.metrics = metrics
        self.limits = limits
        self.prefetcher = Prefetcher(decoders, metrics, settings.prefetch)

    async def answer(
        self, request: orchestrator_pb2.AnswerRequest, deadline: Deadline
    ) -> AsyncGenerator[orchestrator_pb2.AnswerEvent, None]:
        """The events of one answer in order; the last one is ``finish``.

        Closing the iterator cancels every call that is under way. Raises SuperlinkError when the MLLM fails; a failing
        decoder only makes a ``tool_failure``.
        """
        if not request.messages:
            raise invalid_argument("empty_prompt", "The conversation is empty. Send at least one user message.")
        answer = _Answer(self, request, deadline)
        producer = asyncio.create_task(answer.run())
        try:
            while (event := await answer.events.get()) is not None:
                yield event
            await producer
        finally:
            producer.cancel()
            await asyncio.gather(producer, return_exceptions=True)


class _Answer:
    """One answer in the making."""

    def __init__(self, engine: AnswerEngine, request: orchestrator_pb2.AnswerRequest, deadline: Deadline) -> None:
        self.events: asyncio.Queue[orchestrator_pb2.AnswerEvent | None] = asyncio.Queue(EVENT_BACKLOG)
        self._engine = engine
        self._request = request
        self._deadline = deadline
        self._ledger = TimingLedger()
        self._usage = mllm_pb2.Usage()
        self._image = latest_image(request.messages)
        asked = request.max_rounds if request.HasField("max_rounds") else engine.settings.max_rounds
        self._max_rounds = min(asked, engine.settings.max_rounds)
        # Observation rounds so far.
        self._rounds = 0
        self._tools: list[asyncio.Task[ToolOutcome]] = []

    async def run(self) -> None:
        """Produce the events; None marks the end, also of a failure. Nobody reads on after a cancellation."""
        try:
            await self._run()
        finally:
            for task in self._tools:
                task.cancel()
            await asyncio.gather(*self._tools, return_exceptions=True)
            this_task = asyncio.current_task()
            if this_task is None or not this_task.cancelling():
                await self.events.put(None)

    async def _run(self) -> None:
        routes = (await self._engine.catalogue.known(self._deadline)).routes
        timeout_s = self._deadline.for_hop(self._engine.settings.tool_timeout_s)
        async with self._engine.prefetcher.ahead(routes.values(), self._image, self._request.request_id, timeout_s):
            await self._write(ToolCallFormer(routes))

    async def _write(self, former: ToolCallFormer) -> None:
        """Write the answer, and say how it ended."""
        conversation = shown_by_users(self._request.messages)
        messages = list(conversation)
        unfinished = messages.pop() if messages[-1].role == mllm_pb2.ROLE_ASSISTANT else mllm_pb2.Message()
        transcript = Transcript(unfinished.parts)
        has_read = bool(unfinished.parts) and unfinished.parts[-1].HasField("observation")
        reason = mllm_pb2.FINISH_REASON_OBSERVE
        if not (self._request.json_schema and has_read):
            reason = await self._write_rounds(conversation, messages, transcript, former)
        if self._request.json_schema and reason != mllm_pb2.FINISH_REASON_TOOL_CALLS:
            reason = await self._write_by_schema([*messages, transcript.open_message()])
        self._engine.metrics.rounds.observe(self._rounds)
        timings = self._ledger.timings()
        self._engine.metrics.observe_timings(timings)
        await self._emit(orchestrator_pb2.AnswerEvent(usage=self._usage))
        await self._emit(orchestrator_pb2.AnswerEvent(finish=mllm_pb2.Finish(reason=reason, timings=timings)))

    async def _write_rounds(
        self,
        conversation: list[mllm_pb2.Message],
        messages: list[mllm_pb2.Message],
        transcript: Transcript,
        former: ToolCallFormer,
    ) -> mllm_pb2.FinishReason.ValueType:
        """Write round after round, each from the results of the one before; returns why the last one ended.

        ``messages`` is the conversation without the answer. What is to fit a schema takes the place of the round that
        would first read results: there small models fill in far better than behind a sentence of their own.
        """
        while True:
            reason = await self._write_round(conversation, transcript, former)
            outcomes = await asyncio.gather(*self._tools)
            self._tools.clear()
            if outcomes and self._request.ends_at_tool_calls and reason != mllm_pb2.FINISH_REASON_LENGTH:
                return mllm_pb2.FINISH_REASON_TOOL_CALLS
            observation = observe(outcomes)
            if outcomes and not observation.groups and reason == mllm_pb2.FINISH_REASON_OBSERVE:
                # All that the model called for is there, and none of it is for reading.
                return mllm_pb2.FINISH_REASON_STOP
            if reason != mllm_pb2.FINISH_REASON_OBSERVE or self._rounds == self._max_rounds or not outcomes:
                return reason
            if self._is_spent() or self._deadline.remaining() < SHORTEST_ROUND_S:
                return mllm_pb2.FINISH_REASON_LENGTH
            self._rounds += 1
            await self._emit(orchestrator_pb2.AnswerEvent(observation=observation))
            conversation = [*messages, transcript.close_round(observation)]
            if self._request.json_schema:
                return reason

    async def _write_round(
        self, conversation: list[mllm_pb2.Message], transcript: Transcript, former: ToolCallFormer
    ) -> mllm_pb2.FinishReason.ValueType:
        """Follow one response of the MLLM, sending tool calls as they become complete; returns why it ended."""
        references = References(conversation, self._engine.limits)
        reason: mllm_pb2.FinishReason.ValueType | None = None
        async with aclosing(self._generate(conversation)) as events:
            async for event in events:
                match event.WhichOneof("event"):
                    case "text_delta":
                        event.text_delta.text = transcript.add_text(event.text_delta.text)
                        await self._emit(self._shown(event.text_delta))
                    case "link_group":
                        group = transcript.add_group(event.link_group)
                        refer(group, former.routes, references)
                        for call in former.add(group):
                            await self._send(call)
                    case "finish":
                        reason = event.finish.reason
                        for call in former.flush():
                            await self._send(call)
        if reason is None:
            raise _incomplete()
        return reason

    def _shown(self, text: mllm_pb2.TextDelta) -> orchestrator_pb2.AnswerEvent:
        """More of the answer, or of its draft where its text is to fit a schema."""
        if self._request.json_schema:
            return orchestrator_pb2.AnswerEvent(draft_delta=text)
        return orchestrator_pb2.AnswerEvent(text_delta=text)

    async def _write_by_schema(self, conversation: list[mllm_pb2.Message]) -> mllm_pb2.FinishReason.ValueType:
        """Let the MLLM write the text that fits the schema, behind its draft; returns why it ended."""
        if self._is_spent():
            return mllm_pb2.FINISH_REASON_LENGTH
        reason: mllm_pb2.FinishReason.ValueType | None = None
        async with aclosing(self._generate(conversation, self._request.json_schema)) as events:
            async for event in events:
                match event.WhichOneof("event"):
                    case "text_delta":
                        await self._emit(orchestrator_pb2.AnswerEvent(text_delta=event.text_delta))
                    case "finish":
                        reason = event.finish.reason
        if reason is None:
            raise _incomplete()
        return reason

    async def _generate(
        self, conversation: list[mllm_pb2.Message], json_schema: str = ""
    ) -> AsyncGenerator[mllm_pb2.GenerateEvent, None]:
        """The events of one response of the MLLM; its usage and timings are noted on the way."""
        request = mllm_pb2.GenerateRequest(
            request_id=self._request.request_id,
            messages=conversation,
            sampling=self._request.sampling,
            tools=self._request.tools if self._request.HasField("tools") else None,
            json_schema=json_schema,
        )
        if request.sampling.max_new_tokens:
            # The limit is the whole answer's.
            request.sampling.max_new_tokens -= self._usage.completion_tokens
        with self._ledger.hop("mllm") as hop:
            async with aclosing(self._engine.mllm.generate(request, self._deadline.for_hop())) as events:
                async for event in events:
                    hop.mark_event()
                    if event.HasField("usage"):
                        self._usage.prompt_tokens += event.usage.prompt_tokens
                        self._usage.image_tokens += event.usage.image_tokens
                        self._usage.completion_tokens += event.usage.completion_tokens
                    hop.reported.extend(event.finish.timings)
                    yield event

    def _is_spent(self) -> bool:
        """Whether the answer has as many tokens as it may."""
        limit = self._request.sampling.max_new_tokens
        return bool(limit) and self._usage.completion_tokens >= limit

    async def _send(self, call: PendingCall) -> None:
        """Announce a call and start it; its result is emitted when it arrives."""
        await self._emit(orchestrator_pb2.AnswerEvent(tool_call=call.to_message()))
        self._tools.append(asyncio.create_task(self._call_tool(call)))

    async def _call_tool(self, call: PendingCall) -> ToolOutcome:
        """Run one call to its end. A failure becomes an event, never an exception."""
        try:
            result = await self._decode(call)
        except SuperlinkError as error:
            error.request_id = error.request_id or self._request.request_id
            failure = orchestrator_pb2.ToolFailure(id=call.id, error=error.passed_on_by("orchestrator").to_message())
            self._engine.metrics.tool_calls.labels(call.decoder or "none", error.code).inc()
            await self._emit(orchestrator_pb2.AnswerEvent(tool_failure=failure))
            return ToolOutcome(call)
        self._engine.metrics.tool_calls.labels(call.decoder, "ok").inc()
        await self._emit(orchestrator_pb2.AnswerEvent(tool_result=result))
        if result.HasField("images"):
            return ToolOutcome(call, images=result.images)
        return ToolOutcome(call, detections=result.detections)

    async def _decode(self, call: PendingCall) -> orchestrator_pb2.ToolResult:
        if call.route is None:
            raise SuperlinkError(
                "unknown_tool",
                f"The answer asks for {call.groups[0].route}, but no deployed tool serves it.",
                status=grpc.StatusCode.UNIMPLEMENTED,
                service="orchestrator",
            )
        if call.route.needs_image and self._image is None:
            raise SuperlinkError(
                "no_image",
                f"{call.groups[0].route} needs an image, but the conversation has none. Send one.",
                status=grpc.StatusCode.INVALID_ARGUMENT,
                service="orchestrator",
            )
        request = decoder_pb2.DecodeRequest(
            request_id=self._request.request_id,
            image=self._image if call.route.needs_image else None,
            groups=call.groups,
            adapter_version=call.route.adapter_version,
            input_mode=call.route.input_mode,
        )
        if call.route.makes_images:
            request.diffusion.CopyFrom(self._request.diffusion)
        else:
            request.detection.CopyFrom(self._request.detection)
        may_go_on = self._rounds < self._max_rounds or bool(self._request.json_schema)
        goes_on = may_go_on and not self._request.ends_at_tool_calls
        share = TOOL_SHARE if goes_on else 1.0
        timeout_s = self._deadline.for_hop(self._engine.settings.tool_timeout_s, share=share)
        result = orchestrator_pb2.ToolResult(id=call.id)
        with self._ledger.hop(call.decoder) as hop:
            async with aclosing(self._engine.decoders[call.decoder].decode(request, timeout_s)) as events:
                async for event in events:
                    hop.mark_event()
                    hop.reported.extend(event.timings)
                    match event.WhichOneof("event"):
                        case "progress":
                            progress = orchestrator_pb2.ToolProgress(id=call.id, progress=event.progress)
                            await self._emit(orchestrator_pb2.AnswerEvent(tool_progress=progress))
                        case "detections":
                            result.detections.CopyFrom(event.detections)
                        case "images":
                            result.images.CopyFrom(event.images)
        if result.WhichOneof("result") is None:
            raise no_result(call.decoder)
        result.timings.extend(hop.timings())
        return result

    async def _emit(self, event: orchestrator_pb2.AnswerEvent) -> None:
        await self.events.put(event)


def _incomplete() -> SuperlinkError:
    """The MLLM's stream ended without a finish."""
    return SuperlinkError(
        "incomplete_answer",
        "The mllm service ended its answer without saying why.",
        status=grpc.StatusCode.INTERNAL,
        service="mllm",
    )


def no_result(decoder: str) -> SuperlinkError:
    """The decoder's stream ended without a result."""
    return SuperlinkError(
        "no_result",
        f"The {decoder} service ended its stream without a result.",
        status=grpc.StatusCode.INTERNAL,
        service=decoder,
    )
