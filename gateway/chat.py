"""``POST /v1/chat/completions``."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import grpc
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from gateway.answers import AnswerCollector
from gateway.bodies import media_type_of, parse, read_body, read_form
from gateway.calls import Call, call_of
from gateway.chat_schema import (
    AssistantMessage,
    ChatCompletion,
    ChatCompletionChunk,
    ChatRequest,
    Choice,
    ChunkChoice,
    Delta,
)
from gateway.conversation import Question, translate
from gateway.deployment import Deployment, deployment_of
from gateway.disconnects import EventStream, unless_client_leaves
from gateway.documentation import chat_documentation
from gateway.images import ReceivedImage, receive_image
from gateway.problems import Problem
from gateway.results import ImageSize, TimingEntry, Usage, usage_of
from gateway.server_sent_events import DONE, failure_events, server_sent_event
from gateway.server_timing import add_gateway_timings, server_timing
from superlink.errors import SuperlinkError, invalid_argument
from superlink.v1 import orchestrator_pb2

router = APIRouter()

AnswerEvents = AsyncGenerator[orchestrator_pb2.AnswerEvent, None]


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    summary="Ask about images",
    **chat_documentation(),
)
async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation in text, with what the tools found tied to the words that asked for it."""
    deployment = deployment_of(request)
    call = call_of(request, deployment.profile.gateway)
    chat, uploads = await _read(request, deployment, call.timeout_s)
    answer, events = await unless_client_leaves(request, _start(deployment, call, chat, uploads))
    if not chat.stream:
        completion = await unless_client_leaves(request, answer.complete(events))
        return JSONResponse(completion.model_dump(), headers={"server-timing": server_timing(answer.timings)})
    # Only when the first event is here is it certain that there will be an answer: failures until then get a status.
    first = await unless_client_leaves(request, anext(events))
    include_usage = chat.stream_options is not None and chat.stream_options.include_usage
    return EventStream(answer.stream(first, events, include_usage), answer.farewell(), deployment.metrics)


async def complete_chat(
    deployment: Deployment, call: Call, chat: ChatRequest, uploads: Sequence[ReceivedImage]
) -> ChatCompletion:
    """The whole answer to ``chat``; ``uploads`` belong to its last message.

    Raises SuperlinkError where the request asks for what this API does not do, exceeds a limit, or a service fails.
    """
    answer, events = await _start(deployment, call, chat, uploads)
    return await answer.complete(events)


async def _start(
    deployment: Deployment, call: Call, chat: ChatRequest, uploads: Sequence[ReceivedImage]
) -> tuple[_Answer, AnswerEvents]:
    """An answer and its events; it begins when the first one is asked for."""
    question = await translate(chat, uploads, deployment, call)
    model = await deployment.orchestrator.served_model(chat.model, call.hop_s())
    return _Answer(call, model, question), deployment.orchestrator.answer(question.request, call.hop_s())


async def _read(request: Request, deployment: Deployment, timeout_s: float) -> tuple[ChatRequest, list[ReceivedImage]]:
    """The request and the images that came as files."""
    if media_type_of(request) != "multipart/form-data":
        return parse(ChatRequest, await read_body(request, timeout_s)), []
    profile = deployment.profile
    form = await read_form(request, profile.gateway, profile.mllm.max_images, timeout_s)
    documents = form.fields.get("request", [])
    if len(documents) != 1:
        raise invalid_argument(
            "invalid_request", "A multipart body needs one field 'request' with the JSON request, and image files."
        )
    return parse(ChatRequest, documents[0]), [receive_image(encoded, profile.images) for encoded in form.files]


class _Answer:
    """One answer on its way to the client."""

    def __init__(self, call: Call, model: str, question: Question) -> None:
        self._request_id = call.request_id
        self._started = call.started
        self._asked = time.perf_counter()
        self._model = model
        self._created = int(time.time())
        image = question.image
        size = ImageSize(width=image.width, height=image.height) if image is not None else None
        self._collector = AnswerCollector(
            self._request_id,
            size,
            leaves_calls_to_client=question.request.ends_at_tool_calls,
            has_draft=bool(question.request.json_schema),
            reports_log_probabilities=question.request.sampling.HasField("top_log_probabilities"),
        )

    async def complete(self, events: AnswerEvents) -> ChatCompletion:
        """The whole answer."""
        async with aclosing(events):
            async for event in events:
                self._collector.add(event)
        self._add_timings()
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[
                Choice(
                    message=AssistantMessage(
                        content=self._collector.text,
                        tool_calls=self._collector.standard_calls,
                        superlink=self._collector.extension(),
                    ),
                    logprobs=self._collector.log_probabilities,
                    finish_reason=self._collector.finish_reason,
                )
            ],
            usage=self._usage,
        )

    @property
    def timings(self) -> list[TimingEntry]:
        """Where the time of a complete answer went."""
        return self._collector.timings

    async def stream(
        self,
        first: orchestrator_pb2.AnswerEvent,
        events: AnswerEvents,
        include_usage: bool,
    ) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events; a failure on the way becomes an event with an ``error``."""
        async with aclosing(events):
            yield self._event_of([ChunkChoice(delta=Delta(role="assistant", content=""))])
            try:
                choice = self._collector.add(first)
                if choice is not None:
                    yield self._event_of([choice])
                async for event in events:
                    choice = self._collector.add(event)
                    if choice is not None:
                        yield self._event_of([choice])
            except SuperlinkError as error:
                yield self._failure(error)
                return
        self._add_timings()
        last = ChunkChoice(
            delta=Delta(superlink=self._collector.summary()), finish_reason=self._collector.finish_reason
        )
        yield self._event_of([last])
        if include_usage:
            yield self._event_of([], self._usage)
        yield DONE

    def farewell(self) -> bytes:
        """What ends the stream when the gateway stops before the answer is complete."""
        return self._failure(
            SuperlinkError(
                "shutting_down",
                "The gateway is being stopped and the answer took too long. Ask again.",
                status=grpc.StatusCode.UNAVAILABLE,
            )
        )

    def _failure(self, error: SuperlinkError) -> bytes:
        return failure_events(Problem.from_error(error, self._request_id))

    @property
    def _id(self) -> str:
        return f"chatcmpl-{self._request_id}"

    @property
    def _usage(self) -> Usage:
        return usage_of(self._collector.usage)

    def _add_timings(self) -> None:
        add_gateway_timings(self._collector.timings, self._started, self._asked)

    def _event_of(self, choices: list[ChunkChoice], usage: Usage | None = None) -> bytes:
        chunk = ChatCompletionChunk(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
        ).model_dump(exclude_none=True)
        for choice in chunk["choices"]:
            # Clients test it for null.
            choice.setdefault("finish_reason", None)
        return server_sent_event(json.dumps(chunk, ensure_ascii=False))
