"""What each tool answers: as data by a schema, and in a few sentences for models that read nothing else.

The data follow the REST API, without its timings and token counts: models pay for every word that they read. Boxes,
masks and keypoints are COCO's. Images come as content of their own, so the data hold only what is known of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from superlink.results import (
    Answer,
    DetectionAnswer,
    DrawingAnswer,
    FoundObject,
    GeneratedImage,
    PhraseResult,
    ToolCall,
)

# Things that the text names one by one; the data have all.
MOST_NAMED = 20


class Output(BaseModel):
    """Base of all. What is None is left out."""

    model_config = ConfigDict(frozen=True)


class ImageSizeOutput(Output):
    """Pixels of the upright image, that is after its EXIF orientation was applied; all coordinates are in these."""

    width: int
    height: int


class MaskOutput(Output):
    """A mask in COCO's compressed run-length encoding, as pycocotools reads it."""

    size: list[int] = Field(description="Height and width of the upright image.")
    counts: str


class KeypointOutput(Output):
    """A named place of a thing."""

    name: str
    x: float
    y: float
    score: float = Field(description="Confidence in 0..1 that it is seen, and is here.")


class ThingOutput(Output):
    """One thing that was found."""

    bbox: list[float] = Field(description="COCO: x, y, width, height in pixels of the upright image.")
    score: float = Field(description="Calibrated probability in 0..1.")
    segmentation: MaskOutput | None = None
    keypoints: list[KeypointOutput] | None = None


class NamedThingOutput(ThingOutput):
    """One thing that was found, and what it was asked for by."""

    category: str
    category_index: int = Field(description="Place in ``categories``, from 0.")


class CategoryOutput(Output):
    """Whether one of the things that were asked for is in the image at all."""

    phrase: str
    found: bool
    score: float = Field(description="Calibrated probability of the best candidate.")
    bones: list[list[str]] | None = Field(
        default=None, description="Pairs of keypoints between which a line of the skeleton is drawn."
    )


class FindOutput(Output):
    """What was found in an image."""

    image: ImageSizeOutput | None = None
    categories: list[CategoryOutput] = Field(description="One an entry that was asked for, in order.")
    detections: list[NamedThingOutput] = Field(description="Best first.")
    model: str
    request_id: str = Field(description="The id under which every process logged the call.")

    @classmethod
    def of(cls, answer: DetectionAnswer) -> FindOutput:
        """``answer`` of the SDK."""
        return cls(
            image=_size_of(answer),
            categories=[
                CategoryOutput(
                    phrase=each.phrase,
                    found=each.found,
                    score=each.score,
                    bones=[list(bone) for bone in each.bones] or None,
                )
                for each in answer.presence
            ],
            detections=[
                NamedThingOutput(
                    category=found.category, category_index=found.category_index, **_thing_of(found).model_dump()
                )
                for found in answer.objects
            ],
            model=answer.model,
            request_id=answer.request_id,
        )

    def text(self) -> str:
        """What was found, and where."""
        lines = []
        for index, category in enumerate(self.categories):
            count = sum(each.category_index == index for each in self.detections)
            missing = "" if category.found else f": not found (best candidate {category.score:.2f})"
            lines.append(f"{category.phrase}{missing or f': {count} found'}")
        return "\n".join([*lines, *_places((each.category, each) for each in self.detections)])


class MadeImageOutput(Output):
    """An image that was made; its pixels are an image content of the same place in the order."""

    width: int
    height: int
    seed: int = Field(description="Makes this image again, with n 1 and everything else the same.")

    @classmethod
    def of(cls, image: GeneratedImage) -> MadeImageOutput:
        """``image`` of the SDK."""
        return cls(width=image.width, height=image.height, seed=image.seed)


class DrawOutput(Output):
    """The images that were made."""

    images: list[MadeImageOutput]
    model: str
    request_id: str = Field(description="The id under which every process logged the call.")

    @classmethod
    def of(cls, answer: DrawingAnswer) -> DrawOutput:
        """``answer`` of the SDK."""
        images = [MadeImageOutput.of(image) for image in answer.images]
        return cls(images=images, model=answer.model, request_id=answer.request_id)

    def text(self) -> str:
        """What was made."""
        return "\n".join(_made(self.images))


class SpanOutput(Output):
    """Half-open range of Unicode code points in the answer."""

    start: int
    end: int


