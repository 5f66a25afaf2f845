"""Requests that make images, and what comes back, as the SDK writes and reads them; no connection in sight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

import httpx

from superlink.images import EncodedImage, ImageInput, encode_image
from superlink.rest import Call, CallOptions, request_id_of, split_options
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


class DrawingOptions(DrawingTuning, CallOptions, total=False):
    """Options of a request that makes images; None, or left out: the gateway's default."""

    # How many images to make.
    n: int | None
    # Width and height in pixels, multiples of 16.
    size: tuple[int, int] | None
    model: str | None


def generate_call(prompt: str, options: DrawingOptions, *, stream: bool) -> Call:
    """``POST /v1/images/generations``."""
    fields, tuning, headers = _parts(options)
    body: dict[str, Any] = {"prompt": prompt, **fields}
    if tuning:
        body["superlink"] = tuning
    if stream:
        body["stream"] = True
    return Call("/v1/images/generations", headers, json=body)


def edit_call(
    image: ImageInput,
    prompt: str,
    mask: ImageInput | None,
    options: DrawingOptions,
    *,
    stream: bool,
) -> Call:
    """``POST /v1/images/edits`` as an upload."""
    fields, tuning, headers = _parts(options)
    form = {"prompt": prompt, **fields, **{f"superlink[{name}]": value for name, value in tuning.items()}}
    if stream:
        form["stream"] = "true"
    files = {"image": _file("image", encode_image(image))}
    if mask is not None:
        files["mask"] = _file("mask", encode_image(mask))
    return Call("/v1/images/edits", headers, form={name: str(value) for name, value in form.items()}, files=files)


def drawing_of(_: Call, response: httpx.Response) -> DrawingAnswer:
    """A response that was not streamed."""
    return DrawingAnswer.model_validate({**response.json(), "request_id": request_id_of(response)})


class DrawingAssembler:
    """Turns the events of a streamed drawing into progress and, at the end, into the answer."""

    def __init__(self, _: Call, request_id: str) -> None:
        self._images: list[GeneratedImage] = []
        self._fields: dict[str, Any] = {"request_id": request_id}

    def add(self, document: Mapping[str, Any]) -> list[Progress | DrawingAnswer]:
        """What one event says."""
        if document["type"] == "superlink.progress":
            return [Progress.model_validate(document)]
        if document["type"].endswith(".completed"):
            self._images.append(GeneratedImage.model_validate(document))
            self._fields |= {"model": document["model"], "timings": document["timings"]}
        return []

    def end(self) -> DrawingAnswer:
        """All images."""
        return DrawingAnswer(data=tuple(self._images), **self._fields)


def _parts(options: DrawingOptions) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """OpenAI's fields, those of the extension, and the headers."""
    given, headers = split_options(options)
    if "size" in given:
        width, height = given["size"]
        given["size"] = f"{width}x{height}"
    tuning = {name: given.pop(name) for name in DrawingTuning.__annotations__ if name in given}
    return given, tuning, headers


def _file(name: str, encoded: EncodedImage) -> tuple[str, bytes, str]:
    return name, encoded.content, encoded.media_type
