"""``POST /v1/answer``: a prompt and images in, a text and what the tools found for it out. One turn, no stream.

It is ``/v1/chat/completions`` without the conversation, in the shape of the other typed endpoints.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.calls import Call, call_of
from gateway.chat import complete_chat
from gateway.chat_schema import AnswerOptions as ChatOptions
from gateway.chat_schema import ChatCompletion, ChatMessage, ChatRequest, RegionPart, TextPart
from gateway.deployment import Deployment, deployment_of
from gateway.disconnects import unless_client_leaves
from gateway.documentation import answer_documentation
from gateway.plain_answer_schema import (
    AnsweredCategory,
    AnsweredImage,
    AnswerOptions,
    AnswerRequest,
    AnswerResponse,
    FailedTool,
)
from gateway.rendering import check_drawable, respond
from gateway.results import PhraseResult
from gateway.typed_options import CategoryDetection
from gateway.typed_requests import TypedRequest, read_typed

router = APIRouter()


@router.post("/v1/answer", response_model=AnswerResponse, summary="Answer a question", **answer_documentation())
async def answer(request: Request) -> Response:
    """Answer one question about images in words, with what the tools found for it."""
    deployment = deployment_of(request)
    call = call_of(request, deployment.profile.gateway)
    asked = await read_typed(
        request, deployment, call, AnswerOptions, AnswerRequest, deployment.profile.mllm.max_images
    )
    image = asked.images[-1] if asked.images else None
    check_drawable(request, asked.options, image)
    response = await unless_client_leaves(request, _answer(deployment, call, asked))
    return await unless_client_leaves(request, respond(request, deployment, response, asked.options, image))


async def _answer(deployment: Deployment, call: Call, asked: TypedRequest[AnswerOptions]) -> AnswerResponse:
    """Raises what ``complete_chat`` raises."""
    return _in_short(await complete_chat(deployment, call, _as_chat(asked.options), asked.images))


def _as_chat(options: AnswerOptions) -> ChatRequest:
    marks = [RegionPart(type="region", region=mark) for mark in options.regions]
    words = TextPart(type="text", text=options.prompt)
    return ChatRequest(
        model=options.model,
        messages=[ChatMessage(role="user", content=[*marks, words])],
        max_completion_tokens=options.max_tokens,
        temperature=options.temperature,
        seed=options.seed,
        superlink=ChatOptions(
            max_rounds=options.max_rounds,
            score_threshold=options.score_threshold,
            max_detections=options.max_detections,
            drawing=options.drawing,
        ),
    )


def _in_short(completion: ChatCompletion) -> AnswerResponse:
    """``completion`` in the shape of the typed endpoints."""
    [choice] = completion.choices
    extension = choice.message.superlink
    calls = extension.tool_calls or []
    done = [(call.tool, phrase) for call in calls if call.status == "completed" for phrase in call.phrases]
    # Names of keypoints are phrases of a call, too; what was found of them stands with the things before them.
    sought = [(tool, phrase, phrase.found) for tool, phrase in done if phrase.found is not None]
    return AnswerResponse(
        model=completion.model,
        text=choice.message.content,
        finish_reason="length" if choice.finish_reason == "length" else "stop",
        image=extension.image,
        categories=[
            AnsweredCategory(phrase=phrase.phrase, found=found, score=phrase.score or 0.0, tool=tool, span=phrase.span)
            for tool, phrase, found in sought
        ],
        detections=[
            detection for index, (_, phrase, _) in enumerate(sought) for detection in _detections(phrase, index)
        ],
        images=[
            AnsweredImage(prompt=phrase.phrase, **image.model_dump()) for _, phrase in done for image in phrase.images
        ],
        failures=[
            FailedTool(tool=call.tool, phrases=[phrase.phrase for phrase in call.phrases], error=call.error)
            for call in calls
            if call.error is not None
        ],
        usage=completion.usage,
        timings=extension.timings or [],
    )


def _detections(phrase: PhraseResult, index: int) -> list[CategoryDetection]:
    best_first = sorted(phrase.detections, key=lambda found: found.score, reverse=True)
    return [
        CategoryDetection(category=phrase.phrase, category_index=index, **found.model_dump()) for found in best_first
    ]
