"""``POST /v1/chat/completions``."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import grpc
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from gateway.answers import AnswerCollector
from gateway.bodies import media_type_of, parse, read_body, read_form, timeout_of
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
from gateway.problems import Problem, request_id_of
from gateway.results import ImageSize, Usage, usage_of
from gateway.server_sent_events import DONE, failure_events, server_sent_event
from gateway.server_timing import add_gateway_timings, server_timing
from superlink.errors import SuperlinkError, invalid_argument
from superlink.v1 import orchestrator_pb2

router = APIRouter()


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    summary="Ask about images",
    **chat_documentation(),
)
async def create_chat_completion(request: Request) -> Response:
    """Answer a conversation in text, with what the tools found tied to the words that asked for it."""
    deployment = deployment_of(request)
    timeout_s = timeout_of(request, deployment.profile.gateway)
    chat, uploads = await _read(request, deployment, timeout_s)
    question = translate(chat, uploads, deployment.profile, request_id_of(request))
    model = await deployment.orchestrator.served_model(chat.model)
    left_s = timeout_s - (time.perf_counter() - request.state.started)
    events = deployment.orchestrator.answer(question.request, max(left_s, 0.001))
    answer = _Answer(request, model, question)
    if not chat.stream:
        return await unless_client_leaves(request, answer.complete(events))
    # Only when the first event is here is it certain that there will be an answer: failures until then get a status.
    first = await unless_client_leaves(request, anext(events))
    include_usage = chat.stream_options is not None and chat.stream_options.include_usage
    return EventStream(answer.stream(first, events, include_usage), answer.farewell(), deployment.metrics)


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

    def __init__(self, request: Request, model: str, question: Question) -> None:
        self._request_id = request_id_of(request)
        self._started: float = request.state.started
        self._asked = time.perf_counter()
        self._model = model
        self._created = int(time.time())
        image = question.image
        size = ImageSize(width=image.width, height=image.height) if image is not None else None
        self._collector = AnswerCollector(self._request_id, size)

    async def complete(self, events: AsyncGenerator[orchestrator_pb2.AnswerEvent, None]) -> Response:
        """The whole answer in one response."""
        async with aclosing(events):
            async for event in events:
                self._collector.add(event)
        self._add_timings()
        completion = ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model,
            choices=[
                Choice(
                    message=AssistantMessage(content=self._collector.text, superlink=self._collector.extension()),
                    finish_reason=self._collector.finish_reason,
                )
            ],
            usage=self._usage,
        )
        headers = {"server-timing": server_timing(self._collector.timings)}
        return JSONResponse(completion.model_dump(), headers=headers)

    async def stream(
        self,
        first: orchestrator_pb2.AnswerEvent,
        events: AsyncGenerator[orchestrator_pb2.AnswerEvent, None],
        include_usage: bool,
    ) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events; a failure on the way becomes an event with an ``error``."""
        async with aclosing(events):
            yield self._chunk(Delta(role="assistant", content=""))
            try:
                delta = self._collector.add(first)
                if delta is not None:
                    yield self._chunk(delta)
                async for event in events:
                    delta = self._collector.add(event)
                    if delta is not None:
                        yield self._chunk(delta)
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

    def _chunk(self, delta: Delta) -> bytes:
        return self._event_of([ChunkChoice(delta=delta)])

    def _event_of(self, choices: list[ChunkChoice], usage: Usage | None = None) -> bytes:
        chunk = ChatCompletionChunk(
            id=self._id, created=self._created, model=self._model, choices=choices, usage=usage
        ).model_dump(exclude_none=True)
        for choice in chunk["choices"]:
            # Clients test it for null.
            choice.setdefault("finish_reason", None)
        return server_sent_event(json.dumps(chunk, ensure_ascii=False))
