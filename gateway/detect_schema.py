"""``POST /v1/detect``, ``POST /v1/segment`` and ``POST /v1/pose``: requests and responses."""

from __future__ import annotations

import json
import re
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, Field

from gateway.images import ImageAddress
from gateway.regions import RegionMark
from gateway.results import ImageSize
from gateway.typed_options import CategoryDetection, CategoryResult, TypedOptions, TypedResponse
from superlink.regions import MOST_REGIONS

# Categories may come as one comma-separated text, in Latin or Chinese punctuation.
_SEPARATORS = re.compile(r"[,，、]")


def from_text(given: object) -> object:
    """Form fields and query parameters are texts; those of objects are JSON."""
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except ValueError as error:
        raise ValueError(f"it is not the JSON that it has to be in a form or a query ({error})") from error


def _from_texts(given: object) -> object:
    """A list in JSON, or its entries one by one."""
    if not isinstance(given, list) or not any(isinstance(each, str) for each in given):
        return given
    entries = [from_text(each) for each in given]
    return [part for entry in entries for part in (entry if isinstance(entry, list) else [entry])]


Regions = Annotated[list[RegionMark], BeforeValidator(_from_texts)]


class DetectOptions(TypedOptions):
    """What to look for and how much of it to return. The same names are form fields and query parameters."""

    categories: list[str] | str | None = Field(
        default=None, description="Names to look for: a list, or one text with commas.", examples=[["dog", "red apple"]]
    )
    phrase: str | None = Field(
        default=None, description="One phrase, taken as it is.", examples=["the leftmost dog, not the cat"]
    )
    score_threshold: float | None = Field(
        default=None, ge=0, le=1, description="Drop detections below this probability. Unset: the tool's default."
    )
    max_detections: int | None = Field(default=None, ge=1, le=1000, description="Unset: 100.")

    def phrases(self) -> list[str]:
        """What to look for, in order, without blanks."""
        given = [] if self.phrase is None or not self.phrase.strip() else [self.phrase.strip()]
        return given + _listed(self.categories)


class SegmentOptions(DetectOptions):
    """What to look for and which masks to return."""

    semantic: bool = Field(
        default=False, description="One mask a phrase, of all that it means, instead of one mask a thing."
    )
    regions: Regions = Field(
        default=[],
        max_length=MOST_REGIONS,
        description="Things that are marked rather than named, beside or instead of names. In a form or a query: JSON.",
        examples=[[{"points": [[40, 60]]}, {"box": [10, 20, 110, 90]}]],
    )


class PoseOptions(DetectOptions):
    """What to look for and which of its keypoints to return."""

    keypoints: list[str] | str | None = Field(
        default=None,
        description="Names of keypoints: a list, or one text with commas. Unset: all that the tool knows.",
        examples=[["nose", "left wrist"]],
    )

    def keypoint_names(self) -> list[str]:
        """Which keypoints to look for, in order, without blanks; none: all that the tool knows."""
        return _listed(self.keypoints)


def _listed(given: list[str] | str | None) -> list[str]:
    """The names in a list or in one text, without blanks."""
    entries = [given] if isinstance(given, str) else given or []
    return [part.strip() for entry in entries for part in _SEPARATORS.split(entry) if part.strip()]


class ImageBody(BaseModel):
    """The image of a JSON body."""

    image: ImageAddress

    def addresses(self) -> list[str]:
        """Where the image is."""
        return [self.image]


class DetectRequest(DetectOptions, ImageBody):
    """The JSON body."""


class SegmentRequest(SegmentOptions, ImageBody):
    """The JSON body."""


class PoseRequest(PoseOptions, ImageBody):
    """The JSON body."""


class DetectResponse(TypedResponse):
    """The result."""

    image: ImageSize
    categories: list[CategoryResult] = Field(description="One an entry that was asked for, in order.")
    detections: list[CategoryDetection] = Field(description="Best first.")
