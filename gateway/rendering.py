"""Responses of the typed endpoints, with what the client wanted beside the results: pictures, PNG masks, COCO."""

from __future__ import annotations

import asyncio
import io
import json
import re
import time

from fastapi import Request
from starlette.responses import JSONResponse, Response

from gateway.deployment import Deployment
from gateway.images import ReceivedImage
from gateway.results import timing_of
from gateway.server_timing import server_timing
from gateway.typed_options import CategoryDetection, CocoDocument, TypedOptions, TypedResponse
from superlink.errors import invalid_argument
from superlink.images import EncodedImage
from superlink.overlays import MEDIA_TYPES, Overlay, draw_over
from superlink.results import DetectionAnswer
from superlink.run_length import decode_mask

# On a response that is a picture: which number stands for which phrase, as JSON.
LEGEND_HEADER = "x-overlay-legend"
_QUALITY = re.compile(r";\s*q=(\d(?:\.\d{1,3})?)\s*(?:;|$)")


def picture_type_of(request: Request) -> str | None:
    """The media type of the picture that the client would rather have than a document; None: a document."""
    wanted = []
    for place, entry in enumerate(request.headers.get("accept", "").lower().split(",")):
        quality = _QUALITY.search(entry)
        wanted.append((-float(quality[1]) if quality else -1.0, place, entry.partition(";")[0].strip()))
    for _, _, name in sorted(wanted):
        if name in MEDIA_TYPES:
            return name
        if name == "image/*":
            return "image/png"
        if name in ("application/json", "application/*", "*/*"):
            return None
    return None


def check_drawable(request: Request, options: TypedOptions, image: ReceivedImage | None) -> None:
    """Raise SuperlinkError ``no_image`` where a picture is wanted and there is nothing to draw on."""
    if image is None and (options.overlay or picture_type_of(request) is not None):
        raise invalid_argument("no_image", "What was found is drawn over an image, and the request has none.")


async def respond(
    request: Request,
    deployment: Deployment,
    response: TypedResponse,
    options: TypedOptions,
    image: ReceivedImage | None,
) -> Response:
    """``response`` as the client wants it; ``image`` is the one that the tools looked at.

    Raises SuperlinkError ``image_corrupt``.
    """
    picture_type = picture_type_of(request)
    began = time.perf_counter()
    if image is not None and (options.overlay or picture_type is not None):
        found = _findings(response).detections
        async with deployment.drawing_places:
            overlay = await asyncio.to_thread(draw_over, image.message.encoded, found, picture_type or "image/png")
        if picture_type is not None:
            return _picture(response, overlay, picture_type, began)
        response.overlay = _data_url(overlay.content)
        response.overlay_legend = dict(overlay.legend) or None
    if options.coco and response.image is not None:
        # Not in this thread: the areas of many ragged masks take hundreds of milliseconds.
        response.coco = await asyncio.to_thread(_coco, response)
    if options.masks == "png":
        response.detections = await asyncio.to_thread(_with_png_masks, response.detections)
    if options.overlay or options.coco or options.masks == "png":
        _add_time(response, began)
    return JSONResponse(response.model_dump(), headers={"server-timing": server_timing(response.timings)})


def _picture(response: TypedResponse, overlay: Overlay, media_type: str, began: float) -> Response:
    _add_time(response, began)
    headers = {"server-timing": server_timing(response.timings)}
    if overlay.legend:
        headers[LEGEND_HEADER] = json.dumps(overlay.legend)
    return Response(overlay.content, media_type=media_type, headers=headers)


def _findings(response: TypedResponse) -> DetectionAnswer:
    """As the SDK has them, which draws and exports."""
    return DetectionAnswer.model_validate(response.model_dump())


def _coco(response: TypedResponse) -> CocoDocument:
    return CocoDocument.model_validate(_findings(response).to_coco())


def _with_png_masks(detections: list[CategoryDetection]) -> list[CategoryDetection]:
    drawn = []
    for found in detections:
        mask = found.segmentation
        if mask is None:
            drawn.append(found)
            continue
        buffer = io.BytesIO()
        decode_mask(mask.size, mask.counts).convert("1").save(buffer, format="PNG")
        drawn.append(found.model_copy(update={"segmentation": None, "mask": _data_url(buffer.getvalue())}))
    return drawn


def _data_url(png: bytes) -> str:
    return EncodedImage(png, "image/png").data_url()


def _add_time(response: TypedResponse, began: float) -> None:
    """What rendering took is part of the total."""
    milliseconds = (time.perf_counter() - began) * 1000
    response.timings = [
        timing_of(entry.service, entry.phase, entry.milliseconds + milliseconds)
        if (entry.service, entry.phase) == ("gateway", "total")
        else entry
        for entry in response.timings
    ]
    response.timings.append(timing_of("gateway", "render", milliseconds))
