"""The gateway's requests and responses as the SDK writes and reads them; no connection in sight.

Shared by the synchronous and the asynchronous client, which differ only in how they wait.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO, Literal, TypedDict, TypeVar

import httpx

from superlink.client_errors import RequestFailed, failure_of
from superlink.detections import Result
from superlink.images import ImageInput, encode_image
from superlink.response_format import ResponseFormat, response_format_of
from superlink.results import (
    Answer,
    AnswerEvent,
    DetectionAnswer,
    Finished,
    Observation,
    ObservationRead,
    Problem,
    Readiness,
    TextDelta,
    ToolCall,
    ToolCallChanged,
)

REQUEST_ID_HEADER = "x-request-id"
TIMEOUT_HEADER = "x-request-timeout-s"
IDEMPOTENCY_HEADER = "idempotency-key"
# Options of a chat request that stand in the extension field.
TOOL_OPTIONS = ("max_rounds", "score_threshold", "max_detections", "drawing")
_HEADER_VALUE = re.compile(r"[\x21-\x7e]+")

ResultType = TypeVar("ResultType", bound=Result)


@dataclass(frozen=True)
class Call:
    """One request."""

    # With the query string.
    path: str
    headers: Mapping[str, str]
    json: Mapping[str, Any] | None = None
    # Repeated fields have a list as their value.
    form: Mapping[str, Any] | None = None
    files: Mapping[str, tuple[str, bytes | BinaryIO, str]] | None = None
    # File bytes of the image that the answer is about, where one is sent.
    source: bytes | None = None
    method: Literal["POST", "GET"] = "POST"


class CallOptions(TypedDict, total=False):
    """Options of every request; None, or left out: made up for it."""

    # The id under which every process logs the request.
    request_id: str | None
    # Requests with the same key are one request to the gateway, across restarts of the caller, too. All attempts of a
    # call have the same key, so that this is only needed to make one call from several processes.
    idempotency_key: str | None


class ChatOptions(CallOptions, total=False):
    """Options of a chat request; None, or left out: the gateway's default."""

    # Earlier messages in OpenAI's shape, such as ``Answer.messages``; answers may carry the ``superlink`` field that
    # they came with.
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
    # Names of deployed tools, whose calls are left to the caller: the answer ends at the first round that calls some,
    # with the finish reason "tool_calls", and goes on from their results (``ToolCall.result_message``) in a history.
    tools: Sequence[str] | None
    # "none": no tool may be called.
    tool_choice: Literal["auto", "none"] | None
    # The text is JSON: any object ("json_object"), what fits a JSON schema, or what a pydantic model reads.
    response_format: ResponseFormat | None


class DetectOptions(CallOptions, total=False):
    """Options of a detection request; None, or left out: the gateway's default."""

    # Detections below this probability are dropped.
    score_threshold: float | None
    max_detections: int | None
    model: str | None


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
    prompt: str | None,
    options: ChatOptions,
    *,
    stream: bool,
) -> Call:
    """``POST /v1/chat/completions`` with the images before the regions, and both before the words.

    ``prompt`` None: the answer goes on from a history that ends in results of tools. Raises TypeError or ValueError for
    what cannot be asked.
    """
    images = [encode_image(each) for each in listed_images(image)]
    content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": each.data_url()}} for each in images]
    given, headers = split_options(options)
    marks: Any = given.pop("regions", ())
    content += [{"type": "region", "region": mark} for mark in marks]
    if prompt is not None:
        content.append({"type": "text", "text": prompt})
    elif content:
        raise ValueError("Images and regions need a prompt: say what you want to know about them.")
    messages = [*given.pop("history", ()), *([{"role": "user", "content": content}] if content else [])]
    if not messages:
        raise ValueError("Give a prompt, or a history that ends in results of tools.")
    extension = {name: given.pop(name) for name in TOOL_OPTIONS if name in given}
    body: dict[str, Any] = {"messages": messages, **given}
    if "tools" in given:
        if isinstance(given["tools"], str):
            raise TypeError("tools is a list of names.")
        body["tools"] = [{"type": "function", "function": {"name": name}} for name in given["tools"]]
    if "response_format" in given:
        body["response_format"] = response_format_of(given["response_format"])
    if extension:
        body["superlink"] = extension
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return Call("/v1/chat/completions", headers, json=body, source=images[-1].content if images else None)


