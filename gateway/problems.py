"""Failures as HTTP sees them: problem documents (RFC 9457). The codes are listed in ``superlink/error_codes.py``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import grpc
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match, Route

from superlink.errors import SuperlinkError, invalid_fields, status_for_http
from superlink.telemetry import current_trace_id

# This process in errors; who asks it is a client.
SERVICE = "gateway"


class Problem(BaseModel):
    """A problem document: what failed, where, and whether trying again helps."""

    type: str = Field(description="URN of the kind of problem.", examples=["urn:superlink:problem:image_too_large"])
    title: str = Field(description="The code in words.", examples=["Image too large"])
    status: int = Field(description="The HTTP status.", examples=[413])
    detail: str = Field(description="What happened and what to do.")
    code: str = Field(description="Stable and machine-readable.", examples=["image_too_large"])
    message: str = Field(description="The same as `detail`, where OpenAI's clients look for it.")
    service: str = Field(description="The process that failed.", examples=["detection"])
    hop: str = Field(description="The call that failed, as `caller>callee`.", examples=["orchestrator>detection"])
    request_id: str = Field(description="The id under which every process logged the request.")
    trace_id: str | None = Field(default=None, description="The request's trace, where there is one.")
    retryable: bool = Field(description="Whether the same request may succeed later.")
    retry_after_ms: int | None = Field(default=None, description="When to try again, where there is advice.")

    @classmethod
    def from_error(cls, error: SuperlinkError, request_id: str) -> Problem:
        """``error`` as a document; a failure without a service is the gateway's own."""
        error.passed_on_by(SERVICE)
        return cls(
            type=f"urn:superlink:problem:{error.code}",
            title=error.code.replace("_", " ").capitalize(),
            status=error.http_status,
            detail=error.message,
            code=error.code,
            message=error.message,
            service=error.service,
            hop=error.hop or f"client>{SERVICE}",
            request_id=request_id or error.request_id,
            trace_id=current_trace_id() or None,
            retryable=error.retryable,
            retry_after_ms=error.retry_after_ms or None,
        )


class FailureEvent(BaseModel):
    """The event of a stream that says that it failed."""

    error: Problem


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
        content = {**problem.model_dump(exclude_none=True), **(extensions or {})}
        super().__init__(content, status_code=problem.status, headers=headers)


def invalid_request(error: ValidationError | RequestValidationError) -> SuperlinkError:
    """A request that does not fit its schema, told in one sentence a field."""
    return invalid_fields(error.errors())


def request_id_of(request: Request) -> str:
    """The id that ``RequestMiddleware`` gave the request."""
    return str(request.state.request_id)


def add_problem_handlers(application: FastAPI, routers: Iterable[APIRouter]) -> None:
    """Answer every failure that a handler of ``routers`` raises with a problem document."""
    routes = [*application.routes, *(route for router in routers for route in router.routes)]
    application.state.routes = [route for route in routes if isinstance(route, Route)]
    application.add_exception_handler(SuperlinkError, _on_superlink_error)
    application.add_exception_handler(RequestValidationError, _on_validation_error)
    application.add_exception_handler(HTTPException, _on_http_exception)


async def _on_superlink_error(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, SuperlinkError)  # noqa: S101
    # For ``LoadShedding``.
    request.state.failure = error
    return ProblemResponse(Problem.from_error(error, request_id_of(request)))


async def _on_validation_error(request: Request, error: Exception) -> ProblemResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    return await _on_superlink_error(request, invalid_request(error))


async def _on_http_exception(request: Request, error: Exception) -> ProblemResponse:
    """What the framework itself refuses: unknown paths and wrong methods."""
    assert isinstance(error, HTTPException)  # noqa: S101
    response = ProblemResponse(Problem.from_error(_refused_by_framework(request, error), request_id_of(request)))
    response.headers.update(error.headers or {})
    if error.status_code == 405:
        response.headers["allow"] = ", ".join(_methods_at(request))
    return response


def _methods_at(request: Request) -> list[str]:
    """What the path answers. The framework names the methods of its first route alone."""
    routes: Iterable[Route] = request.app.state.routes
    return sorted(
        {
            method
            for route in routes
            if route.matches(request.scope)[0] is not Match.NONE
            for method in route.methods or ()
        }
    )


def _refused_by_framework(request: Request, error: HTTPException) -> SuperlinkError:
    if error.status_code == 404:
        detail = f"There is nothing at {request.url.path}. The paths are listed in /openapi.json."
        return SuperlinkError("unknown_path", detail, status=grpc.StatusCode.NOT_FOUND)
    if error.status_code == 405:
        detail = f"{request.url.path} does not answer {request.method}."
        return SuperlinkError("method_not_allowed", detail, status=grpc.StatusCode.UNIMPLEMENTED)
    return SuperlinkError("bad_request", str(error.detail), status=status_for_http(error.status_code))


def too_large(max_body_bytes: int) -> SuperlinkError:
    """The body exceeds the gateway's limit."""
    return SuperlinkError(
        "body_too_large",
        f"The request body is larger than {max_body_bytes:,} bytes. Send less.",
        status=grpc.StatusCode.INVALID_ARGUMENT,
    )
