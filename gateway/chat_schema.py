"""``POST /v1/chat/completions``: OpenAI's shape, and the extension field ``superlink`` on both sides."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gateway import examples
from gateway.drawing_schema import DrawingOptions
from gateway.images import ImageAddress
from gateway.log_probabilities import LogProbabilities
from gateway.regions import RegionMark
from gateway.response_formats import ResponseFormat
from gateway.results import ImageSize, ObservationResult, TimingEntry, ToolCallResult, Usage
from gateway.schema_extras import exactly_one_of, only
from gateway.tool_call_schema import FunctionTool, StandardToolCall, StandardToolCallDelta
from superlink.artifacts import ID_PREFIX

# As in OpenAI's API; every one of them is looked for after every token.
MAX_STOP_TEXTS = 4


class TextPart(BaseModel):
    """Words of a message."""

    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    """Where the image is."""

    url: ImageAddress
    detail: str | None = Field(default=None, description="Accepted and ignored.")


class ImagePart(BaseModel):
    """An image of a user message."""

    type: Literal["image_url"]
    image_url: ImageUrl

    @property
    def address(self) -> str:
        """Where the image is."""
        return self.image_url.url


class GivenFile(BaseModel):
    """An image file: one that was uploaded, or its content."""

    model_config = ConfigDict(json_schema_extra=exactly_one_of("file_id", "file_data"))

    file_id: str | None = Field(
        default=None,
        pattern=f"^{ID_PREFIX}",
        description="Of an image in `/v1/files`.",
        examples=[examples.FILE_ID],
    )
    file_data: str | None = Field(default=None, description="The image as a data URL, or its bytes in base64.")
    filename: str | None = Field(default=None, description="Accepted and ignored.")

    @model_validator(mode="after")
    def _exactly_one(self) -> GivenFile:
        if (self.file_id is None) == (self.file_data is None):
            raise ValueError("a file is given by exactly one of file_id and file_data")
        return self


class FilePart(BaseModel):
    """An image of a user message, given as a file."""

    type: Literal["file"]
    file: GivenFile

    @property
    def address(self) -> str:
        """Where the image is: its file's id, or a data URL."""
        if self.file.file_id is not None:
            return self.file.file_id
        data = self.file.file_data or ""
        return data if data[:5].lower() == "data:" else f"data:;base64,{data}"


class RegionPart(BaseModel):
    """A mark of a user message, on the conversation's last image before it."""

    type: Literal["region"]
    region: RegionMark


ContentPart = Annotated[TextPart | ImagePart | FilePart | RegionPart, Field(discriminator="type")]


class AnswerExtension(BaseModel):
    """What the tools found, on the assistant's message."""

    tool_calls: list[ToolCallResult] | None = None
    observations: list[ObservationResult] | None = None
    rounds: int | None = Field(default=None, description="How often the model read observations and went on.")
    timings: list[TimingEntry] | None = None
    image: ImageSize | None = Field(default=None, description="Upright size of the image that the tools looked at.")
    draft: str | None = Field(
        default=None,
        exclude_if=lambda draft: draft is None,
        description="Of structured answers: what the model wrote first. Spans and positions count in it.",
    )


class ChatMessage(BaseModel):
    """One message. An assistant message that came from here may be sent back with every field that it has."""

    # Clients send answers back with every field that they came with.
    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    superlink: AnswerExtension | None = None
    tool_calls: list[StandardToolCall] | None = Field(default=None, description="Of assistants.")
    tool_call_id: str | None = Field(default=None, description="Of tools: the call that the content is the result of.")


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    include_usage: bool = False


class AnswerOptions(BaseModel):
    """The request's side of the extension field."""

    model_config = ConfigDict(extra="forbid")

    max_rounds: int | None = Field(
        default=None, ge=0, le=8, description="Observation rounds, within the profile's limit."
    )
    score_threshold: float | None = Field(
        default=None, ge=0, le=1, description="Drop detections below this probability. Unset: the tool's default."
    )
    max_detections: int | None = Field(default=None, ge=1, le=1000, description="Per tool call. Unset: 100.")
    drawing: DrawingOptions = Field(default=DrawingOptions(), description="For tools that make images.")


