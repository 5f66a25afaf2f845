"""Gathers the events of one answer into the extension field; knows neither HTTP nor gRPC calls."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.chat_schema import AnswerExtension, ChunkChoice, Delta, FinishReason
from gateway.log_probabilities import LogProbabilities, TakenToken, taken_token_of
from gateway.problems import Problem
from gateway.results import (
    ImageSize,
    ObservationResult,
    PhraseResult,
    ProgressResult,
    Span,
    TimingEntry,
    ToolCallResult,
    detection_of,
    generated_image_of,
    observation_of,
    timings_of,
)
from gateway.tool_call_schema import (
    CallArguments,
    CalledFunction,
    CalledPhrase,
    StandardToolCall,
    StandardToolCallDelta,
)
from superlink.errors import SuperlinkError
from superlink.v1 import mllm_pb2, orchestrator_pb2, types_pb2

_FINISH_REASONS: dict[int, FinishReason] = {
    mllm_pb2.FINISH_REASON_STOP: "stop",
    mllm_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
}


class AnswerCollector:
    """Follows one answer."""

    def __init__(
        self,
        request_id: str,
        image: ImageSize | None,
        *,
        leaves_calls_to_client: bool = False,
        has_draft: bool = False,
        reports_log_probabilities: bool = False,
    ) -> None:
        """``image``: the size read from the header; a tool that decoded the image knows better."""
        self._request_id = request_id
        self._leaves_calls_to_client = leaves_calls_to_client
        self._text: list[str] = []
        self._draft: list[str] | None = [] if has_draft else None
        # Of the text and the draft.
        self._length = 0
        self._log_probabilities: list[TakenToken] | None = [] if reports_log_probabilities else None
        # By the ids of the events.
        self._calls: dict[str, ToolCallResult] = {}
        self._observations: list[ObservationResult] = []
        self._image = image
        self.usage = mllm_pb2.Usage()
        self.timings: list[TimingEntry] = []
        self.finish_reason: FinishReason = "stop"

    @property
    def text(self) -> str:
        """The visible answer so far."""
        return "".join(self._text)

    @property
    def log_probabilities(self) -> LogProbabilities | None:
        """Of all tokens so far; None where they were not asked for."""
        return None if self._log_probabilities is None else LogProbabilities(content=self._log_probabilities)

    @property
    def standard_calls(self) -> list[StandardToolCall] | None:
        """The tool calls that the client goes on from; None where there are none."""
        calls = [_standard(call) for call in self._calls.values()] if self._leaves_calls_to_client else []
        return calls or None

    def add(self, event: orchestrator_pb2.AnswerEvent) -> ChunkChoice | None:
        """Take the next event; returns what a stream shows of it."""
        match event.WhichOneof("event"):
            case "text_delta":
                text = event.text_delta.text
                self._text.append(text)
                self._length += len(text)
                return self._with_tokens(Delta(content=text), event.text_delta.tokens)
            case "draft_delta":
                return self._show_draft(event.draft_delta)
            case "tool_call":
                return self._begin(event.tool_call)
            case "tool_progress":
                done = event.tool_progress.progress
                progress = ProgressResult(done=done.done, total=done.total)
                call = self._calls[event.tool_progress.id]
                return self._show(event.tool_progress.id, call.model_copy(update={"progress": progress}))
            case "tool_result":
                if event.tool_result.HasField("detections"):
                    found = event.tool_result.detections
                    self._image = ImageSize(width=found.image_width, height=found.image_height)
                result = event.tool_result
                return self._show(result.id, _completed(self._calls[result.id], result))
            case "tool_failure":
                error = SuperlinkError.from_message(event.tool_failure.error)
                problem = Problem.from_error(error, self._request_id)
                call = self._calls[event.tool_failure.id]
                failed = call.model_copy(update={"status": "failed", "error": problem, "progress": None})
                return self._show(event.tool_failure.id, failed)
            case "observation":
                observation = observation_of(event.observation, self._length)
                self._observations.append(observation)
                return _extended(AnswerExtension(observations=[observation]))
            case "usage":
                self.usage = event.usage
            case "finish":
                # An answer that still wants to observe was cut off by the limit of rounds.
                self.finish_reason = _FINISH_REASONS.get(event.finish.reason, "length")
                self.timings = timings_of(event.finish.timings)
        return None

    def extension(self) -> AnswerExtension:
        """The complete field."""
        draft = None if self._draft is None else "".join(self._draft)
        return self.summary().model_copy(
            update={"tool_calls": list(self._calls.values()), "observations": self._observations, "draft": draft}
        )

    def summary(self) -> AnswerExtension:
        """What is known only at the end; the last chunk of a stream carries it."""
        return AnswerExtension(rounds=len(self._observations), timings=self.timings, image=self._image)

    def _show_draft(self, delta: mllm_pb2.TextDelta) -> ChunkChoice | None:
        """More of the draft. Its words are not the answer's; which tools it calls is."""
        tokens = [token for token in delta.tokens if not token.encoded]
        if not delta.text and not tokens:
            return None
        if self._draft is not None:
            self._draft.append(delta.text)
        self._length += len(delta.text)
        return self._with_tokens(Delta(superlink=AnswerExtension(draft=delta.text)), tokens)

    def _with_tokens(self, delta: Delta, tokens: Sequence[mllm_pb2.TokenChoice]) -> ChunkChoice:
        if self._log_probabilities is None:
            return ChunkChoice(delta=delta)
        taken = [taken_token_of(token) for token in tokens]
        self._log_probabilities += taken
        return ChunkChoice(delta=delta, logprobs=LogProbabilities(content=taken) if taken else None)

    def _begin(self, call: orchestrator_pb2.ToolCall) -> ChunkChoice:
        # Ids are unique in one answer; calls that clients send results of stay apart through the whole conversation.
        name = f"{call.id}-{self._request_id}" if self._leaves_calls_to_client else call.id
        phrases = [_phrase(group) for group in call.groups]
        running = ToolCallResult(id=name, tool=call.decoder, status="running", phrases=phrases)
        shown = self._show(call.id, running)
        if self._leaves_calls_to_client:
            standard = StandardToolCallDelta(index=len(self._calls) - 1, **_standard(running).model_dump())
            shown.delta.tool_calls = [standard]
        return shown

    def _show(self, event_id: str, call: ToolCallResult) -> ChunkChoice:
        self._calls[event_id] = call
        return _extended(AnswerExtension(tool_calls=[call]))


