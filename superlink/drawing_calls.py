"""Requests that make images, and what comes back, as the SDK writes and reads them; no connection in sight."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypedDict

import httpx

from superlink.images import EncodedImage, ImageInput, encode_image
from superlink.rest import Call, call_headers, failure_of_event, request_id_of
from superlink.results import DrawingAnswer, GeneratedImage, Progress


class DrawingTuning(TypedDict, total=False):
    """How a tool that makes images works; None, or left out: the tool's default."""

    # The same seed makes the same image.
    seed: int | None
    # More take longer and bring out more.
    steps: int | None
    # How far to follow the prompt; 1 is not to exaggerate it.
    guidance: float | None
    # How far to keep to the source image when editing.
    image_guidance: float | None


class DrawingOptions(DrawingTuning, total=False):
    """Options of a request that makes images; None, or left out: the gateway's default."""

    # How many images to make.
    n: int | None
    # Width and height in pixels, multiples of 16.
    size: tuple[int, int] | None
    model: str | None
    # The id under which every process logs the request; made by the gateway when left out.
    request_id: str | None


def generate_call(prompt: str, *, stream: bool, timeout_s: float, options: DrawingOptions) -> Call:
    """``POST /v1/images/generations``."""
    fields, tuning, headers = _parts(options, timeout_s)
    body: dict[str, Any] = {"prompt": prompt, **fields}
    if tuning:
        body["superlink"] = tuning
    if stream:
        body["stream"] = True
    return Call("POST", "/v1/images/generations", headers, json=body)


def edit_call(
    image: ImageInput,
    prompt: str,
    mask: ImageInput | None,
    *,
    stream: bool,
    timeout_s: float,
    options: DrawingOptions,
) -> Call:
    """``POST /v1/images/edits`` as an upload."""
    fields, tuning, headers = _parts(options, timeout_s)
    form = {"prompt": prompt, **fields, **{f"superlink[{name}]": value for name, value in tuning.items()}}
    if stream:
        form["stream"] = "true"
    files = {"image": _file("image", encode_image(image))}
    if mask is not None:
        files["mask"] = _file("mask", encode_image(mask))
    return Call(
        "POST", "/v1/images/edits", headers, form={name: str(value) for name, value in form.items()}, files=files
    )


def drawing_of(response: httpx.Response) -> DrawingAnswer:
    """A response that was not streamed."""
    return DrawingAnswer.model_validate({**response.json(), "request_id": request_id_of(response)})


class DrawingAssembler:
    """Turns the events of a streamed drawing into progress and, at the end, into the answer."""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id
        self._images: list[GeneratedImage] = []
        self._fields: dict[str, Any] = {}
        self._received = b""

    def feed(self, received: bytes) -> Iterator[Progress | DrawingAnswer]:
        """Take more of the event stream, cut anywhere. Raises RequestFailed where the stream reports a failure."""
        *lines, self._received = (self._received + received).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield from self._event(line.removeprefix(b"data:").strip())

    def _event(self, data: bytes) -> Iterator[Progress | DrawingAnswer]:
        if data == b"[DONE]":
            yield DrawingAnswer(data=tuple(self._images), request_id=self._request_id, **self._fields)
            return
        event: Mapping[str, Any] = json.loads(data)
        if "error" in event:
            raise failure_of_event(event)
        if event["type"] == "superlink.progress":
            yield Progress.model_validate(event)
        elif event["type"].endswith(".completed"):
            self._images.append(GeneratedImage.model_validate(event))
            self._fields = {"model": event["model"], "timings": event["timings"]}


def _parts(options: DrawingOptions, timeout_s: float) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """OpenAI's fields, those of the extension, and the headers."""
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    headers = call_headers(timeout_s, given.pop("request_id", None))
    if "size" in given:
        width, height = given["size"]
        given["size"] = f"{width}x{height}"
    tuning = {name: given.pop(name) for name in DrawingTuning.__annotations__ if name in given}
    return given, tuning, headers


def _file(name: str, encoded: EncodedImage) -> tuple[str, bytes, str]:
    return name, encoded.content, encoded.media_type
