"""The OpenAPI document: what every route has in common, and the models that no signature names."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.access import OPEN_PATHS
from gateway.batches_schema import BatchRequest
from gateway.chat_schema import ChatCompletionChunk, ChatRequest
from gateway.detect_schema import DetectRequest, PoseRequest, SegmentRequest
from gateway.documentation import REFERENCE, problem_response, reference
from gateway.drawing_schema import CompletedImage, DrawingProgress, EditRequest, GenerationRequest
from gateway.idempotency import HEADER, KEPT_HEADER, REPLAYED_HEADER, STREAMED
from gateway.plain_answer_schema import AnswerRequest
from gateway.problems import FailureEvent, Problem
from gateway.tool_call_schema import CallArguments, ReturnedResult
from gateway.whole_numbers import with_whole_numbers
from superlink.channels import REQUEST_ID_KEY

_EXTRA_MODELS: tuple[type[BaseModel], ...] = (
    ChatRequest,
    ChatCompletionChunk,
    CallArguments,
    ReturnedResult,
    AnswerRequest,
    DetectRequest,
    SegmentRequest,
    PoseRequest,
    GenerationRequest,
    EditRequest,
    BatchRequest,
    DrawingProgress,
    CompletedImage,
    FailureEvent,
    Problem,
)

_IDEMPOTENCY_PARAMETER = {
    "name": HEADER.title(),
    "in": "header",
    "required": False,
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    "example": "order-4711",
    "description": "Of one's own making. A repetition with the same key gets the same answer, and the header "
    f"`{REPLAYED_HEADER}: true` with it; nothing is done twice. Streams are not kept. An answer that could not be kept "
    f"comes with `{KEPT_HEADER}: false`.",
}
_HEADERS = {
    REQUEST_ID_KEY: {
        "description": "The id under which every process logged the request.",
        "required": True,
        "schema": {"type": "string"},
        "example": "4f0c9a1b2c3d4e5f4f0c9a1b2c3d4e5f",
    }
}
_RETRY_AFTER = {
    "retry-after": {
        "description": "When to ask again, in seconds.",
        "required": True,
        "schema": {"type": "integer"},
        "example": 1,
    }
}
_WAIT = ("429", "503")


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
            _add_models(schema)
            for path, operations in schema["paths"].items():
                for method, operation in operations.items():
                    if needs_keys:
                        _add_key(operation, is_open=path in OPEN_PATHS)
                    if keeps_answers and method == "post" and path not in STREAMED:
                        _add_idempotency(operation)
                    _add_common_responses(operation)
            if needs_keys:
                schema["components"]["securitySchemes"] = {"api_key": {"type": "http", "scheme": "bearer"}}
                schema["security"] = [{"api_key": []}]
            # The framework writes bounds as floats, and large ones would be read as others.
            application.openapi_schema = with_whole_numbers(schema)
        return application.openapi_schema

    application.openapi = openapi  # type: ignore[method-assign]


def _add_models(schema: dict[str, Any]) -> None:
    _, definitions = models_json_schema([(model, "validation") for model in _EXTRA_MODELS], ref_template=REFERENCE)
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    for name, definition in definitions["$defs"].items():
        components.setdefault(name, definition)
    # The framework's own, which is never sent.
    for name in ("HTTPValidationError", "ValidationError"):
        components.pop(name, None)


def _add_common_responses(operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    if responses.get("422", {}).get("content", {}).keys() == {"application/json"}:
        # What does not fit its schema is a problem with the status 400.
        del responses["422"]
        responses.setdefault("400", problem_response("invalid_request"))
    for status, response in responses.items():
        response["headers"] = {**_HEADERS, **(_RETRY_AFTER if status in _WAIT else {})}
    problem = {"application/problem+json": {"schema": reference(Problem)}}
    responses["default"] = {"description": "Any other problem.", "content": problem, "headers": _HEADERS}


def _add_key(operation: dict[str, Any], *, is_open: bool) -> None:
    if is_open:
        operation["security"] = []
    else:
        _add_problems(operation, {"401": "invalid_api_key", "429": "rate_limited", "503": "redis_unavailable"})


def _add_idempotency(operation: dict[str, Any]) -> None:
    operation.setdefault("parameters", []).append(_IDEMPOTENCY_PARAMETER)
    _add_problems(operation, {"409": "request_in_progress", "422": "idempotency_key_reused"})


def _add_problems(operation: dict[str, Any], codes: dict[str, str]) -> None:
    for status, code in codes.items():
        operation["responses"].setdefault(status, problem_response(code))
