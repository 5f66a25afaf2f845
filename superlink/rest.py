"""The gateway's requests and responses as the SDK writes and reads them; no connection in sight.

Shared by the synchronous and the asynchronous client, which differ only in how they wait.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypedDict, TypeVar

import grpc
import httpx
from pydantic import ValidationError

from superlink.errors import SuperlinkError, status_for_http
from superlink.images import ImageInput, encode_image
from superlink.results import (
    Answer,
    AnswerEvent,
    DetectionAnswer,
    Finished,
    Observation,
    ObservationRead,
    Problem,
    Readiness,
    Result,
    TextDelta,
    ToolCall,
    ToolCallChanged,
)

REQUEST_ID_HEADER = "x-request-id"
TIMEOUT_HEADER = "x-request-timeout-s"
# These say "not now", and when to try again.
RETRIED_STATUSES = frozenset({429, 503})
# Options of a chat request that stand in the extension field.
TOOL_OPTIONS = ("max_rounds", "score_threshold", "max_detections", "drawing")
FIRST_RETRY_DELAY_S = 0.5
LONGEST_RETRY_DELAY_S = 10.0


class RequestFailed(SuperlinkError):
    """The gateway answered with a problem. ``http_status`` is the response's own."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(
            problem.code,
            problem.detail,
            status=status_for_http(problem.status),
            service=problem.service,
            retryable=problem.retryable,
            retry_after_ms=problem.retry_after_ms or 0,
            request_id=problem.request_id,
        )
        self.problem = problem

    @property
    def http_status(self) -> int:
        """The status of the response."""
        return self.problem.status

    def __str__(self) -> str:
        place = f" [{self.service}]" if self.service else ""
        request = f" (request {self.request_id})" if self.request_id else ""
        return f"{self.code}{place}: {self.message}{request}"


class GatewayUnreachable(SuperlinkError):
    """No gateway answered at the address, or the connection broke."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            "gateway_unreachable",
            f"No gateway answers at {url} ({reason}). Start one with `superlink up`, or name another address.",
            status=grpc.StatusCode.UNAVAILABLE,
            service="gateway",
        )


class GatewayTimeout(SuperlinkError):
    """The gateway did not answer within the client's timeout."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(
            "client_timeout",
            f"No answer within {timeout_s:g} s. Give the client a longer timeout_s.",
            status=grpc.StatusCode.DEADLINE_EXCEEDED,
            service="gateway",
            retryable=True,
        )


ResultType = TypeVar("ResultType", bound=Result)


@dataclass(frozen=True)
class Call:
    """One HTTP request."""

    method: str
    path: str
    headers: Mapping[str, str]
    json: Mapping[str, Any] | None = None
    # Repeated fields have a list as their value.
    form: Mapping[str, Any] | None = None
    files: Mapping[str, tuple[str, bytes, str]] | None = None


class ChatOptions(TypedDict, total=False):
    """Options of a chat request; None, or left out: the gateway's default."""

    # Earlier messages in OpenAI's shape; answers may carry the ``superlink`` field that they came with.
    history: Sequence[Mapping[str, Any]]
    # What is marked on the last image: {"box": [x1, y1, x2, y2]}, {"points": [[x, y]]}, a stroke or a mask.
    regions: Sequence[Mapping[str, Any]]
    max_tokens: int | None
    # 0, the default: always the most likely answer.
    temperature: float | None
    top_p: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    model: str | None
    # How often the model may read tool results and go on. 0: never.
    max_rounds: int | None
    # Detections below this probability are dropped.
    score_threshold: float | None
    max_detections: int | None
    # For tools that make images: seed, steps, guidance, image_guidance.
    drawing: Mapping[str, int | float] | None
    # The id under which every process logs the request; made by the gateway when left out.
    request_id: str | None


class DetectOptions(TypedDict, total=False):
    """Options of a detection request; None, or left out: the gateway's default."""

    # Detections below this probability are dropped.
    score_threshold: float | None
    max_detections: int | None
    model: str | None
    request_id: str | None


