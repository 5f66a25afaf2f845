"""What each tool takes. The descriptions are read by models, which decide by them how to call."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from superlink.regions import MOST_POINTS, MOST_REGIONS

Point = Annotated[list[float], Field(min_length=2, max_length=2)]


class Arguments(BaseModel):
    """Base of all: a misspelt argument is an error, because models do misspell and would take silence for consent."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Region(Arguments):
    """A mark on an image, in pixels from its upper left corner: a box or points."""

    box: Annotated[list[float], Field(min_length=4, max_length=4)] | None = Field(
        default=None, description="Left, top, right, bottom.", examples=[[10, 20, 110, 90]]
    )
    points: list[Point] | None = Field(
        default=None, min_length=1, max_length=MOST_POINTS, description="x and y of points on the thing."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Region:
        if (self.box is None) == (self.points is None):
            raise ValueError("a region is either a box or points")
        return self


class FindArguments(Arguments):
    """What the tools that find things have in common."""

    image: str = Field(description="The image to look at.")
    categories: list[str] = Field(
        default=[],
        description="What to look for: names in English or Chinese, one an entry. Every entry is answered, found or "
        "not, so ask for all candidates in one call.",
        examples=[["dog", "red apple", "小狗"]],
    )
    phrase: str | None = Field(
        default=None,
        description="Instead of categories: one longer description, taken as it is.",
        examples=["the leftmost dog, not the cat"],
    )
    score_threshold: float | None = Field(
        default=None, ge=0, le=1, description="Drop what is less probable than this. Leave out for the tool's own."
    )
    max_detections: int | None = Field(default=None, ge=1, le=1000, description="At most so many things; 100.")
    overlay: bool = Field(
        default=False, description="Also return the image with what was found drawn over it, to check or to show it."
    )

    @model_validator(mode="after")
    def _not_both(self) -> FindArguments:
        if self.categories and self.phrase is not None:
            raise ValueError("give either categories or phrase")
        return self


class DetectArguments(FindArguments):
    """Of ``detect``."""


class SegmentArguments(FindArguments):
    """Of ``segment``."""

    semantic: bool = Field(
        default=False, description="One mask an entry, of all that it means, instead of one mask a thing."
    )
    regions: list[Region] = Field(
        default=[],
        max_length=MOST_REGIONS,
        description='Things that are marked rather than named, beside or instead of names. Answered as "region 1", '
        '"region 2" and so on.',
    )


class PoseArguments(FindArguments):
    """Of ``pose``."""

    keypoints: list[str] = Field(
        default=[],
        description="Which keypoints to find. Leave out for all that the tool knows of the categories.",
        examples=[["nose", "left wrist"]],
    )


class DrawArguments(Arguments):
    """What the tools that make images have in common."""

    prompt: str
    n: int | None = Field(default=None, ge=1, le=4, description="How many images to make; 1.")
    size: str | None = Field(
        default=None,
        pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$",
        description="Width x height in pixels, multiples of 16. Leave out for the tool's own, or the source's.",
        examples=["128x128"],
    )
    seed: int | None = Field(
        default=None,
        ge=0,
        lt=2**63,
        description="The same seed makes the same image. Leave out for another one every time; the answer names it.",
    )
    steps: int | None = Field(default=None, ge=1, le=100, description="More take longer and bring out more.")
    guidance: float | None = Field(
        default=None, ge=0, le=30, description="How far to follow the prompt; 1 is not to exaggerate it."
    )


class GenerateArguments(DrawArguments):
    """Of ``generate``."""

    prompt: str = Field(description="What to draw, in English or Chinese.", examples=["a cat beside a tree"])


class EditArguments(DrawArguments):
    """Of ``edit``."""

    image: str = Field(description="The image to change.")
    prompt: str = Field(description="What to change, in English or Chinese.", examples=["make the dog blue"])
    mask: str | None = Field(
        default=None,
        description="An image of the same size, PNG or WebP; what is transparent in it is what may change.",
    )
    image_guidance: float | None = Field(default=None, ge=0, le=30, description="How far to keep to the image.")


class AskArguments(Arguments):
    """Of ``ask``."""

    prompt: str = Field(
        description="The question or request, in English or Chinese.", examples=["How many dogs are there?"]
    )
    images: list[str] = Field(
        default=[], description="What it is about. Tools look at the last one. None: only drawing can be asked for."
    )
    regions: list[Region] = Field(
        default=[],
        max_length=MOST_REGIONS,
        description='Marks on the last image. The prompt may call them "region 1", "region 2" and so on.',
    )
