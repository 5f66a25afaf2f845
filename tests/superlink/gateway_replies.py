"""Responses in the gateway's own schema, for the scripted gateway."""

from __future__ import annotations

import io

from PIL import Image
from pydantic import BaseModel

from gateway.chat_schema import (
    AnswerExtension,
    AssistantMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Delta,
)
from gateway.problems import Problem
from gateway.results import DetectionResult, PhraseResult, PromptTokensDetails, Span, ToolCallResult, Usage
from tests.superlink.conftest import Reply

USAGE = Usage(
    prompt_tokens=70, completion_tokens=9, total_tokens=79, prompt_tokens_details=PromptTokensDetails(image_tokens=50)
)
COMPLETED = ToolCallResult(
    id="call_0",
    tool="detection",
    status="completed",
    phrases=[
        PhraseResult(
            phrase="dog",
            span=Span(start=12, end=15),
            route="[DET]",
            found=True,
            score=0.98,
            detections=[DetectionResult(bbox=[10, 20, 30, 40], score=0.98)],
        )
    ],
)
PROBLEM = Problem(
    type="urn:superlink:problem:image_too_large",
    title="Image too large",
    status=413,
    detail="The image is too large. Send a smaller one.",
    code="image_too_large",
    message="The image is too large. Send a smaller one.",
    service="gateway",
    hop="client>gateway",
    request_id="r-7",
    retryable=False,
)


def png(side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(buffer, format="PNG")
    return buffer.getvalue()


def reply(document: BaseModel, status: int = 200, **headers: str) -> Reply:
    return Reply(status, document.model_dump_json().encode(), {"content-type": "application/json", **headers})


def completion(text: str, extension: AnswerExtension) -> Reply:
    message = AssistantMessage(content=text, superlink=extension)
    choice = Choice(message=message, finish_reason="stop")
    return reply(ChatCompletion(id="chatcmpl-1", created=0, model="superlink-tiny", choices=[choice], usage=USAGE))


def event_stream(*documents: str) -> Reply:
    body = "".join(f"data: {document}\n\n" for document in (*documents, "[DONE]"))
    return Reply(200, body.encode(), {"content-type": "text/event-stream"})


def chunk(delta: Delta, finish_reason: str | None = None) -> str:
    choice = ChunkChoice.model_validate({"delta": delta, "finish_reason": finish_reason})
    document = ChatCompletionChunk(id="chatcmpl-1", created=0, model="superlink-tiny", choices=[choice])
    return document.model_dump_json(exclude_none=True)