class PhraseOutput(Output):
    """What a tool made of one phrase of the answer."""

    phrase: str
    span: SpanOutput | None = Field(default=None, description="Where it stands in the answer.")
    found: bool | None = Field(default=None, description="Whether it is in the image at all.")
    score: float | None = Field(default=None, description="Calibrated probability of the best candidate.")
    detections: list[ThingOutput]
    images: list[MadeImageOutput]

    @classmethod
    def of(cls, phrase: PhraseResult) -> PhraseOutput:
        """``phrase`` of the SDK."""
        return cls(
            phrase=phrase.phrase,
            span=SpanOutput(start=phrase.span.start, end=phrase.span.end) if phrase.span is not None else None,
            found=phrase.found,
            score=phrase.score,
            detections=[_thing_of(found) for found in phrase.objects],
            images=[MadeImageOutput.of(image) for image in phrase.images],
        )


class ToolErrorOutput(Output):
    """Why a tool failed; the rest of the answer stands."""

    code: str
    detail: str
    service: str


class ToolCallOutput(Output):
    """What the answer used a tool for."""

    tool: str = Field(description="The decoder's name; empty when none is deployed for what the model wanted.")
    status: Literal["running", "completed", "failed"]
    phrases: list[PhraseOutput]
    error: ToolErrorOutput | None = None

    @classmethod
    def of(cls, call: ToolCall) -> ToolCallOutput:
        """``call`` of the SDK."""
        error = call.error
        return cls(
            tool=call.tool,
            status=call.status,
            phrases=[PhraseOutput.of(phrase) for phrase in call.phrases],
            error=ToolErrorOutput(code=error.code, detail=error.detail, service=error.service) if error else None,
        )


class AskOutput(Output):
    """The answer, and what tools found and made for it."""

    answer: str
    finish_reason: Literal["stop", "length"] = Field(description="``length``: the answer was cut off.")
    tool_calls: list[ToolCallOutput]
    image: ImageSizeOutput | None = Field(default=None, description="Of the image that the tools looked at.")
    model: str
    request_id: str = Field(description="The id under which every process logged the call.")

    @classmethod
    def of(cls, answer: Answer) -> AskOutput:
        """``answer`` of the SDK."""
        return cls(
            answer=answer.text,
            # No calls are left to agents.
            finish_reason="length" if answer.finish_reason == "length" else "stop",
            tool_calls=[ToolCallOutput.of(call) for call in answer.tool_calls],
            image=_size_of(answer),
            model=answer.model,
            request_id=answer.request_id,
        )

    def text(self) -> str:
        """The answer, and below it what the tools found, made, or failed at."""
        phrases = [phrase for call in self.tool_calls for phrase in call.phrases]
        failed = [
            f"{call.tool or 'A tool'} failed: {call.error.code}: {call.error.detail}"
            for call in self.tool_calls
            if call.error is not None
        ]
        cut_off = ["(The answer was cut off.)"] if self.finish_reason == "length" else []
        return "\n".join(
            [
                self.answer,
                *cut_off,
                *(f"{phrase.phrase}: not found" for phrase in phrases if phrase.found is False),
                *_places((phrase.phrase, each) for phrase in phrases for each in phrase.detections),
                *_made([image for phrase in phrases for image in phrase.images]),
                *failed,
            ]
        )


def _size_of(answer: DetectionAnswer | Answer) -> ImageSizeOutput | None:
    size = answer.image
    return ImageSizeOutput(width=size.width, height=size.height) if size is not None else None


def _thing_of(found: FoundObject) -> ThingOutput:
    mask = found.segmentation
    keypoints = [KeypointOutput(name=each.name, x=each.x, y=each.y, score=each.score) for each in found.keypoints]
    return ThingOutput(
        bbox=list(found.bbox),
        score=found.score,
        segmentation=MaskOutput(size=list(mask.size), counts=mask.counts) if mask is not None else None,
        keypoints=keypoints or None,
    )


def _places(things: Iterable[tuple[str, ThingOutput]]) -> list[str]:
    """A line a thing, and one for those that are too many to name."""
    lines = []
    for name, thing in things:
        x, y, width, height = (round(value) for value in thing.bbox)
        line = f"- {name} ({thing.score:.2f}): x {x}, y {y}, width {width}, height {height}"
        for keypoint in thing.keypoints or ():
            line += f"; {keypoint.name} {round(keypoint.x)},{round(keypoint.y)} ({keypoint.score:.2f})"
        lines.append(line)
    more = [f"- and {len(lines) - MOST_NAMED} more"] if len(lines) > MOST_NAMED else []
    return lines[:MOST_NAMED] + more


def _made(images: Sequence[MadeImageOutput]) -> list[str]:
    return [
        f"Image {number} of {len(images)}: {image.width} x {image.height} pixels, seed {image.seed}"
        for number, image in enumerate(images, 1)
    ]