def _extended(extension: AnswerExtension) -> ChunkChoice:
    return ChunkChoice(delta=Delta(superlink=extension))


def _standard(call: ToolCallResult) -> StandardToolCall:
    phrases = [CalledPhrase(phrase=each.phrase, route=each.route, span=each.span) for each in call.phrases]
    arguments = CallArguments(phrases=phrases).model_dump_json(exclude_none=True)
    return StandardToolCall(id=call.id, function=CalledFunction(name=call.tool, arguments=arguments))


def _phrase(group: types_pb2.LinkGroup) -> PhraseResult:
    return PhraseResult(
        phrase=group.phrase,
        span=Span(start=group.span.start, end=group.span.end) if group.HasField("span") else None,
        route=group.route,
        log_probability=round(group.log_probability, 5),
    )


def _completed(call: ToolCallResult, result: orchestrator_pb2.ToolResult) -> ToolCallResult:
    presence = {entry.group: entry for entry in result.detections.presence}
    phrases = [
        phrase.model_copy(
            update={
                "found": presence[index].found if index in presence else None,
                "score": round(presence[index].score, 5) if index in presence else None,
                "detections": [detection_of(each) for each in result.detections.detections if each.group == index],
                "images": [
                    generated_image_of(image)
                    for image, group in zip(result.images.images, result.images.groups, strict=True)
                    if group == index
                ],
            }
        )
        for index, phrase in enumerate(call.phrases)
    ]
    timings = timings_of(result.timings)
    return call.model_copy(update={"status": "completed", "phrases": phrases, "timings": timings, "progress": None})
