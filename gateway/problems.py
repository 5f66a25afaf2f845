"""Failures as HTTP sees them: problem documents (RFC 9457)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import grpc
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from superlink.errors import SuperlinkError, invalid_fields, status_for_http


class Problem(BaseModel):
    """A problem document: what failed, where, and whether trying again helps."""

    type: str = Field(description="URN of the kind of problem.", examples=["urn:superlink:problem:image_too_large"])
    title: str = Field(description="The code in words.", examples=["Image too large"])
    status: int = Field(description="The HTTP status.", examples=[413])
    detail: str = Field(description="What happened and what to do.")
    code: str = Field(description="Stable and machine-readable.", examples=["image_too_large"])
    service: str = Field(description="The process that failed.", examples=["gateway"])
    request_id: str = Field(description="The id under which every process logged the request.")
    retryable: bool = Field(description="Whether the same request may succeed later.")
    retry_after_ms: int | None = Field(default=None, description="When to try again, where there is advice.")

    @classmethod
    def from_error(cls, error: SuperlinkError, request_id: str) -> Problem:
        """``error`` as a document; a failure without a service is the gateway's own."""
        return cls(
            type=f"urn:superlink:problem:{error.code}",
            title=error.code.replace("_", " ").capitalize(),
            status=error.http_status,
            detail=error.message,
            code=error.code,
            service=error.service or "gateway",
            request_id=request_id or error.request_id,
            retryable=error.retryable,
            retry_after_ms=error.retry_after_ms or None,
        )


class ProblemResponse(JSONResponse):
    """A problem document as a response."""

    media_type = "application/problem+json"

    def __init__(self, problem: Problem, extensions: Mapping[str, Any] | None = None) -> None:
        """``extensions``: further members of the document."""
        headers = {}
        if problem.retry_after_ms:
            headers["retry-after"] = str(math.ceil(problem.retry_after_ms / 1000))
        elif problem.retryable and problem.status in (429, 503):
            headers["retry-after"] = "1"
        # OpenAI's clients show only what stands under ``message``.
        content = {**problem.model_dump(exclude_none=True), "message": problem.detail, **(extensions or {})}
        super().__init__(content, status_code=problem.status, headers=headers)


def invalid_request(error: ValidationError | RequestValidationError) -> SuperlinkError:
    """A request that does not fit its schema, told in one sentence a field."""
    return invalid_fields(error.errors())


def request_id_of(request: Request) -> str:
    """The id that ``RequestMiddleware`` gave the request."""
    return str(request.state.request_id)


def add_problem_handlers(application: FastAPI) -> None:
    """Answer every failure that a handler raises with a problem document."""
    application.add_exception_handler(SuperlinkError, _on_superlink_error)
    application.add_exception_handler(RequestValidationError, _on_validation_error)
    application.add_exception_handler(HTTPException, _on_http_exception)


async def _on_superlink_error(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, SuperlinkError)  # noqa: S101
    return ProblemResponse(Problem.from_error(error, request_id_of(request)))


async def _on_validation_error(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    return await _on_superlink_error(request, invalid_request(error))


async def _on_http_exception(request: Request, error: Exception) -> ProblemResponse:
    """What the framework itself refuses: unknown paths, wrong methods, broken multipart bodies."""
    assert isinstance(error, HTTPException)  # noqa: S101
    code = {404: "unknown_path", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    detail = {
        404: f"There is nothing at {request.url.path}. The paths are listed in /openapi.json.",
        405: f"{request.url.path} does not answer {request.method}.",
    }.get(error.status_code, str(error.detail))
    problem = Problem.from_error(
        SuperlinkError(code, detail, status=status_for_http(error.status_code)), request_id_of(request)
    )
    response = ProblemResponse(problem.model_copy(update={"status": error.status_code}))
    response.headers.update(error.headers or {})
    return response


def too_large(max_body_bytes: int) -> SuperlinkError:
    """The body exceeds the gateway's limit."""
    return SuperlinkError(
        "body_too_large",
        f"The request body is larger than {max_body_bytes:,} bytes. Send a smaller image.",
        status=grpc.StatusCode.INVALID_ARGUMENT,
    )
