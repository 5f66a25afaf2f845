"""``/v1/answer`` as the SDK writes and reads it: one question, and all that came of it; no connection in sight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import httpx
from pydantic import Field

from superlink.detections import Result
from superlink.images import ImageInput, encode_image
from superlink.rest import Call, CallOptions, listed_images, request_id_of, split_options
from superlink.results import DetectionAnswer, GeneratedImage, Presence, Problem, Span


class AskOptions(CallOptions, total=False):
    """Options of a question; None, or left out: the gateway's default."""

    # What is marked on the last image: {"box": [x1, y1, x2, y2]}, {"points": [[x, y]]}, a stroke or a mask.
    regions: Sequence[Mapping[str, Any]]
    # Detections below this probability are dropped.
    score_threshold: float | None
    max_detections: int | None
    # How often the model may read tool results and go on. 0: never.
    max_rounds: int | None
    max_tokens: int | None
    # 0, the default: always the most likely answer.
    temperature: float | None
    seed: int | None
    # For tools that make images: seed, steps, guidance, image_guidance.
    drawing: Mapping[str, int | float] | None
    model: str | None


class SoughtPhrase(Presence):
    """A phrase of the answer that a tool looked for, and whether it is in the image at all."""

    tool: str = ""
    # Where it stands in the text.
    span: Span | None = None


class MadeImage(GeneratedImage):
    """An image that a tool made."""

    # The phrase of the answer that asked for it.
    prompt: str = ""


class FailedTool(Result):
    """A tool that could not do what the answer asked of it."""

    tool: str
    phrases: tuple[str, ...] = ()
    error: Problem


class PlainAnswer(DetectionAnswer):
    """The text, and what the tools found and made for it."""

    text: str
    # "length": cut off at a limit.
    finish_reason: Literal["stop", "length"] = "stop"
    # In the order of the text.
    presence: tuple[SoughtPhrase, ...] = Field(alias="categories")
    images: tuple[MadeImage, ...] = ()
    # The text stands without them.
    failures: tuple[FailedTool, ...] = ()


def answer_call(image: ImageInput | Sequence[ImageInput] | None, prompt: str, options: AskOptions) -> Call:
    """``POST /v1/answer``. Raises what ``encode_image`` raises."""
    images = [encode_image(each) for each in listed_images(image)]
    fields, headers = split_options(options)
    body = {"prompt": prompt, "image": [each.data_url() for each in images], **fields}
    return Call("/v1/answer", headers, json=body, source=images[-1].content if images else None)


def plain_answer_of(call: Call, response: httpx.Response) -> PlainAnswer:
    """The response."""
    return PlainAnswer.model_validate({**response.json(), "source": call.source, "request_id": request_id_of(response)})
