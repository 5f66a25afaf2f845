"""Rows of the results, in OpenAI's shape: what was answered, or why nothing was.

A row is bytes of JSON without a line end. In the pieces that shards are made of, one letter before it says which file
of the results it belongs to.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from superlink.errors import SuperlinkError

OUTPUT, ERROR = b"O", b"E"
SERVICE = "batches"


def answer_row(batch_id: str, line: int, custom_id: str, status: int, request_id: str, body: bytes) -> bytes:
    """A line that was answered. ``body`` is JSON as the gateway sent it, which is not read again."""
    head = f'{{"id":{_text(_row_id(batch_id, line))},"custom_id":{_text(custom_id)},"response":'
    said = f'{{"status_code":{status},"request_id":{_text(request_id)},"body":'
    return b"".join((OUTPUT, head.encode(), said.encode(), _on_one_line(body), b'},"error":null}\n'))


def refusal_row(
    batch_id: str, line: int, custom_id: str, status: int, request_id: str, problem: dict[str, Any]
) -> bytes:
    """A line that the gateway answered with a problem."""
    response = {"status_code": status, "request_id": request_id, "body": problem}
    return _error_row(batch_id, line, custom_id, response, problem)


def error_row(batch_id: str, line: int, custom_id: str | None, error: SuperlinkError) -> bytes:
    """A line that was not sent, or not answered."""
    return _error_row(batch_id, line, custom_id, None, problem_of(error, request_id_of(batch_id, line)))


def problem_of(error: SuperlinkError, request_id: str) -> dict[str, Any]:
    """The problem document of ``error``, with the members that the gateway's have."""
    return {
        "type": f"urn:superlink:problem:{error.code}",
        "title": error.code.replace("_", " ").capitalize(),
        "status": error.http_status,
        "detail": error.message,
        "code": error.code,
        "message": error.message,
        "service": error.service or SERVICE,
        "hop": error.hop or f"client>{SERVICE}",
        "request_id": request_id,
        "retryable": error.retryable,
    }


def request_id_of(batch_id: str, line: int) -> str:
    """Under which every process logs the request of a line."""
    return f"{batch_id}-{line}"


def _error_row(
    batch_id: str, line: int, custom_id: str | None, response: dict[str, Any] | None, problem: dict[str, Any]
) -> bytes:
    row = {
        "id": _row_id(batch_id, line),
        "custom_id": custom_id,
        "response": response,
        # Which line of the input it was; those that cannot be read have no other name.
        "error": {**problem, "line": line},
    }
    return ERROR + json.dumps(row, separators=(",", ":")).encode() + b"\n"


def _row_id(batch_id: str, line: int) -> str:
    """Always the same for a line."""
    return f"batch_req_{hashlib.sha256(f'{batch_id}:{line}'.encode()).hexdigest()[:24]}"


def _text(value: str) -> str:
    return json.dumps(value)


def _on_one_line(body: bytes) -> bytes:
    if b"\n" not in body and b"\r" not in body:
        return body
    return json.dumps(json.loads(body), separators=(",", ":")).encode()
