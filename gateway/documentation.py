"""What the OpenAPI document says beyond the signatures: bodies that handlers read themselves, and problems."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.access import OPEN_PATHS
from gateway.chat_schema import ChatCompletionChunk, ChatRequest
from gateway.detect_schema import DetectOptions, DetectRequest, PoseOptions, PoseRequest, SegmentOptions, SegmentRequest
from gateway.drawing_schema import CompletedImage, DrawingProgress, EditRequest, GenerationOptions, GenerationRequest
from gateway.idempotency import HEADER, REPLAYED_HEADER
from gateway.problems import Problem
from gateway.tool_call_schema import CallArguments, ReturnedResult

_REFERENCE = "#/components/schemas/{model}"
# Models that no signature names.
_EXTRA_MODELS: tuple[type[BaseModel], ...] = (
    ChatRequest,
    ChatCompletionChunk,
    CallArguments,
    ReturnedResult,
    DetectOptions,
    DetectRequest,
    SegmentOptions,
    SegmentRequest,
    GenerationOptions,
    GenerationRequest,
    EditRequest,
    DrawingProgress,
    CompletedImage,
    PoseOptions,
    PoseRequest,
    Problem,
)

_PROBLEMS = {
    400: "The request is wrong; the code says how.",
    404: "Unknown model.",
    413: "The body or the image is too large.",
    415: "Not a JPEG, PNG or WebP file.",
    429: "A queue is full, or the API key is at one of its limits; try again after the given time.",
    501: "No such tool is deployed.",
    503: "A service is not reachable or not ready.",
    504: "The request ran out of time.",
}

# Of requests that need an API key.
_KEY_PROBLEMS = {
    401: "The API key is missing, unknown or revoked.",
    429: "The API key is at one of its limits; try again after the given time.",
    503: "The store of API keys does not answer; try again.",
}
# Of requests that carry an idempotency key.
_IDEMPOTENCY_PROBLEMS = {
    409: "The request with this idempotency key is still being answered.",
    422: "The idempotency key came with a different request before.",
}
_IDEMPOTENCY_PARAMETER = {
    "name": HEADER.title(),
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    "description": "Of one's own making. A repetition with the same key gets the same answer, and the header "
    f"`{REPLAYED_HEADER}: true` with it; nothing is done twice. Streams are not kept.",
}

_IMAGE_URL = "data:image/png;base64,iVBORw0KGgo…"
_CHAT_EXAMPLE = {
    "model": "superlink-tiny",
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": _IMAGE_URL}},
                {"type": "text", "text": "How many dogs are there?"},
            ],
        }
    ],
}
_DETECT_EXAMPLE = {"image": _IMAGE_URL, "categories": ["dog", "cat"], "score_threshold": 0.3}
_SEGMENT_EXAMPLE = {"image": _IMAGE_URL, "categories": ["dog", "cat"], "regions": [{"points": [[40, 60]]}]}
_GENERATION_EXAMPLE = {"prompt": "a cat beside a tree", "n": 1, "superlink": {"seed": 3}}
_EDIT_EXAMPLE = {"image": _IMAGE_URL, "prompt": "make the dog blue"}
_POSE_EXAMPLE = {"image": _IMAGE_URL, "categories": ["person"], "keypoints": ["nose", "left wrist"]}


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route that may answer with these problems."""
    return {status: _problem(_PROBLEMS[status]) for status in statuses}


def chat_documentation() -> dict[str, Any]:
    """Keyword arguments of the chat route."""
    responses = problem_responses(*_PROBLEMS)
    responses[200] = {
        "description": "The answer; with `stream: true` as server-sent events, ended by `data: [DONE]`.",
        "content": {"text/event-stream": {"schema": _reference(ChatCompletionChunk)}},
    }
    multipart = {
        "type": "object",
        "required": ["request"],
        "properties": {
            "request": {"type": "string", "description": "The JSON request."},
            "image": {
                "type": "array",
                "items": {"type": "string", "format": "binary"},
                "description": "Image files; they belong to the last message.",
            },
        },
    }
    return {
        "responses": responses,
        "openapi_extra": _body(
            {
                "application/json": {"schema": _reference(ChatRequest), "example": _CHAT_EXAMPLE},
                "multipart/form-data": {"schema": multipart},
            }
        ),
    }


