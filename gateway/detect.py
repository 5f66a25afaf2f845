"""``POST /v1/detect``, ``POST /v1/segment`` and ``POST /v1/pose``: the fast path."""

from __future__ import annotations

import time
from dataclasses import dataclass

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.calls import Call, call_of
from gateway.deployment import Deployment, deployment_of
from gateway.detect_schema import (
    DetectOptions,
    DetectRequest,
    DetectResponse,
    PoseOptions,
    PoseRequest,
    SegmentOptions,
    SegmentRequest,
)
from gateway.disconnects import unless_client_leaves
from gateway.documentation import detect_documentation, pose_documentation, segment_documentation
from gateway.images import ReceivedImage
from gateway.regions import region_message
from gateway.rendering import respond
from gateway.results import ImageSize, bones_of, detection_of, timings_of, usage_of
from gateway.server_timing import add_gateway_timings
from gateway.typed_options import CategoryDetection, CategoryResult
from gateway.typed_requests import read_typed
from superlink.errors import invalid_argument
from superlink.profile import GatewaySettings
from superlink.v1 import decoder_pb2, orchestrator_pb2

router = APIRouter()


@dataclass(frozen=True)
class FindTask:
    """One of the fast path's routes."""

    tool: str
    options: type[DetectOptions]
    body: type[DetectRequest] | type[SegmentRequest] | type[PoseRequest]


DETECTION = FindTask("detection", DetectOptions, DetectRequest)
SEGMENTATION = FindTask("segmentation", SegmentOptions, SegmentRequest)
POSE = FindTask("pose", PoseOptions, PoseRequest)


@router.post("/v1/detect", response_model=DetectResponse, summary="Detect known categories", **detect_documentation())
async def detect(request: Request) -> Response:
    """Look for a list of categories, or for one phrase, in an image."""
    return await _find(request, DETECTION)


@router.post(
    "/v1/segment", response_model=DetectResponse, summary="Masks of known categories", **segment_documentation()
)
async def segment(request: Request) -> Response:
    """Look for a list of categories, or for one phrase, in an image, and cut them out."""
    return await _find(request, SEGMENTATION)


@router.post("/v1/pose", response_model=DetectResponse, summary="Keypoints of known things", **pose_documentation())
async def pose(request: Request) -> Response:
    """Look for a list of things, or for one phrase, in an image, and say where their keypoints are."""
    return await _find(request, POSE)


async def _find(request: Request, task: FindTask) -> Response:
    deployment = deployment_of(request)
    call = call_of(request, deployment.profile.gateway)
    asked = await read_typed(request, deployment, call, task.options, task.body, max_images=1)
    if not asked.images:
        raise invalid_argument("image_missing", "A multipart body needs one image file in the field 'image'.")
    [image] = asked.images
    response = await unless_client_leaves(request, find(deployment, call, task, image, asked.options))
    return await unless_client_leaves(request, respond(request, deployment, response, asked.options, image))


async def find(
    deployment: Deployment,
    call: Call,
    task: FindTask,
    image: ReceivedImage,
    options: DetectOptions,
) -> DetectResponse:
    """What the tool of ``task`` finds in ``image``.

    Raises SuperlinkError where the request asks for what this API does not do, exceeds a limit, or a service fails.
    """
    phrases = options.phrases()
    keypoints = options.keypoint_names() if isinstance(options, PoseOptions) else []
    marks = options.regions if isinstance(options, SegmentOptions) else []
    regions = [region_message(mark, image) for mark in marks]
    if not regions or phrases:
        _check_phrases(phrases, keypoints, deployment.profile.gateway)
    model = await deployment.orchestrator.served_model(options.model, call.hop_s())
    message = orchestrator_pb2.DetectRequest(
        request_id=call.request_id,
        image=image.message,
        phrases=phrases,
        options=decoder_pb2.DetectionOptions(
            score_threshold=options.score_threshold,
            max_detections=options.max_detections,
            semantic=isinstance(options, SegmentOptions) and options.semantic,
        ),
        tool=task.tool,
        regions=regions,
        keypoints=keypoints,
    )
    asked = time.perf_counter()
    found = await deployment.orchestrator.detect(message, call.hop_s())
    names = [*phrases, *(f"region {number + 1}" for number in range(len(regions)))]
    response = _response(model, names, found)
    add_gateway_timings(response.timings, call.started, asked)
    return response


def _check_phrases(phrases: list[str], keypoints: list[str], settings: GatewaySettings) -> None:
    if not phrases:
        raise invalid_argument("empty_prompt", "Say what to look for: 'categories' or 'phrase'.")
    if len(phrases) > settings.max_phrases:
        raise invalid_argument(
            "too_many_phrases", f"The request names {len(phrases)} phrases; the limit is {settings.max_phrases}."
        )
    if len(keypoints) > settings.max_phrases:
        raise invalid_argument(
            "too_many_phrases", f"The request names {len(keypoints)} keypoints; the limit is {settings.max_phrases}."
        )
    length = sum(len(phrase) for phrase in (*phrases, *keypoints))
    if length > settings.max_prompt_characters:
        raise invalid_argument(
            "prompt_too_long",
            f"The phrases have {length:,} characters; the limit is {settings.max_prompt_characters:,}.",
        )


def _response(model: str, phrases: list[str], found: orchestrator_pb2.DetectResponse) -> DetectResponse:
    presence = {entry.group: entry for entry in found.detections.presence}
    detections = sorted(found.detections.detections, key=lambda entry: entry.score, reverse=True)
    return DetectResponse(
        model=model,
        image=ImageSize(width=found.detections.image_width, height=found.detections.image_height),
        categories=[
            CategoryResult(
                phrase=phrase,
                found=index in presence and presence[index].found,
                score=round(presence[index].score, 5) if index in presence else 0.0,
                bones=bones_of(found.skeletons[index]) if index < len(found.skeletons) else None,
            )
            for index, phrase in enumerate(phrases)
        ],
        detections=[
            CategoryDetection(
                category=phrases[entry.group], category_index=entry.group, **detection_of(entry).model_dump()
            )
            for entry in detections
        ],
        usage=usage_of(found.usage),
        timings=timings_of(found.timings),
    )
