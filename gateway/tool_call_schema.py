"""Tool calls in OpenAI's shape: what clients offer, what answers ask for, and what comes back for it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from gateway.results import ImageSize, PhraseResult, Span


class FunctionName(BaseModel):
    """The function that a request offers; descriptions and parameters are the platform's own, whatever is sent."""

    name: str = Field(description="A tool of the deployment.", examples=["detection"])


class FunctionTool(BaseModel):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionName


class CalledPhrase(BaseModel):
    """A phrase that the answer gives to a tool."""

    phrase: str
    route: str = Field(description="The routing token.", examples=["[DET]"])
    span: Span | None = Field(default=None, description="Where the phrase stands in the answer.")


class CallArguments(BaseModel):
    """The arguments of every tool."""

    phrases: list[CalledPhrase]


class CalledFunction(BaseModel):
    """A tool and what it is asked."""

    name: str = Field(description="The tool.", examples=["detection"])
    arguments: str = Field(description="`CallArguments` as JSON.")


class StandardToolCall(BaseModel):
    """A tool call of an answer."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class StandardToolCallDelta(StandardToolCall):
    """A tool call of a streamed answer, whole."""

    index: int


class CategoryPresence(BaseModel):
    """Whether what was asked for is there, as the fast paths say it."""

    phrase: str
    found: bool


class ReturnedDetection(BaseModel):
    """One object: what is read of one that the fast paths report."""

    category: str
    bbox: list[float]
    score: float = Field(ge=0, le=1)


class MadeImage(BaseModel):
    """An image that a tool made."""

    b64_json: str


class ReturnedResult(BaseModel):
    """The content of a ``tool`` message; one of its fields is enough.

    It is an entry of an answer's ``superlink.tool_calls``, a response of a fast path or of an images endpoint, or the
    word that the tool failed.
    """

    phrases: list[PhraseResult] | None = None
    categories: list[CategoryPresence] | None = None
    detections: list[ReturnedDetection] = []
    data: list[MadeImage] | None = None
    error: Any = None
    image: ImageSize | None = None