class SegmentOptions(DetectOptions, total=False):
    """Options of a segmentation request; None, or left out: the gateway's default."""

    # One mask a phrase, of all that it means, instead of one mask a thing.
    semantic: bool | None
    # Things that are marked rather than named, as in ``ChatOptions``.
    regions: Sequence[Mapping[str, Any]]


class PoseOptions(DetectOptions, total=False):
    """Options of a pose request; None, or left out: the gateway's default."""

    # Names of the keypoints to find; left out: all that the tool knows of what is asked for.
    keypoints: Sequence[str] | None


def chat_call(
    image: ImageInput | Sequence[ImageInput] | None,
    prompt: str,
    *,
    stream: bool,
    timeout_s: float,
    options: ChatOptions,
) -> Call:
    """``POST /v1/chat/completions`` with the images before the regions, and both before the words."""
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": encode_image(each).data_url()}} for each in _listed(image)
    ]
    given = {name: value for name, value in options.items() if value is not None}
    marks: Any = given.pop("regions", ())
    content += [{"type": "region", "region": mark} for mark in marks]
    content.append({"type": "text", "text": prompt})
    history = given.pop("history", ())
    headers = call_headers(timeout_s, given.pop("request_id", None))
    extension = {name: given.pop(name) for name in TOOL_OPTIONS if name in given}
    body: dict[str, Any] = {"messages": [*history, {"role": "user", "content": content}], **given}  # type: ignore[misc]
    if extension:
        body["superlink"] = extension
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return Call("POST", "/v1/chat/completions", headers, json=body)


def find_call(
    path: str,
    image: ImageInput,
    categories: Sequence[str] | None,
    phrase: str | None,
    *,
    timeout_s: float,
    options: DetectOptions | SegmentOptions | PoseOptions,
) -> Call:
    """``POST /v1/detect``, ``/v1/segment`` or ``/v1/pose`` as an upload, which is a quarter smaller than a data URL.

    Raises TypeError or ValueError unless exactly one of ``categories`` (a list) and ``phrase`` is given; with regions
    none may be.
    """
    if isinstance(categories, str):
        raise TypeError("categories is a list of names; a single text goes into phrase.")
    regions: Any = options.get("regions") or ()
    if categories is not None and phrase is not None or not (categories is not None or phrase is not None or regions):
        raise ValueError("Give either categories or phrase.")
    encoded = encode_image(image)
    given: dict[str, Any] = {
        name: list(value) if name == "keypoints" and isinstance(value, Sequence) else str(value)
        for name, value in options.items()
        if value is not None and name != "regions"
    }
    if regions:
        given["regions"] = json.dumps(list(regions))
    headers = call_headers(timeout_s, given.pop("request_id", None))
    wanted: dict[str, Any] = {}
    if categories is not None or phrase is not None:
        wanted = {"categories": list(categories)} if categories is not None else {"phrase": phrase}
    file = ("image", encoded.content, encoded.media_type)
    return Call("POST", path, headers, form={**given, **wanted}, files={"image": file})


def answer_of(response: httpx.Response) -> Answer:
    """A chat response that was not streamed."""
    return _validated(Answer, _answer_fields(response.json()), response)


def detections_of(response: httpx.Response) -> DetectionAnswer:
    """A detection response."""
    return _validated(DetectionAnswer, response.json(), response)


def readiness_of(response: httpx.Response) -> Readiness:
    """What ``/readyz`` says, ready or not."""
    try:
        services = response.json().get("services", [])
    except ValueError:
        services = []
    return Readiness.model_validate({"ready": response.is_success, "services": services})


def problem_of(response: httpx.Response) -> RequestFailed:
    """A response with an error status as an exception, problem document or not. The body must have been read."""
    try:
        problem = Problem.model_validate({"status": response.status_code, **response.json()})
    except (ValueError, TypeError, ValidationError):
        detail = response.text[:500] or response.reason_phrase
        problem = Problem(code="unknown", detail=detail, status=response.status_code)
    if not problem.request_id:
        problem = problem.model_copy(update={"request_id": request_id_of(response)})
    return RequestFailed(problem)


def failure_of_event(event: Mapping[str, Any]) -> RequestFailed:
    """An event of a stream that holds an ``error`` as an exception."""
    return RequestFailed(Problem.model_validate({"detail": event["error"].get("message", ""), **event["error"]}))


