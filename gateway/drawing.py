"""``POST /v1/images/generations`` and ``POST /v1/images/edits``: drawing and editing without free text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Literal

import grpc
from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import JSONResponse, Response

from gateway.bodies import Form, media_type_of, parse, read_body, read_form
from gateway.calls import Call, call_of
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
from gateway.image_sources import load_images
from gateway.images import ReceivedImage, receive_address, receive_image
from gateway.masks import transparent_region
from gateway.problems import Problem, invalid_request
from gateway.results import generated_image_of, timings_of
from gateway.server_sent_events import DONE, failure_events, server_sent_event
from gateway.server_timing import add_gateway_timings, server_timing
from superlink.errors import SuperlinkError, invalid_argument
from superlink.v1 import mllm_pb2, orchestrator_pb2

router = APIRouter()

DrawEvents = AsyncGenerator[orchestrator_pb2.DrawEvent, None]
# Called with the steps that are done and their number.
OnProgress = Callable[[int, int], Awaitable[None]]
CompletedType = Literal["image_generation.completed", "image_edit.completed"]


@router.post(
    "/v1/images/generations", response_model=ImagesResponse, summary="Draw images", **generation_documentation()
)
async def generate(request: Request) -> Response:
    """Draw what a prompt says."""
    deployment = deployment_of(request)
    call = call_of(request, deployment.profile.gateway)
    options = parse(GenerationRequest, await read_body(request, call.timeout_s))
    message = orchestrator_pb2.DrawRequest()
    return await _draw(request, deployment, call, options, message, "image_generation.completed")


@router.post("/v1/images/edits", response_model=ImagesResponse, summary="Edit an image", **edit_documentation())
async def edit(request: Request) -> Response:
    """Change in an image what a prompt says."""
    deployment = deployment_of(request)
    call = call_of(request, deployment.profile.gateway)
    options, image, mask = await _read_edit(request, deployment, call)
    message = await edit_message(image, mask)
    return await _draw(request, deployment, call, options, message, "image_edit.completed")


async def edit_message(image: ReceivedImage, mask: ReceivedImage | None) -> orchestrator_pb2.DrawRequest:
    """The start of a request to change ``image``. Raises what ``transparent_region`` raises."""
    message = orchestrator_pb2.DrawRequest(image=image.message)
    if mask is not None:
        message.region.CopyFrom(await asyncio.to_thread(transparent_region, mask, image))
    return message


async def draw(
    deployment: Deployment,
    call: Call,
    options: GenerationOptions,
    message: orchestrator_pb2.DrawRequest,
    on_progress: OnProgress,
) -> ImagesResponse:
    """The images for ``message``, which holds the image and region already.

    Raises SuperlinkError where the request asks for what this API does not do, exceeds a limit, or a service fails.
    """
    model, events = await _start(deployment, call, options, message)
    return await _Drawing(call, model).complete(events, on_progress)


async def _start(
    deployment: Deployment, call: Call, options: GenerationOptions, message: orchestrator_pb2.DrawRequest
) -> tuple[str, DrawEvents]:
    """The name of the model, and the events of the drawing, which begins when the first one is asked for."""
    _refuse_unsupported(options)
    _check_prompt(options.prompt, deployment.profile.gateway.max_prompt_characters)
    model = await deployment.orchestrator.served_model(options.model, call.hop_s())
    message.request_id = call.request_id
    message.prompt = options.prompt
    message.options.CopyFrom(options.to_message())
    return model, deployment.orchestrator.draw(message, call.hop_s())


async def _draw(
    request: Request,
    deployment: Deployment,
    call: Call,
    options: GenerationOptions,
    message: orchestrator_pb2.DrawRequest,
    completed_type: CompletedType,
) -> Response:
    model, events = await _start(deployment, call, options, message)
    drawing = _Drawing(call, model)
    if not options.stream:
        response = await unless_client_leaves(request, drawing.complete(events))
        return JSONResponse(response.model_dump(), headers={"server-timing": server_timing(response.timings)})
    # Only when the first event is here is it certain that the tool works: failures until then get a status.
    first = await unless_client_leaves(request, anext(events))
    return EventStream(drawing.stream(first, events, completed_type), drawing.farewell(), deployment.metrics)


async def _read_edit(
    request: Request, deployment: Deployment, call: Call
) -> tuple[GenerationOptions, ReceivedImage, ReceivedImage | None]:
    """The options, the image and the mask, from JSON with their addresses or from a multipart body."""
    limits = deployment.profile.images
    if media_type_of(request) != "multipart/form-data":
        document = parse(EditRequest, await read_body(request, call.timeout_s))
        addresses = [document.image, *([document.mask] if document.mask is not None else [])]
        fetched = await unless_client_leaves(request, load_images(deployment, call, addresses))
        received = [receive_address(address, limits, fetched) for address in addresses]
        return document, received[0], received[1] if document.mask is not None else None
    form = await read_form(request, deployment.profile.gateway, 2, call.timeout_s)
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
        "style": options.style is not None,
        "complexity": options.complexity is not None,
        "frame_count": options.frame_count is not None,
        "frame_duration_ms": options.frame_duration_ms is not None,
        "svg": options.svg is not None,
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

    def __init__(self, call: Call, model: str) -> None:
        self._call = call
        self._asked = time.perf_counter()
        self._model = model
        self._created = int(time.time())

    async def complete(self, events: DrawEvents, on_progress: OnProgress | None = None) -> ImagesResponse:
        """All images in one response."""
        async with aclosing(events):
            async for event in events:
                if event.HasField("response"):
                    return self._response(event.response)
                if on_progress is not None:
                    await on_progress(event.progress.done, event.progress.total)
        raise SuperlinkError(
            "no_result",
            "The orchestrator ended its stream without images.",
            status=grpc.StatusCode.INTERNAL,
            service="orchestrator",
        )

    async def stream(
        self, first: orchestrator_pb2.DrawEvent, events: DrawEvents, completed_type: CompletedType
    ) -> AsyncGenerator[bytes, None]:
        """Progress and the images as server-sent events; a failure on the way becomes an event with an ``error``."""
        async with aclosing(events):
            try:
                for each in self._events(first, completed_type):
                    yield each
                async for event in events:
                    for each in self._events(event, completed_type):
                        yield each
            except SuperlinkError as error:
                yield failure_events(Problem.from_error(error, self._call.request_id))
                return
        yield DONE

    def farewell(self) -> bytes:
        """What ends the stream when the gateway stops before the images are there."""
        error = SuperlinkError(
            "shutting_down",
            "The gateway is being stopped and the drawing took too long. Ask again.",
            status=grpc.StatusCode.UNAVAILABLE,
        )
        return failure_events(Problem.from_error(error, self._call.request_id))

    def _events(self, event: orchestrator_pb2.DrawEvent, completed_type: CompletedType) -> list[bytes]:
        if event.HasField("progress"):
            return [_named(DrawingProgress(done=event.progress.done, total=event.progress.total))]
        response = self._response(event.response)
        return [
            _named(
                CompletedImage(
                    type=completed_type,
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
        add_gateway_timings(timings, self._call.started, self._asked)
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
