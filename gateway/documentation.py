"""What the OpenAPI document says of routes beyond their signatures: bodies that handlers read themselves, problems."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

from gateway import examples
from gateway.batches_schema import BatchRequest
from gateway.chat_schema import ChatCompletionChunk, ChatRequest
from gateway.detect_schema import DetectOptions, DetectRequest, PoseOptions, PoseRequest, SegmentOptions, SegmentRequest
from gateway.drawing_schema import CompletedImage, DrawingProgress, EditRequest, GenerationOptions, GenerationRequest
from gateway.files_schema import UploadFields
from gateway.plain_answer_schema import AnswerOptions, AnswerRequest
from gateway.problems import FailureEvent, Problem
from superlink.error_codes import CODES
from superlink.overlays import MEDIA_TYPES

REFERENCE = "#/components/schemas/{model}"

# Of a status, one of its codes; docs/errors.md has all.
_PROBLEMS = {
    400: "invalid_request",
    404: "unknown_model",
    413: "body_too_large",
    415: "unsupported_image",
    429: "queue_full",
    500: "internal",
    501: "unknown_tool",
    502: "adapter_version_mismatch",
    503: "unavailable",
    504: "deadline_exceeded",
}
_FILE = {"type": "string", "format": "binary"}


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route that may answer with these problems."""
    return {status: problem_response(_PROBLEMS[status]) for status in statuses}


def problem_response(code: str) -> dict[str, Any]:
    """A response that is a problem, with this code as the example."""
    listed = CODES[code]
    meaning = f"{listed.meaning[0].upper()}{listed.meaning[1:]}."
    example = examples.problem(code, listed.http_status, meaning, retryable=listed.retryable)
    content = {"application/problem+json": {"schema": reference(Problem), "example": example}}
    return {"description": f"A problem; its `code` says which. `{code}`: {listed.meaning}.", "content": content}


def example_response(example: Any, description: str = "The result.") -> dict[int | str, dict[str, Any]]:
    """The response to what succeeds, beside its schema."""
    return {200: {"description": description, "content": {"application/json": {"example": example}}}}


def chat_documentation() -> dict[str, Any]:
    """Keyword arguments of the chat route."""
    multipart = {
        "type": "object",
        "required": ["request"],
        "properties": {
            "request": reference(ChatRequest),
            "image": {
                "type": "array",
                "items": _FILE,
                "description": "Image files; they belong to the last message.",
            },
        },
        "additionalProperties": False,
    }
    form = {"schema": multipart, "encoding": {"request": {"contentType": "application/json"}}}
    return {
        "responses": {
            **problem_responses(*_PROBLEMS),
            **_streamed(examples.CHAT_RESPONSE, ChatCompletionChunk),
        },
        "openapi_extra": _body(ChatRequest, examples.CHAT, {"multipart/form-data": form}),
    }


def answer_documentation() -> dict[str, Any]:
    """Keyword arguments of the answer's route."""
    files = {"image": {"type": "array", "items": _FILE, "description": "Image files; tools look at the last one."}}
    form = {"multipart/form-data": _form(AnswerOptions, files)}
    return {
        "responses": {**problem_responses(*_PROBLEMS), **_drawn(examples.ANSWER_RESPONSE)},
        "openapi_extra": _body(AnswerRequest, examples.ANSWER, form),
    }


def detect_documentation() -> dict[str, Any]:
    """Keyword arguments of the detection route."""
    return _fast_path(DetectOptions, DetectRequest, examples.DETECT, examples.DETECT_RESPONSE)


def segment_documentation() -> dict[str, Any]:
    """Keyword arguments of the segmentation route."""
    return _fast_path(SegmentOptions, SegmentRequest, examples.SEGMENT, examples.SEGMENT_RESPONSE)


def pose_documentation() -> dict[str, Any]:
    """Keyword arguments of the pose route."""
    return _fast_path(PoseOptions, PoseRequest, examples.POSE, examples.POSE_RESPONSE)


def generation_documentation() -> dict[str, Any]:
    """Keyword arguments of the drawing route."""
    return {"responses": _drawing_responses(), "openapi_extra": _body(GenerationRequest, examples.GENERATION, {})}


def edit_documentation() -> dict[str, Any]:
    """Keyword arguments of the editing route."""
    # Nested fields are called as OpenAI's clients call them.
    fields = _form(GenerationOptions, {"image": _FILE, "mask": _FILE}, required=("image",), flat="superlink")
    form = {"multipart/form-data": fields}
    return {"responses": _drawing_responses(), "openapi_extra": _body(EditRequest, examples.EDIT, form)}


def upload_documentation() -> dict[str, Any]:
    """Keyword arguments of the upload's route."""
    content = {"multipart/form-data": _form(UploadFields, {"file": _FILE}, required=("file",))}
    identified = {"file_id": "$response.body#/id"}
    response: dict[str, Any] = example_response(examples.FILE, "The file, kept.")[200]
    response["links"] = {
        name: {"operationId": name, "parameters": identified} for name in ("get_file", "get_content", "delete_file")
    }
    return {
        "responses": {**problem_responses(400, 413, 503, 504), 200: response},
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
    }


def content_documentation() -> dict[str, Any]:
    """Keyword arguments of the route of a file's content."""
    content = {"application/octet-stream": {"schema": _FILE}}
    responses = {**unknown_file_responses(), 200: {"description": "The bytes of the file.", "content": content}}
    return {"responses": responses, "response_class": Response}


