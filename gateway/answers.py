"""Gathers the events of one answer into the extension field; knows neither HTTP nor gRPC calls."""

from __future__ import annotations

from gateway.chat_schema import AnswerExtension, Delta, FinishReason
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
from superlink.errors import SuperlinkError
from superlink.v1 import mllm_pb2, orchestrator_pb2, types_pb2


class AnswerCollector:
    """Follows one answer."""

    def __init__(self, request_id: str, image: ImageSize | None) -> None:
        """``image``: the size read from the header; a tool that decoded the image knows better."""
        self._request_id = request_id
        self._text: list[str] = []
        self._length = 0
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

    def add(self, event: orchestrator_pb2.AnswerEvent) -> Delta | None:
        """Take the next event; returns what a stream shows of it."""
        match event.WhichOneof("event"):
            case "text_delta":
                self._text.append(event.text_delta.text)
                self._length += len(event.text_delta.text)
                return Delta(content=event.text_delta.text)
            case "tool_call":
                return self._show(_running(event.tool_call))
            case "tool_progress":
                done = event.tool_progress.progress
                progress = ProgressResult(done=done.done, total=done.total)
                call = self._calls[event.tool_progress.id]
                return self._show(call.model_copy(update={"progress": progress}))
            case "tool_result":
                if event.tool_result.HasField("detections"):
                    found = event.tool_result.detections
                    self._image = ImageSize(width=found.image_width, height=found.image_height)
                return self._show(_completed(self._calls[event.tool_result.id], event.tool_result))
            case "tool_failure":
                error = SuperlinkError.from_message(event.tool_failure.error)
                problem = Problem.from_error(error, self._request_id)
                call = self._calls[event.tool_failure.id]
                return self._show(call.model_copy(update={"status": "failed", "error": problem, "progress": None}))
            case "observation":
                observation = observation_of(event.observation, self._length)
                self._observations.append(observation)
                return Delta(superlink=AnswerExtension(observations=[observation]))
            case "usage":
                self.usage = event.usage
            case "finish":
                # An answer that still wants to observe was cut off by the limit of rounds.
                complete = event.finish.reason == mllm_pb2.FINISH_REASON_STOP
                self.finish_reason = "stop" if complete else "length"
                self.timings = timings_of(event.finish.timings)
        return None

    def extension(self) -> AnswerExtension:
        """The complete field."""
        return self.summary().model_copy(
            update={"tool_calls": list(self._calls.values()), "observations": self._observations}
        )

    def summary(self) -> AnswerExtension:
        """What is known only at the end; the last chunk of a stream carries it."""
        return AnswerExtension(rounds=len(self._observations), timings=self.timings, image=self._image)

    def _show(self, call: ToolCallResult) -> Delta:
        self._calls[call.id] = call
        return Delta(superlink=AnswerExtension(tool_calls=[call]))


def _running(call: orchestrator_pb2.ToolCall) -> ToolCallResult:
    return ToolCallResult(
        id=call.id, tool=call.decoder, status="running", phrases=[_phrase(group) for group in call.groups]
    )


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