def find_call(
    path: str,
    image: ImageInput,
    categories: Sequence[str] | None,
    phrase: str | None,
    options: DetectOptions | SegmentOptions | PoseOptions,
) -> Call:
    """``POST /v1/detect``, ``/v1/segment`` or ``/v1/pose`` as an upload, which is a quarter smaller than a data URL.

    Raises TypeError or ValueError unless exactly one of ``categories`` (a list) and ``phrase`` is given; with regions
    none may be.
    """
    if isinstance(categories, str):
        raise TypeError("categories is a list of names; a single text goes into phrase.")
    if isinstance(options.get("keypoints"), str):
        raise TypeError("keypoints is a list of names.")
    regions: Any = options.get("regions") or ()
    if categories is not None and phrase is not None or not (categories is not None or phrase is not None or regions):
        raise ValueError("Give either categories or phrase.")
    encoded = encode_image(image)
    given, headers = split_options(options)
    given.pop("regions", None)
    form: dict[str, Any] = {name: str(value) for name, value in given.items() if name != "keypoints"}
    if "keypoints" in given:
        form["keypoints"] = list(given["keypoints"])
    if regions:
        form["regions"] = json.dumps(list(regions))
    if categories is not None:
        form["categories"] = list(categories)
    elif phrase is not None:
        form["phrase"] = phrase
    file = ("image", encoded.content, encoded.media_type)
    return Call(path, headers, form=form, files={"image": file}, source=encoded.content)


def answer_of(call: Call, response: httpx.Response) -> Answer:
    """A chat response that was not streamed."""
    return _validated(Answer, answer_fields(call, response.json()), call, response)


def detections_of(call: Call, response: httpx.Response) -> DetectionAnswer:
    """A detection response."""
    return _validated(DetectionAnswer, response.json(), call, response)


def readiness_of(response: httpx.Response) -> Readiness:
    """What ``/readyz`` says, ready or not. Raises ValueError or KeyError where a success is not the gateway's."""
    if response.is_success:
        return Readiness.model_validate({"ready": True, "services": response.json()["services"]})
    try:
        return Readiness.model_validate({"ready": False, "services": response.json().get("services", ())})
    except (ValueError, AttributeError):
        return Readiness(ready=False)


def problem_of(response: httpx.Response) -> RequestFailed:
    """A response with an error status as an exception, problem document or not. The body must have been read."""
    # What a proxy says; a gateway's document says more, and is believed.
    known = {
        "status": response.status_code,
        "request_id": request_id_of(response),
        "retryable": response.status_code in (429, 503),
        "retry_after_ms": _retry_after_ms(response),
        "detail": _detail_of(response),
    }
    try:
        said = {name: value for name, value in response.json().items() if value is not None}
        return failure_of(Problem.model_validate({**known, **said}))
    except (ValueError, AttributeError):
        return failure_of(Problem.model_validate(known))


def failure_of_event(event: Mapping[str, Any]) -> RequestFailed:
    """An event of a stream that holds an ``error`` as an exception."""
    return failure_of(Problem.model_validate({"detail": event["error"].get("message", ""), **event["error"]}))


def request_id_of(response: httpx.Response) -> str:
    """The id under which every process logged the request."""
    return str(response.headers.get(REQUEST_ID_HEADER, ""))


def split_options(options: CallOptions) -> tuple[dict[str, Any], dict[str, str]]:
    """The options that are given, and those that travel as headers.

    Raises ValueError for an id or key that cannot stand in a header.
    """
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    headers: dict[str, str] = {}
    for name, header in (("request_id", REQUEST_ID_HEADER), ("idempotency_key", IDEMPOTENCY_HEADER)):
        if name in given:
            headers[header] = str(given.pop(name))
            if not _HEADER_VALUE.fullmatch(headers[header]):
                raise ValueError(f"{name} has visible ASCII characters and no spaces, unlike {headers[header]!r}.")
    return given, headers