def detect_documentation() -> dict[str, Any]:
    """Keyword arguments of the detection route."""
    return _fast_path(DetectOptions, DetectRequest, _DETECT_EXAMPLE)


def segment_documentation() -> dict[str, Any]:
    """Keyword arguments of the segmentation route."""
    return _fast_path(SegmentOptions, SegmentRequest, _SEGMENT_EXAMPLE)


def generation_documentation() -> dict[str, Any]:
    """Keyword arguments of the drawing route."""
    content = {"application/json": {"schema": _reference(GenerationRequest), "example": _GENERATION_EXAMPLE}}
    return {"responses": _drawing_responses(), "openapi_extra": _body(content)}


def edit_documentation() -> dict[str, Any]:
    """Keyword arguments of the editing route."""
    file = {"type": "string", "format": "binary"}
    files = {"type": "object", "required": ["image"], "properties": {"image": file, "mask": file}}
    content = {
        "application/json": {"schema": _reference(EditRequest), "example": _EDIT_EXAMPLE},
        "multipart/form-data": {"schema": {"allOf": [_reference(GenerationOptions), files]}},
    }
    return {"responses": _drawing_responses(), "openapi_extra": _body(content)}


def _drawing_responses() -> dict[int | str, dict[str, Any]]:
    events = {"oneOf": [_reference(DrawingProgress), _reference(CompletedImage)]}
    return {
        **problem_responses(*_PROBLEMS),
        200: {
            "description": "The images; with `stream: true` as server-sent events, ended by `data: [DONE]`.",
            "content": {"text/event-stream": {"schema": events}},
        },
    }


def pose_documentation() -> dict[str, Any]:
    """Keyword arguments of the pose route."""
    return _fast_path(PoseOptions, PoseRequest, _POSE_EXAMPLE)


def _fast_path(options: type[BaseModel], body: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    multipart = {
        "allOf": [
            _reference(options),
            {
                "type": "object",
                "required": ["image"],
                "properties": {"image": {"type": "string", "format": "binary"}},
            },
        ]
    }
    raw = {"schema": {"type": "string", "format": "binary", "description": "Options go into the query string."}}
    return {
        "responses": problem_responses(*_PROBLEMS),
        "openapi_extra": _body(
            {
                "application/json": {"schema": _reference(body), "example": example},
                "multipart/form-data": {"schema": multipart},
                "image/*": raw,
            }
        ),
    }


def document_the_rest(application: FastAPI, *, needs_keys: bool, keeps_answers: bool) -> None:
    """Make ``application.openapi()`` say what no signature does: models that handlers read themselves, and middlewares.

    ``needs_keys``: requests need API keys; ``keeps_answers``: idempotency keys have an effect.
    """

    def openapi() -> dict[str, Any]:
        if application.openapi_schema is None:
            schema = get_openapi(
                title=application.title,
                version=application.version,
                description=application.description,
                routes=application.routes,
            )
            _, definitions = models_json_schema(
                [(model, "validation") for model in _EXTRA_MODELS], ref_template=_REFERENCE
            )
            components = schema.setdefault("components", {}).setdefault("schemas", {})
            for name, definition in definitions["$defs"].items():
                components.setdefault(name, definition)
            if needs_keys:
                _add_keys(schema)
            if keeps_answers:
                _add_idempotency(schema)
            application.openapi_schema = schema
        return application.openapi_schema

    application.openapi = openapi  # type: ignore[method-assign]


def _add_keys(schema: dict[str, Any]) -> None:
    schema["components"]["securitySchemes"] = {"api_key": {"type": "http", "scheme": "bearer"}}
    schema["security"] = [{"api_key": []}]
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            if path in OPEN_PATHS:
                operation["security"] = []
            else:
                _add_problems(operation, _KEY_PROBLEMS)


def _add_idempotency(schema: dict[str, Any]) -> None:
    for operation in (operations["post"] for operations in schema["paths"].values() if "post" in operations):
        operation.setdefault("parameters", []).append(_IDEMPOTENCY_PARAMETER)
        _add_problems(operation, _IDEMPOTENCY_PROBLEMS)


def _add_problems(operation: dict[str, Any], problems: dict[int, str]) -> None:
    for status, description in problems.items():
        operation["responses"].setdefault(str(status), _problem(description))


def _problem(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/problem+json": {"schema": _reference(Problem)}}}


def _body(content: dict[str, Any]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": content}}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(model=model.__name__)}
