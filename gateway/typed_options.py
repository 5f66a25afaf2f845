"""What every typed endpoint lets a client choose, and what its response may then have."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gateway.results import DetectionResult, ImageSize, TimingEntry, Usage


class TypedOptions(BaseModel):
    """How results come back. The same names are form fields and query parameters."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(default=None, description="Unset: the served model.")
    masks: Literal["rle", "png"] = Field(
        default="rle",
        description="`rle`: COCO's compressed run-length encoding in `segmentation`; `png`: a PNG in `mask` instead.",
    )
    overlay: bool = Field(
        default=False,
        description="Draw what was found over the image. The header `Accept: image/png` (or `image/jpeg`, "
        "`image/webp`) makes the picture the whole response.",
    )
    coco: bool = Field(default=False, description="Add everything as one document in COCO's annotation format.")


class CategoryResult(BaseModel):
    """Whether one category is in the image at all."""

    phrase: str
    found: bool
    score: float = Field(description="Calibrated probability of the best candidate.")
    bones: list[tuple[str, str]] | None = Field(
        default=None,
        exclude_if=lambda given: given is None,
        description="From tools that find poses: pairs of keypoints between which a line is drawn.",
    )


class CategoryDetection(DetectionResult):
    """One object."""

    category: str
    category_index: int = Field(description="Index into `categories`.")
    mask: str | None = Field(
        default=None,
        exclude_if=lambda given: given is None,
        description="With `masks: png`: a PNG of the image's size, white where the object is, as a data URL.",
    )


class CocoImage(BaseModel):
    """The image that the tools looked at."""

    id: Literal[1] = 1
    file_name: Literal[""] = ""
    width: int
    height: int


class CocoDocument(BaseModel):
    """COCO's annotation format, of which every annotation is a valid entry of a results file, too."""

    images: list[CocoImage]
    categories: list[dict[str, Any]] = Field(
        description="`id` and `name`, and of things with keypoints `keypoints` and `skeleton`."
    )
    annotations: list[dict[str, Any]] = Field(
        description="`id`, `image_id`, `category_id`, `bbox`, `area`, `iscrowd`, `score`, and where a tool finds them "
        "`segmentation` (run-length encoded), `keypoints` (x, y, v each) and `num_keypoints`."
    )


class TypedResponse(BaseModel):
    """The result."""

    model: str
    image: ImageSize | None = Field(description="Upright size of the image that the tools looked at.")
    detections: list[CategoryDetection]
    overlay: str | None = Field(
        default=None,
        exclude_if=lambda given: given is None,
        description="With `overlay`: a PNG as a data URL, its longer side at most 1 568 pixels.",
    )
    overlay_legend: dict[int, str] | None = Field(
        default=None,
        exclude_if=lambda given: given is None,
        description="Which number in the overlay stands for which phrase, where no font here can write a phrase.",
    )
    coco: CocoDocument | None = Field(default=None, exclude_if=lambda given: given is None, description="With `coco`.")
    usage: Usage
    timings: list[TimingEntry]