class AnswerAssembler:
    """Turns the chunks of a streamed answer into events and, at the end, into the answer."""

    def __init__(self, call: Call, request_id: str) -> None:
        self._call = call
        self._text: list[str] = []
        self._draft: list[str] = []
        # As they came, by their ids; what is sent back says it in the same words.
        self._calls: dict[str, Mapping[str, Any]] = {}
        self._standard_calls: list[Mapping[str, Any]] = []
        self._observations: list[Mapping[str, Any]] = []
        self._fields: dict[str, Any] = {"source": call.source, "request_id": request_id}

    def add(self, document: Mapping[str, Any]) -> list[AnswerEvent]:
        """What one chunk says."""
        self._fields["model"] = document.get("model", "")
        if document.get("usage"):
            self._fields["usage"] = document["usage"]
        events: list[AnswerEvent] = []
        for choice in document.get("choices", []):
            if choice.get("finish_reason"):
                self._fields["finish_reason"] = choice["finish_reason"]
            events += self._delta(choice.get("delta", {}))
        return events

    def end(self) -> Finished:
        """The whole answer."""
        extension: dict[str, Any] = {"tool_calls": list(self._calls.values()), "observations": self._observations}
        if self._draft:
            extension["draft"] = "".join(self._draft)
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self._text), "superlink": extension}
        if self._standard_calls:
            message["tool_calls"] = self._standard_calls
        return Finished(Answer.model_validate({**self._fields, **_said(self._call, message)}))

    def _delta(self, delta: Mapping[str, Any]) -> list[AnswerEvent]:
        events: list[AnswerEvent] = []
        if delta.get("content"):
            self._text.append(delta["content"])
            events.append(TextDelta(delta["content"]))
        self._standard_calls += delta.get("tool_calls") or ()
        extension = delta.get("superlink") or {}
        if extension.get("draft") is not None:
            self._draft.append(extension["draft"])
        for entry in extension.get("tool_calls", []):
            call = ToolCall.model_validate(entry)
            self._calls[call.id] = entry
            events.append(ToolCallChanged(call))
        for entry in extension.get("observations", []):
            self._observations.append(entry)
            events.append(ObservationRead(Observation.model_validate(entry)))
        for name in ("timings", "image"):
            if extension.get(name) is not None:
                self._fields[name] = extension[name]
        return events


def answer_fields(call: Call, completion: Mapping[str, Any]) -> dict[str, Any]:
    """Of an ``Answer``, from a chat completion."""
    choice = completion["choices"][0]
    extension = choice["message"].get("superlink") or {}
    return {
        **_said(call, choice["message"]),
        "finish_reason": choice["finish_reason"],
        "model": completion.get("model", ""),
        "usage": completion.get("usage") or {},
        "timings": extension.get("timings") or (),
        "image": extension.get("image"),
    }


def _said(call: Call, message: Mapping[str, Any]) -> dict[str, Any]:
    """What the answer ``message`` says, and the conversation with it."""
    extension = message.get("superlink") or {}
    return {
        "text": message["content"],
        "draft": extension.get("draft") or "",
        "tool_calls": extension.get("tool_calls") or (),
        "observations": extension.get("observations") or (),
        "messages": [*(call.json or {})["messages"], message],
    }


def _validated(model: type[ResultType], fields: Mapping[str, Any], call: Call, response: httpx.Response) -> ResultType:
    return model.model_validate({**fields, "source": call.source, "request_id": request_id_of(response)})


def _retry_after_ms(response: httpx.Response) -> int | None:
    """What the header says, in seconds or as a date."""
    header = response.headers.get("retry-after", "")
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(0, round(seconds * 1000))


def _detail_of(response: httpx.Response) -> str:
    """What an answer says that is no problem document."""
    if "location" in response.headers:
        return f"The address redirects to {response.headers['location']}. Use that one."
    return response.text[:500] or response.reason_phrase


def listed_images(image: ImageInput | Sequence[ImageInput] | None) -> list[ImageInput]:
    """One image, or several, or none."""
    if image is None:
        return []
    return list(image) if isinstance(image, (list, tuple)) else [image]  # type: ignore[list-item]
