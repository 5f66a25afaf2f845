"""``POST /v1/images/generations`` and ``/v1/images/edits``: OpenAI's shape, and the extension field ``superlink``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gateway.images import ImageAddress
from gateway.results import GeneratedImageResult, TimingEntry
from gateway.schema_extras import only
from superlink.v1 import decoder_pb2


class DrawingOptions(BaseModel):
    """How a tool that makes images works; what is unset is left to the tool."""

    model_config = ConfigDict(extra="forbid")

    seed: int | None = Field(
        default=None, ge=0, lt=2**63, description="The same seed makes the same image. Unset: another one every time."
    )
    steps: int | None = Field(default=None, ge=1, le=100, description="More take longer and bring out more.")
    guidance: float | None = Field(
        default=None, ge=0, le=30, description="How far to follow the prompt; 1 is not to exaggerate it."
    )
    image_guidance: float | None = Field(
        default=None, ge=0, le=30, description="How far to keep to the source image. Of edits only."
    )

    def to_message(self) -> decoder_pb2.DiffusionOptions:
        """The options as the orchestrator takes them."""
        return decoder_pb2.DiffusionOptions(**self.model_dump(exclude_none=True))


class GenerationOptions(BaseModel):
    """OpenAI's options. What this API does not have is accepted only with the value that means "off"."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(description="What to draw, or what to change.", examples=["a cat beside a tree"])
    model: str | None = Field(default=None, description="Unset: the served model.")
    n: int | None = Field(default=None, ge=1, le=4, description="How many images to make. Unset: one.")
    size: str | None = Field(
        default=None,
        pattern=r"^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$",
        description="Width x height in pixels, multiples of 16. `auto`: the tool's own; of edits, that of the source.",
        examples=["128x128"],
    )
    response_format: Annotated[str | None, only("b64_json")] = Field(default=None, description="Only `b64_json`.")
    output_format: Annotated[str | None, only("png")] = Field(default=None, description="Only `png`.")
    background: Annotated[str | None, only("auto", "opaque")] = Field(
        default=None, description="Only `auto` and `opaque`."
    )
    stream: bool = Field(default=False, description="Server-sent events: progress, then the images.")
    partial_images: int | None = Field(
        default=None, ge=0, le=3, description="Accepted as the upper limit that it is: none are made."
    )
    superlink: DrawingOptions = DrawingOptions()
    quality: str | None = Field(default=None, description="Accepted and ignored; see `superlink.steps`.")
    moderation: str | None = Field(default=None, description="Accepted and ignored.")
    input_fidelity: str | None = Field(
        default=None, description="Accepted and ignored; see `superlink.image_guidance`."
    )
    user: str | None = Field(default=None, description="Accepted and ignored.")
    safety_identifier: str | None = Field(default=None, description="Accepted and ignored.")
    output_compression: int | None = Field(default=None, description="Accepted and ignored: PNG files lose nothing.")
    style: Annotated[str | None, only()] = Field(default=None, description="Refused.")
    complexity: Annotated[str | None, only()] = Field(default=None, description="Refused.")
    frame_count: Annotated[int | None, only()] = Field(default=None, description="Refused.")
    frame_duration_ms: Annotated[int | None, only()] = Field(default=None, description="Refused.")
    svg: Annotated[Any, only()] = Field(default=None, description="Refused.")

    def to_message(self) -> decoder_pb2.DiffusionOptions:
        """The options as the orchestrator takes them."""
        message = self.superlink.to_message()
        if self.n is not None:
            message.count = self.n
        if self.size not in (None, "auto"):
            message.width, message.height = (int(side) for side in self.size.split("x"))
        return message


class GenerationRequest(GenerationOptions):
    """The JSON body of a drawing."""


class EditRequest(GenerationOptions):
    """The JSON body of an edit."""

    image: ImageAddress
    mask: ImageAddress | None = Field(
        default=None, description="A PNG or WebP of the same size; what is transparent in it is meant."
    )


class InputTokensDetails(BaseModel):
    """Of the prompt's tokens."""

    text_tokens: int
    image_tokens: int


class ImagesUsage(BaseModel):
    """Tokens that the model read; it writes none."""

    input_tokens: int
    output_tokens: Literal[0] = 0
    total_tokens: int
    input_tokens_details: InputTokensDetails


class ImagesResponse(BaseModel):
    """The images."""

    created: int = Field(description="Unix time in seconds.")
    model: str
    data: list[GeneratedImageResult]
    output_format: Literal["png"] = "png"
    usage: ImagesUsage
    timings: list[TimingEntry]


class DrawingProgress(BaseModel):
    """An event of a stream: how far the tool is."""

    type: Literal["superlink.progress"] = "superlink.progress"
    done: int
    total: int


class CompletedImage(GeneratedImageResult):
    """An event of a stream: one image, whole."""

    type: Literal["image_generation.completed", "image_edit.completed"]
    created_at: int
    model: str
    output_format: Literal["png"] = "png"
    size: str
    usage: ImagesUsage
    timings: list[TimingEntry]
