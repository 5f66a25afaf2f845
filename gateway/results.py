"""Results as the REST API shows them, and how they are made from the orchestrator's messages."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from gateway.problems import Problem
from superlink.v1 import decoder_pb2, mllm_pb2, types_pb2


class Span(BaseModel):
    """Half-open range of Unicode code points in the answer's text."""

    start: int
    end: int


# Of an image, in pixels.
Side = Annotated[int, Field(ge=1, lt=2**16)]


class ImageSize(BaseModel):
    """Pixels of the upright (EXIF-corrected) image."""

    width: Side
    height: Side


class RunLengthMask(BaseModel):
    """A mask in COCO's compressed run-length encoding, as pycocotools reads it."""

    size: list[Side] = Field(min_length=2, max_length=2, description="Height and width of the upright image.")
    counts: str


class KeypointResult(BaseModel):
    """One keypoint of an object."""

    name: str
    x: float = Field(description="In pixels of the upright image.")
    y: float
    score: float = Field(description="Confidence in 0..1 that the keypoint is seen, and is here.")


class DetectionResult(BaseModel):
    """One object."""

    bbox: list[float] = Field(description="COCO: x, y, width, height in pixels of the upright image.")
    score: float = Field(description="Calibrated probability in 0..1.")
    segmentation: RunLengthMask | None = Field(
        default=None, exclude_if=lambda mask: mask is None, description="From tools that segment."
    )
    keypoints: list[KeypointResult] | None = Field(
        default=None, exclude_if=lambda keypoints: keypoints is None, description="From tools that find poses."
    )


class GeneratedImageResult(BaseModel):
    """An image that a tool made."""

    b64_json: str = Field(description="PNG file bytes in base64.")
    width: int
    height: int
    seed: int = Field(description="Makes this image again, with one image asked for and all other options the same.")


class PhraseResult(BaseModel):
    """What a tool found for one phrase of the answer."""

    phrase: str
    span: Span | None = Field(default=None, description="Where the phrase stands in the answer.")
    route: str = Field(description="The routing token.", examples=["[DET]"])
    log_probability: float = Field(default=0.0, description="Of the routing token.")
    found: bool | None = Field(default=None, description="Whether it is in the image at all; absent until known.")
    score: float | None = Field(default=None, description="Calibrated probability of the best candidate.")
    detections: list[DetectionResult] = []
    images: list[GeneratedImageResult] = Field(
        default=[], exclude_if=lambda images: not images, description="From tools that make images."
    )


class ProgressResult(BaseModel):
    """How far a running tool is."""

    done: int
    total: int


class TimingEntry(BaseModel):
    """Where time went."""

    service: str
    phase: str
    milliseconds: float


class ToolCallResult(BaseModel):
    """One tool call of an answer."""

    id: str
    tool: str = Field(description="The decoder's name; empty when no tool serves the route.", examples=["detection"])
    status: Literal["running", "completed", "failed"]
    phrases: list[PhraseResult]
    progress: ProgressResult | None = Field(
        default=None, exclude_if=lambda progress: progress is None, description="While a slow tool is running."
    )
    error: Problem | None = None
    timings: list[TimingEntry] = []


class ObservedObjectResult(BaseModel):
    """An object as the model read it."""

    box: list[Annotated[int, Field(ge=0, le=1000)]] = Field(
        min_length=4, max_length=4, description="x1, y1, x2, y2 in thousandths of the image's width and height."
    )
    score: float = Field(ge=0, le=1)


class ObservedGroupResult(BaseModel):
    """What the model read about one phrase."""

    phrase: str
    route: str
    objects: list[ObservedObjectResult] = []
    failed: bool = False


class ObservationResult(BaseModel):
    """Tool results that the model read before it went on."""

    position: int = Field(description="Length of the answer, in code points, when the model read it.")
    groups: list[ObservedGroupResult]


class PromptTokensDetails(BaseModel):
    """Of the prompt's tokens."""

    image_tokens: int


class Usage(BaseModel):
    """Tokens, summed over the rounds of an answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


def usage_of(usage: mllm_pb2.Usage) -> Usage:
    """The REST form of ``usage``."""
    return Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(image_tokens=usage.image_tokens),
    )


def detection_of(detection: types_pb2.Detection) -> DetectionResult:
    """The REST form of ``detection``."""
    box = detection.box
    corners = (box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1)
    mask = detection.mask
    return DetectionResult(
        bbox=[round(value, 2) for value in corners],
        score=round(detection.score, 5),
        segmentation=RunLengthMask(size=[mask.height, mask.width], counts=mask.counts.decode("ascii"))
        if detection.HasField("mask")
        else None,
        keypoints=[
            KeypointResult(name=each.name, x=round(each.x, 2), y=round(each.y, 2), score=round(each.score, 5))
            for each in detection.keypoints.keypoints
        ]
        if detection.HasField("keypoints")
        else None,
    )


def bones_of(skeleton: decoder_pb2.Skeleton) -> list[tuple[str, str]]:
    """Pairs of keypoints between which a drawing has a line."""
    return [(skeleton.keypoints[bone.first], skeleton.keypoints[bone.second]) for bone in skeleton.bones]


def generated_image_of(image: types_pb2.GeneratedImage) -> GeneratedImageResult:
    """The REST form of ``image``."""
    encoded = base64.b64encode(image.encoded).decode("ascii")
    return GeneratedImageResult(b64_json=encoded, width=image.width, height=image.height, seed=image.seed)


def timings_of(timings: Iterable[types_pb2.Timing]) -> list[TimingEntry]:
    """The REST form of ``timings``."""
    return [timing_of(entry.service, entry.phase, entry.milliseconds) for entry in timings]


def timing_of(service: str, phase: str, milliseconds: float) -> TimingEntry:
    """One entry, to the microsecond."""
    return TimingEntry(service=service, phase=phase, milliseconds=round(milliseconds, 3))


def observation_of(observation: mllm_pb2.Observation, position: int) -> ObservationResult:
    """The REST form of ``observation``, read when the answer had ``position`` code points."""
    return ObservationResult(
        position=position,
        groups=[
            ObservedGroupResult(
                phrase=group.phrase,
                route=group.route,
                objects=[
                    ObservedObjectResult(box=[entry.x1, entry.y1, entry.x2, entry.y2], score=round(entry.score, 5))
                    for entry in group.objects
                ],
                failed=group.failed,
            )
            for group in observation.groups
        ],
    )


def observation_message(observation: ObservationResult) -> mllm_pb2.Observation:
    """The inverse of ``observation_of``, for answers that a client sends back."""
    return mllm_pb2.Observation(
        groups=[
            mllm_pb2.ObservedGroup(
                route=group.route,
                phrase=group.phrase,
                objects=[
                    mllm_pb2.ObservedObject(
                        x1=entry.box[0], y1=entry.box[1], x2=entry.box[2], y2=entry.box[3], score=entry.score
                    )
                    for entry in group.objects
                ],
                failed=group.failed,
            )
            for group in observation.groups
        ]
    )