class ChatRequest(BaseModel):
    """OpenAI's request. Options that this API does not have are accepted only with the value that means "off"."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(default=None, description="Unset: the served model.")
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2, description="Unset: 0, the most likely answer.")
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | Annotated[list[str], Field(max_length=MAX_STOP_TEXTS)] | None = None
    n: Annotated[int | None, only(1)] = Field(default=None, description="Only 1.")
    response_format: ResponseFormat | None = None
    tools: list[FunctionTool] | None = Field(
        default=None, description="Tools of the deployment whose calls are left to the client; see docs/api.md."
    )
    tool_choice: Annotated[Any, only("auto", "none")] = Field(default=None, description="Only `auto` and `none`.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    superlink: AnswerOptions = AnswerOptions()
    user: str | None = Field(default=None, description="Accepted and ignored.")
    safety_identifier: str | None = Field(default=None, description="Accepted and ignored.")
    metadata: dict[str, Any] | None = Field(default=None, description="Accepted and ignored.")
    service_tier: str | None = Field(default=None, description="Accepted and ignored.")
    prompt_cache_key: str | None = Field(default=None, description="Accepted and ignored.")
    prompt_cache_retention: str | None = Field(default=None, description="Accepted and ignored.")
    prompt_cache_options: dict[str, Any] | None = Field(default=None, description="Accepted and ignored.")
    prediction: dict[str, Any] | None = Field(default=None, description="Accepted and ignored.")
    reasoning_effort: str | None = Field(default=None, description="Accepted and ignored.")
    verbosity: str | None = Field(default=None, description="Accepted and ignored.")
    frequency_penalty: Annotated[float | None, only(0)] = Field(default=None, description="Only 0.")
    presence_penalty: Annotated[float | None, only(0)] = Field(default=None, description="Only 0.")
    logit_bias: Annotated[dict[str, float] | None, only({})] = Field(default=None, description="Only empty.")
    parallel_tool_calls: bool | None = Field(default=None, description="With `tools` only true.")
    store: Annotated[bool | None, only(False)] = Field(default=None, description="Only false.")
    modalities: Annotated[list[str] | None, only(["text"])] = Field(default=None, description="Only `text`.")
    audio: Annotated[Any, only()] = Field(default=None, description="Refused.")
    web_search_options: Annotated[Any, only()] = Field(default=None, description="Refused.")
    moderation: Annotated[Any, only()] = Field(default=None, description="Refused.")
    functions: Annotated[list[Any] | None, only([])] = Field(default=None, description="Refused; see `tools`.")
    function_call: Annotated[Any, only("auto", "none")] = Field(default=None, description="Refused; see `tools`.")


FinishReason = Literal["stop", "length", "tool_calls"]


class AssistantMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None
    tool_calls: list[StandardToolCall] | None = Field(
        default=None, exclude_if=lambda calls: calls is None, description="Where the request offered `tools`."
    )
    superlink: AnswerExtension


class Choice(BaseModel):
    """The one choice."""

    index: Literal[0] = 0
    message: AssistantMessage
    logprobs: LogProbabilities | None = None
    finish_reason: FinishReason


class ChatCompletion(BaseModel):
    """The response when it is not streamed."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int = Field(description="Unix time in seconds.")
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(BaseModel):
    """What a chunk adds. Entries of ``superlink.tool_calls`` replace earlier ones with the same id.

    ``superlink.draft`` is more of the draft.
    """

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[StandardToolCallDelta] | None = None
    superlink: AnswerExtension | None = None


class ChunkChoice(BaseModel):
    """The one choice of a chunk."""

    index: Literal[0] = 0
    delta: Delta
    logprobs: LogProbabilities | None = None
    finish_reason: FinishReason | None = None


class ChatCompletionChunk(BaseModel):
    """One server-sent event of a streamed response."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
