"""``POST /v1/detect``, ``POST /v1/segment`` and ``POST /v1/pose``: requests and responses."""

from __future__ import annotations

import json
import re
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from gateway.regions import RegionMark
from gateway.results import DetectionResult, ImageSize, TimingEntry, Usage
from superlink.regions import MOST_REGIONS

# Categories may come as one comma-separated text, in Latin or Chinese punctuation.
_SEPARATORS = re.compile(r"[,，、]")


class DetectOptions(BaseModel):
    """What to look for and how much of it to return. The same names are form fields and query parameters."""

    model_config = ConfigDict(extra="forbid")

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


def _from_text(given: object) -> object:
    """Form fields and query parameters are texts."""
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except ValueError as error:
        raise ValueError(f"regions are a JSON list ({error})") from error


class SegmentOptions(DetectOptions):
    """What to look for and which masks to return."""

    semantic: bool = Field(
        default=False, description="One mask a phrase, of all that it means, instead of one mask a thing."
    )
    regions: Annotated[list[RegionMark], BeforeValidator(_from_text)] = Field(
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

    image: str = Field(
        description="The image as a data URL or, where the deployment fetches images, its http or https address.",
        examples=["data:image/jpeg;base64,/9j/4AAQ…", "https://example.com/scene.jpg"],
    )
    model: str | None = Field(default=None, description="Unset: the served model.")


class DetectRequest(DetectOptions, ImageBody):
    """The JSON body."""


class SegmentRequest(SegmentOptions, ImageBody):
    """The JSON body."""


class PoseRequest(PoseOptions, ImageBody):
    """The JSON body."""


class CategoryResult(BaseModel):
    """Whether one category is in the image at all."""

    phrase: str
    found: bool
    score: float = Field(description="Calibrated probability of the best candidate.")
    bones: list[tuple[str, str]] | None = Field(
        default=None,
        exclude_if=lambda bones: bones is None,
        description="From tools that find poses: pairs of keypoints between which a line is drawn.",
    )


class CategoryDetection(DetectionResult):
    """One object."""

    category: str
    category_index: int = Field(description="Index into ``categories``.")


class DetectResponse(BaseModel):
    """The result."""

    model: str
    image: ImageSize
    categories: list[CategoryResult]
    detections: list[CategoryDetection] = Field(description="Best first.")
    usage: Usage
    timings: list[TimingEntry]
