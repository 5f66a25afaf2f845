"""``POST /v1/images/generations`` and ``POST /v1/images/edits``: drawing and editing without free text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Literal

import grpc
from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import JSONResponse, Response

from gateway.bodies import Form, media_type_of, parse, read_body, read_form, timeout_of
from gateway.deployment import Deployment, deployment_of
from gateway.disconnects import EventStream, unless_client_leaves
from gateway.documentation import edit_documentation, generation_documentation
from gateway.drawing_schema import (
    CompletedImage,
    DrawingProgress,
    EditRequest,
    GenerationOptions,
    GenerationRequest,
    ImagesResponse,
    ImagesUsage,
    InputTokensDetails,
)
from gateway.images import ReceivedImage, receive_data_url, receive_image
from gateway.masks import transparent_region
from gateway.problems import Problem, invalid_request, request_id_of
from gateway.results import generated_image_of, timings_of
from gateway.server_sent_events import DONE, failure_events, server_sent_event
from gateway.server_timing import add_gateway_timings, server_timing
from superlink.errors import SuperlinkError, invalid_argument
from superlink.v1 import mllm_pb2, orchestrator_pb2

router = APIRouter()

DrawEvents = AsyncGenerator[orchestrator_pb2.DrawEvent, None]
CompletedType = Literal["image_generation.completed", "image_edit.completed"]


@router.post(
    "/v1/images/generations", response_model=ImagesResponse, summary="Draw images", **generation_documentation()
)
async def generate(request: Request) -> Response:
    """Draw what a prompt says."""
    deployment = deployment_of(request)
    timeout_s = timeout_of(request, deployment.profile.gateway)
    options = parse(GenerationRequest, await read_body(request, timeout_s))
    message = orchestrator_pb2.DrawRequest()
    return await _draw(request, deployment, timeout_s, options, message, "image_generation.completed")


@router.post("/v1/images/edits", response_model=ImagesResponse, summary="Edit an image", **edit_documentation())
async def edit(request: Request) -> Response:
    """Change in an image what a prompt says."""
    deployment = deployment_of(request)
    timeout_s = timeout_of(request, deployment.profile.gateway)
    options, image, mask = await _read_edit(request, deployment, timeout_s)
    message = orchestrator_pb2.DrawRequest(image=image.message)
    if mask is not None:
        message.region.CopyFrom(await asyncio.to_thread(transparent_region, mask, image))
    return await _draw(request, deployment, timeout_s, options, message, "image_edit.completed")


async def _draw(
    request: Request,
    deployment: Deployment,
    timeout_s: float,
    options: GenerationOptions,
    message: orchestrator_pb2.DrawRequest,
    completed_type: CompletedType,
) -> Response:
    """Send ``message``, which holds the image and region already, and answer with what comes back."""
    _refuse_unsupported(options)
    _check_prompt(options.prompt, deployment.profile.gateway.max_prompt_characters)
    model = await deployment.orchestrator.served_model(options.model)
    message.request_id = request_id_of(request)
    message.prompt = options.prompt
    message.options.CopyFrom(options.to_message())
    drawing = _Drawing(request, model, completed_type)
    left_s = timeout_s - (time.perf_counter() - request.state.started)
    events = deployment.orchestrator.draw(message, max(left_s, 0.001))
    if not options.stream:
        return await unless_client_leaves(request, drawing.complete(events))
    # Only when the first event is here is it certain that the tool works: failures until then get a status.
    first = await unless_client_leaves(request, anext(events))
    return EventStream(drawing.stream(first, events), drawing.farewell(), deployment.metrics)


async def _read_edit(
    request: Request, deployment: Deployment, timeout_s: float
) -> tuple[GenerationOptions, ReceivedImage, ReceivedImage | None]:
    """The options, the image and the mask, from JSON with data URLs or from a multipart body."""
    limits = deployment.profile.images
    if media_type_of(request) != "multipart/form-data":
        document = parse(EditRequest, await read_body(request, timeout_s))
        mask = receive_data_url(document.mask, limits) if document.mask is not None else None
        return document, receive_data_url(document.image, limits), mask
    form = await read_form(request, deployment.profile.gateway, 2, timeout_s)
    images = form.files_of("image", "image[]")
    masks = form.files_of("mask")
    if len(images) != 1 or len(masks) > 1 or len(images) + len(masks) != len(form.files):
        raise invalid_argument(
            "image_missing", "A multipart body needs one image file in the field 'image', and may have one in 'mask'."
        )
    options = _form_options(form)
    return options, receive_image(images[0], limits), receive_image(masks[0], limits) if masks else None


def _form_options(form: Form) -> GenerationOptions:
    """Options from form fields; those of the extension are called ``superlink[seed]``."""
    values: dict[str, Any] = {}
    extension: dict[str, str] = {}
    for name, given in form.fields.items():
        if len(given) > 1:
            raise invalid_argument("invalid_request", f"The field {name!r} is given more than once.")
        if name.startswith("superlink[") and name.endswith("]"):
            extension[name.removeprefix("superlink[").removesuffix("]")] = given[0]
        else:
            values[name] = given[0]
    try:
        return GenerationOptions.model_validate({**values, "superlink": extension})
    except ValidationError as error:
        raise invalid_request(error) from error


def _refuse_unsupported(options: GenerationOptions) -> None:
    if options.response_format == "url":
        raise invalid_argument(
            "unsupported_parameter",
            "Images are not kept at addresses. Leave response_format out, or set it to b64_json.",
        )
    refused = {
        "response_format": options.response_format not in (None, "b64_json"),
        "output_format": options.output_format not in (None, "png"),
        "background": options.background not in (None, "auto", "opaque"),
    }
    names = [name for name, is_refused in refused.items() if is_refused]
    if names:
        raise invalid_argument("unsupported_parameter", f"This API does not support: {', '.join(names)}. Leave it out.")


def _check_prompt(prompt: str, max_characters: int) -> None:
    if not prompt.strip():
        raise invalid_argument("empty_prompt", "The prompt is empty. Say what to draw, or what to change.")
    if len(prompt) > max_characters:
        raise invalid_argument(
            "prompt_too_long", f"The prompt has {len(prompt):,} characters; the limit is {max_characters:,}."
        )


class _Drawing:
    """The images of one request on their way to the client."""

    def __init__(self, request: Request, model: str, completed_type: CompletedType) -> None:
        self._request_id = request_id_of(request)
        self._started: float = request.state.started
        self._asked = time.perf_counter()
        self._model = model
        self._created = int(time.time())
        self._completed_type = completed_type

    async def complete(self, events: DrawEvents) -> Response:
        """All images in one response."""
        async with aclosing(events):
            async for event in events:
                if event.HasField("response"):
                    response = self._response(event.response)
                    headers = {"server-timing": server_timing(response.timings)}
                    return JSONResponse(response.model_dump(), headers=headers)
        raise SuperlinkError(
            "no_result",
            "The orchestrator ended its stream without images.",
            status=grpc.StatusCode.INTERNAL,
            service="orchestrator",
        )

    async def stream(self, first: orchestrator_pb2.DrawEvent, events: DrawEvents) -> AsyncGenerator[bytes, None]:
        """Progress and the images as server-sent events; a failure on the way becomes an event with an ``error``."""
        async with aclosing(events):
            try:
                for each in self._events(first):
                    yield each
                async for event in events:
                    for each in self._events(event):
                        yield each
            except SuperlinkError as error:
                yield failure_events(Problem.from_error(error, self._request_id))
                return
        yield DONE

    def farewell(self) -> bytes:
        """What ends the stream when the gateway stops before the images are there."""
        error = SuperlinkError(
            "shutting_down",
            "The gateway is being stopped and the drawing took too long. Ask again.",
            status=grpc.StatusCode.UNAVAILABLE,
        )
        return failure_events(Problem.from_error(error, self._request_id))

    def _events(self, event: orchestrator_pb2.DrawEvent) -> list[bytes]:
        if event.HasField("progress"):
            return [_named(DrawingProgress(done=event.progress.done, total=event.progress.total))]
        response = self._response(event.response)
        return [
            _named(
                CompletedImage(
                    type=self._completed_type,
                    created_at=self._created,
                    size=f"{image.width}x{image.height}",
                    model=response.model,
                    usage=response.usage,
                    timings=response.timings,
                    **image.model_dump(),
                )
            )
            for image in response.data
        ]

    def _response(self, drawn: orchestrator_pb2.DrawResponse) -> ImagesResponse:
        timings = timings_of(drawn.timings)
        add_gateway_timings(timings, self._started, self._asked)
        return ImagesResponse(
            created=self._created,
            model=self._model,
            data=[generated_image_of(image) for image in drawn.images.images],
            usage=_images_usage(drawn.usage),
            timings=timings,
        )


def _named(event: DrawingProgress | CompletedImage) -> bytes:
    return server_sent_event(event.model_dump_json(), event.type)


def _images_usage(usage: mllm_pb2.Usage) -> ImagesUsage:
    return ImagesUsage(
        input_tokens=usage.prompt_tokens,
        total_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(
            text_tokens=usage.prompt_tokens - usage.image_tokens, image_tokens=usage.image_tokens
        ),
    )
