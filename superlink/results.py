"""What the gateway answers, as typed values."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from pydantic import Field

from superlink.detections import Box, Detection, Keypoint, Result, RunLengthMask
from superlink.findings import Findings


class Span(Result):
    """Half-open range of code points in the answer's text: ``text[span.start : span.end]``."""

    start: int
    end: int


class FoundObject(Result):
    """One object as the wire has it."""

    # COCO: x, y, width, height in pixels of the upright image.
    bbox: tuple[float, float, float, float]
    score: float
    segmentation: RunLengthMask | None = None
    keypoints: tuple[Keypoint, ...] = ()

    def detection(self, phrase: str, bones: tuple[tuple[str, str], ...] = ()) -> Detection:
        """The object with the phrase that asked for it."""
        return Detection(
            phrase=phrase,
            box=_corners(self.bbox),
            score=self.score,
            mask=self.segmentation,
            keypoints=self.keypoints,
            bones=bones,
        )


class CategoryObject(FoundObject):
    """One object of the fast path."""

    category: str
    # Place of the category among those that were asked for.
    category_index: int = 0


class GeneratedImage(Result):
    """An image that a tool made."""

    # PNG file bytes in base64.
    b64_json: str = Field(repr=False)
    width: int
    height: int
    # Makes this image again, with one image asked for and all other options the same.
    seed: int

    @property
    def content(self) -> bytes:
        """PNG file bytes."""
        return base64.b64decode(self.b64_json)

    @property
    def image(self) -> Image.Image:
        """The image as Pillow has it."""
        return Image.open(io.BytesIO(self.content))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a PNG file."""
        Path(path).write_bytes(self.content)


class PhraseResult(Result):
    """What a tool found for one phrase."""

    phrase: str
    # Where the phrase stands in the answer; None on the fast path.
    span: Span | None = None
    route: str = ""
    # Whether it is in the image at all; None while the tool runs or when it failed.
    found: bool | None = None
    # Calibrated probability of the best candidate.
    score: float | None = None
    objects: tuple[FoundObject, ...] = Field(default=(), alias="detections")
    # From tools that make images.
    images: tuple[GeneratedImage, ...] = ()

    @property
    def detections(self) -> tuple[Detection, ...]:
        """The objects with the phrase that asked for them."""
        return tuple(found.detection(self.phrase) for found in self.objects)


class Problem(Result):
    """Why something failed: a problem document (RFC 9457)."""

    code: str = "unknown"
    detail: str = ""
    service: str = ""
    # The call that failed: "orchestrator>detection".
    hop: str = ""
    status: int = 500
    request_id: str = ""
    # Where the request belongs to a trace.
    trace_id: str | None = None
    retryable: bool = False
    retry_after_ms: int | None = None


class Timing(Result):
    """Where the time of one hop went."""

    service: str
    phase: str
    milliseconds: float


class Progress(Result):
    """How far a running tool is."""

    done: int
    total: int


class ToolCall(Result):
    """One call of a tool within an answer."""

    id: str
    tool: str
    status: Literal["running", "completed", "failed"]
    phrases: tuple[PhraseResult, ...] = ()
    # Of slow tools, while they run.
    progress: Progress | None = None
    error: Problem | None = None
    timings: tuple[Timing, ...] = ()

    @property
    def detections(self) -> tuple[Detection, ...]:
        """Everything that the call found."""
        return tuple(_each(self.phrases))

    def result_message(self, result: Result | Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The message that tells the model what came of a call that was left to the caller.

        ``result`` is what a tool of one's own found: an answer of ``Client.detect``, ``segment`` or ``pose``, a
        document in the same shape, or ``{"error": "…"}``. None: what the platform's tool found.
        """
        found = self if result is None else result
        content = (
            found.model_dump_json(by_alias=True, exclude_none=True)
            if isinstance(found, Result)
            else json.dumps(found, ensure_ascii=False)
        )
        return {"role": "tool", "tool_call_id": self.id, "content": content}


class PromptTokens(Result):
    """Of the prompt's tokens."""

    image_tokens: int = 0