def unknown_file_responses() -> dict[int | str, dict[str, Any]]:
    """The problems of a route of one file."""
    return {404: problem_response("unknown_file"), 503: problem_response("storage_unavailable")}


def batch_documentation() -> dict[str, Any]:
    """Keyword arguments of the route that makes batches."""
    response: dict[str, Any] = example_response(examples.BATCH, "The batch, which is worked on from now on.")[200]
    identified = {"batch_id": "$response.body#/id"}
    response["links"] = {
        name: {"operationId": name, "parameters": identified} for name in ("get_batch", "cancel_batch")
    }
    return {
        "responses": {
            **problem_responses(400, 413, 504),
            **batches_responses("unknown_file"),
            200: response,
        },
        "openapi_extra": _body(BatchRequest, examples.BATCH_ORDER, {}),
    }


def batches_responses(unknown: str | None = None) -> dict[int | str, dict[str, Any]]:
    """The problems of the routes of batches; ``unknown``: the code of a 404."""
    not_found: dict[int | str, dict[str, Any]] = {404: problem_response(unknown)} if unknown is not None else {}
    return {
        **not_found,
        400: problem_response("invalid_request"),
        501: problem_response("batches_disabled"),
        503: problem_response("storage_unavailable"),
    }


def metrics_documentation() -> dict[str, Any]:
    """Keyword arguments of the route of the metrics."""
    content = {"text/plain": {"schema": {"type": "string"}, "example": examples.METRICS}}
    return {"responses": {200: {"description": "Prometheus' text format.", "content": content}}}


def reference(model: type[BaseModel]) -> dict[str, str]:
    """A schema that stands among the components."""
    return {"$ref": REFERENCE.format(model=model.__name__)}


def _fast_path(
    options: type[BaseModel], body: type[BaseModel], example: dict[str, Any], answered: dict[str, Any]
) -> dict[str, Any]:
    raw = {"schema": {**_FILE, "description": "The image itself; options go into the query string."}}
    content = {
        "multipart/form-data": _form(options, {"image": _FILE}, required=("image",)),
        **dict.fromkeys(MEDIA_TYPES, raw),
    }
    return {
        "responses": {**problem_responses(*_PROBLEMS), **_drawn(answered)},
        "openapi_extra": _body(body, example, content),
    }


def _drawn(example: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """A document or, where the client accepts that, a picture."""
    response: dict[str, Any] = example_response(example, "The result; with `Accept: image/…` as a picture.")[200]
    response["content"] |= {media_type: {"schema": _FILE} for media_type in MEDIA_TYPES}
    return {200: response}


def _drawing_responses() -> dict[int | str, dict[str, Any]]:
    return {
        **problem_responses(*_PROBLEMS),
        **_streamed(examples.IMAGES_RESPONSE, DrawingProgress, CompletedImage),
    }


def _streamed(example: dict[str, Any], *events: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """A document or, with ``stream: true``, events."""
    documents = {"anyOf": [*(reference(event) for event in events), reference(FailureEvent)]}
    event = {
        "type": "object",
        "required": ["data"],
        "properties": {
            "event": {"type": "string"},
            "data": {"anyOf": [{"type": "string", "const": "[DONE]"}, _json_text(documents)]},
        },
    }
    description = "The result; with `stream: true` as server-sent events, ended by `data: [DONE]`."
    response: dict[str, Any] = example_response(example, description)[200]
    response["content"]["text/event-stream"] = {"schema": event}
    return {200: response}


def _body(model: type[BaseModel], example: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": reference(model), "example": example}, **others}
    return {"requestBody": {"required": True, "content": content}}


def _form(
    model: type[BaseModel], files: dict[str, Any], required: Iterable[str] = (), flat: str | None = None
) -> dict[str, Any]:
    """``model`` as the fields of a form beside ``files``: what is nested in JSON is a text of JSON here.

    But the fields of the one called ``flat`` are fields of the form themselves, called ``flat[name]``.
    """
    schema = model.model_json_schema(ref_template=REFERENCE)
    definitions = schema.pop("$defs", {})
    properties = schema["properties"]
    if flat is not None:
        name = properties.pop(flat)["$ref"].rpartition("/")[2]
        properties |= {f"{flat}[{field}]": each for field, each in definitions[name]["properties"].items()}
    fields = {name: field for name, each in properties.items() if (field := _form_field(each)) is not None}
    nested = [name for name, field in fields.items() if "$ref" in field or "$ref" in field.get("items", ())]
    document = {
        "type": "object",
        "required": [*required, *schema.get("required", ())],
        "properties": {**files, **fields},
        "additionalProperties": False,
    }
    return {"schema": document, "encoding": {name: {"contentType": "application/json"} for name in nested}}


def _form_field(field: dict[str, Any]) -> dict[str, Any] | None:
    """``field`` of a JSON document in a form, where nothing is null; None where it could be nothing else."""
    if "enum" in field:
        values = [value for value in field["enum"] if value is not None]
        return {**field, "enum": values, "type": "string"} if values else None
    if "anyOf" not in field:
        return field
    kept = {key: value for key, value in field.items() if key in ("title", "description", "examples")}
    alternatives = [each for each in field["anyOf"] if each.get("type") != "null"]
    return {**alternatives[0], **kept} if len(alternatives) == 1 else {"anyOf": alternatives, **kept}


def _json_text(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}