def request_id_of(response: httpx.Response) -> str:
    """The id under which every process logged the request."""
    return str(response.headers.get(REQUEST_ID_HEADER, ""))


def retry_delay_s(response: httpx.Response, attempt: int) -> float:
    """How long to wait before attempt ``attempt + 1``: what the response says, else twice as long each time."""
    header = response.headers.get("retry-after", "")
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return float(min(FIRST_RETRY_DELAY_S * 2**attempt, LONGEST_RETRY_DELAY_S))


class AnswerAssembler:
    """Turns the chunks of a streamed answer into events and, at the end, into the answer."""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._text: list[str] = []
        self._calls: dict[str, ToolCall] = {}
        self._observations: list[Observation] = []
        self._fields: dict[str, Any] = {}
        self._received = b""

    def feed(self, received: bytes) -> Iterator[AnswerEvent]:
        """Take more of the event stream, cut anywhere. Raises RequestFailed where the stream reports a failure."""
        # Only "\n" ends a line here; str.splitlines also cuts at separators that JSON texts may hold.
        *lines, self._received = (self._received + received).split(b"\n")
        for line in lines:
            yield from self._line(line.decode("utf-8"))

    def answer(self) -> Answer:
        """The answer as far as it arrived."""
        return Answer(
            text="".join(self._text),
            tool_calls=tuple(self._calls.values()),
            observations=tuple(self._observations),
            request_id=self._request_id,
            **self._fields,
        )

    def _line(self, line: str) -> list[AnswerEvent]:
        if not line.startswith("data:"):
            return []
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return [Finished(self.answer())]
        chunk = json.loads(data)
        if "error" in chunk:
            raise failure_of_event(chunk)
        self._fields["model"] = chunk.get("model", "")
        if chunk.get("usage"):
            self._fields["usage"] = chunk["usage"]
        events: list[AnswerEvent] = []
        for choice in chunk.get("choices", []):
            if choice.get("finish_reason"):
                self._fields["finish_reason"] = choice["finish_reason"]
            events += self._delta(choice.get("delta", {}))
        return events

    def _delta(self, delta: Mapping[str, Any]) -> list[AnswerEvent]:
        events: list[AnswerEvent] = []
        if delta.get("content"):
            self._text.append(delta["content"])
            events.append(TextDelta(delta["content"]))
        extension = delta.get("superlink") or {}
        for entry in extension.get("tool_calls", []):
            call = ToolCall.model_validate(entry)
            self._calls[call.id] = call
            events.append(ToolCallChanged(call))
        for entry in extension.get("observations", []):
            observation = Observation.model_validate(entry)
            self._observations.append(observation)
            events.append(ObservationRead(observation))
        for name in ("timings", "image"):
            if extension.get(name) is not None:
                self._fields[name] = extension[name]
        return events


def call_headers(timeout_s: float, request_id: Any) -> dict[str, str]:
    """The deadline for the gateway and, where the caller has one, the request id."""
    identity = {REQUEST_ID_HEADER: str(request_id)} if request_id else {}
    return {TIMEOUT_HEADER: f"{timeout_s:g}", **identity}


def _answer_fields(completion: Mapping[str, Any]) -> dict[str, Any]:
    choice = completion["choices"][0]
    extension = choice["message"].get("superlink") or {}
    return {
        "text": choice["message"]["content"],
        "finish_reason": choice["finish_reason"],
        "model": completion.get("model", ""),
        "usage": completion.get("usage") or {},
        "tool_calls": extension.get("tool_calls") or (),
        "observations": extension.get("observations") or (),
        "timings": extension.get("timings") or (),
        "image": extension.get("image"),
    }


def _validated(model: type[ResultType], fields: dict[str, Any], response: httpx.Response) -> ResultType:
    return model.model_validate({**fields, "request_id": request_id_of(response)})


def _listed(image: ImageInput | Sequence[ImageInput] | None) -> list[ImageInput]:
    if image is None:
        return []
    return list(image) if isinstance(image, (list, tuple)) else [image]  # type: ignore[list-item]
