"""``POST /v1/answer``: request and response."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

from gateway.detect_schema import Regions, from_text
from gateway.drawing_schema import DrawingOptions
from gateway.images import ImageAddress
from gateway.problems import Problem
from gateway.results import GeneratedImageResult, Span
from gateway.typed_options import CategoryDetection, CategoryResult, TypedOptions, TypedResponse
from superlink.regions import MOST_REGIONS


class AnswerOptions(TypedOptions):
    """What to ask, and how the answer is made. The same names are form fields and query parameters."""

    prompt: str = Field(min_length=1, description="What you want to know.", examples=["How many dogs are there?"])
    regions: Regions = Field(
        default=[],
        max_length=MOST_REGIONS,
        description="What is marked on the last image; the prompt may call it region 1, region 2 and so on. In a form "
        "or a query: JSON.",
        examples=[[{"points": [[40, 60]]}]],
    )
    score_threshold: float | None = Field(
        default=None, ge=0, le=1, description="Drop detections below this probability. Unset: the tool's default."
    )
    max_detections: int | None = Field(default=None, ge=1, le=1000, description="Per tool call. Unset: 100.")
    max_rounds: int | None = Field(
        default=None, ge=0, le=8, description="How often the model may read tool results and go on."
    )
    max_tokens: int | None = Field(default=None, ge=1, description="Of all rounds together.")
    temperature: float | None = Field(default=None, ge=0, le=2, description="Unset: 0, the most likely answer.")
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    drawing: Annotated[DrawingOptions, BeforeValidator(from_text)] = Field(
        default=DrawingOptions(), description="For tools that make images. In a form or a query: JSON."
    )


class AnswerRequest(AnswerOptions):
    """The JSON body."""

    image: ImageAddress | list[ImageAddress] | None = Field(
        default=None, description="An image, or several in order. Tools look at the last one."
    )

    def addresses(self) -> list[str]:
        """Where the images are, in order."""
        return [self.image] if isinstance(self.image, str) else self.image or []


class AnsweredCategory(CategoryResult):
    """A phrase of the answer that a tool looked for."""

    tool: str = Field(description="The decoder's name.", examples=["detection"])
    span: Span | None = Field(description="Where the phrase stands in the text.")


class AnsweredImage(GeneratedImageResult):
    """An image that a tool made."""

    prompt: str = Field(description="The phrase of the answer that asked for it.")


class FailedTool(BaseModel):
    """A tool that could not do what the answer asked of it; the text stands."""

    tool: str = Field(description="The decoder's name; empty when none is deployed for what the answer asks.")
    phrases: list[str] = Field(description="What it was asked for.")
    error: Problem


class AnswerResponse(TypedResponse):
    """The answer and what the tools found for it, in the shape of the other typed endpoints."""

    text: str
    finish_reason: Literal["stop", "length"] = Field(description="`length`: a limit cut the answer off.")
    categories: list[AnsweredCategory] = Field(description="What tools looked for, in the order of the text.")
    detections: list[CategoryDetection] = Field(description="In the order of the categories, of each best first.")
    images: list[AnsweredImage] = Field(description="What tools made, in the order of the text.")
    failures: list[FailedTool]