class Usage(Result):
    """Tokens, summed over the rounds of an answer."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_tokens_details: PromptTokens = PromptTokens()


class ObservedObject(Result):
    """An object as the model read it."""

    # x1, y1, x2, y2 in thousandths of the image's width and height.
    box: tuple[int, int, int, int]
    score: float


class ObservedGroup(Result):
    """What the model read about one phrase."""

    phrase: str
    route: str
    objects: tuple[ObservedObject, ...] = ()
    failed: bool = False


class Observation(Result):
    """Tool results that the model read before it went on."""

    # Length of the answer when the model read them, in code points.
    position: int
    groups: tuple[ObservedGroup, ...] = ()


class Answer(Findings):
    """The model's text and what the tools found for it."""

    # With ``response_format`` it is JSON.
    text: str
    # Of an answer in JSON: what the model wrote first, with its tools. Spans and positions count in it.
    draft: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    observations: tuple[Observation, ...] = ()
    # "length": cut off at a limit. "tool_calls": the caller goes on from the results of the calls.
    finish_reason: Literal["stop", "length", "tool_calls"] = "stop"
    # The conversation with this answer, for the ``history`` of the next question; never part of a dump.
    messages: tuple[dict[str, Any], ...] = Field(default=(), exclude=True, repr=False)
    model: str = ""
    usage: Usage = Usage()
    timings: tuple[Timing, ...] = ()
    request_id: str = ""

    @property
    def phrases(self) -> tuple[PhraseResult, ...]:
        """Every phrase that was given to a tool, in the order of the text."""
        return tuple(phrase for call in self.tool_calls for phrase in call.phrases)

    @property
    def detections(self) -> tuple[Detection, ...]:
        """Everything that the tools found."""
        return tuple(_each(self.phrases))

    @property
    def names(self) -> tuple[str, ...]:
        """Every phrase that was given to a tool, once each."""
        return tuple(dict.fromkeys(phrase.phrase for phrase in self.phrases))

    @property
    def images(self) -> tuple[GeneratedImage, ...]:
        """Every image that tools made, in the order of the text."""
        return tuple(image for phrase in self.phrases for image in phrase.images)

    @property
    def errors(self) -> tuple[Problem, ...]:
        """Why tool calls failed; the text stands without them."""
        return tuple(call.error for call in self.tool_calls if call.error is not None)


class Presence(Result):
    """Whether one category is in the image at all."""

    phrase: str
    found: bool
    # Calibrated probability of the best candidate.
    score: float
    # Of poses: pairs of keypoints between which a line is drawn.
    bones: tuple[tuple[str, str], ...] = ()


class DetectionAnswer(Findings):
    """What was found for a list of categories or a phrase."""

    # One a category, in the order in which they were asked for.
    presence: tuple[Presence, ...] = Field(alias="categories")
    objects: tuple[CategoryObject, ...] = Field(alias="detections")
    model: str = ""
    usage: Usage = Usage()
    timings: tuple[Timing, ...] = ()
    request_id: str = ""

    @property
    def detections(self) -> tuple[Detection, ...]:
        """Everything that was found, best first."""
        bones = dict(enumerate(presence.bones for presence in self.presence))
        return tuple(found.detection(found.category, bones.get(found.category_index, ())) for found in self.objects)

    @property
    def names(self) -> tuple[str, ...]:
        """Every category that was asked for, found or not, once each."""
        return tuple(dict.fromkeys(presence.phrase for presence in self.presence))


class DrawingAnswer(Result):
    """The images that were drawn, or what became of an edited one."""

    images: tuple[GeneratedImage, ...] = Field(alias="data")
    model: str = ""
    timings: tuple[Timing, ...] = ()
    request_id: str = ""

    @property
    def image(self) -> Image.Image:
        """The first image as Pillow has it."""
        return self.images[0].image

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the first image as a PNG file."""
        self.images[0].save(path)


class ServiceState(Result):
    """Whether one service behind the gateway is ready."""

    name: str
    ready: bool
    # Why it is not.
    reason: str | None = None


class Readiness(Result):
    """Whether the gateway and everything behind it is ready."""

    ready: bool
    services: tuple[ServiceState, ...] = ()


@dataclass(frozen=True)
class TextDelta:
    """More of the text."""

    text: str


@dataclass(frozen=True)
class ToolCallChanged:
    """A tool call began, found something or failed; replaces what was known of the call with the same id."""

    call: ToolCall


@dataclass(frozen=True)
class ObservationRead:
    """The model read results and goes on."""

    observation: Observation


@dataclass(frozen=True)
class Finished:
    """The last event: the whole answer."""

    answer: Answer


AnswerEvent = TextDelta | ToolCallChanged | ObservationRead | Finished


def _corners(bbox: tuple[float, float, float, float]) -> Box:
    x, y, width, height = bbox
    return Box(x1=x, y1=y, x2=x + width, y2=y + height)


def _each(phrases: tuple[PhraseResult, ...]) -> Iterator[Detection]:
    for phrase in phrases:
        yield from phrase.detections
