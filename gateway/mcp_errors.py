"""Failures of the Model Context Protocol itself, with the problem document that every failure of this API has."""

from __future__ import annotations

import json
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

from gateway.problems import Problem
from superlink.errors import SuperlinkError, status_for_http

# JSON-RPC's own, for what is not even an error of it.
_INVALID_REQUEST = -32600
# Validators quote whole requests.
_MOST_CHARACTERS = 300


def with_problem(send: Send, request_id: str) -> Send:
    """``send`` for what the protocol's implementation answers: its errors get the problem document as their ``data``.

    Clients of the protocol read JSON-RPC errors, so these stay what they are.
    """
    start: Message | None = None
    received = bytearray()

    async def send_with_problem(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start" and message["status"] >= 400:
            start = message
            return
        if start is None:
            await send(message)
            return
        received.extend(message.get("body", b""))
        if message.get("more_body", False):
            return
        document = _with_data(bytes(received), start["status"], request_id)
        headers = MutableHeaders(scope=start)
        headers["content-type"], headers["content-length"] = "application/json", str(len(document))
        await send(start)
        await send({"type": "http.response.body", "body": document})

    return send_with_problem


def _with_data(body: bytes, http_status: int, request_id: str) -> bytes:
    answer = _error_of(body)
    if "data" in answer["error"]:
        # A tool's own word.
        return body
    told = str(answer["error"]["message"])
    detail = told.partition("\n")[0][:_MOST_CHARACTERS]
    error = SuperlinkError("protocol_error", detail, status=status_for_http(http_status), retryable=False)
    problem = Problem.from_error(error, request_id).model_copy(update={"status": http_status})
    answer["error"] |= {"message": detail, "data": problem.model_dump(exclude_none=True)}
    return json.dumps(answer).encode()


def _error_of(body: bytes) -> dict[str, Any]:
    """The JSON-RPC error in ``body``; one with its text where it is none."""
    try:
        answer = json.loads(body)
        if "message" in answer["error"]:
            return dict(answer)
    except (ValueError, TypeError, KeyError):
        pass
    text = body.decode(errors="replace") or "The request is none of the protocol."
    return {"jsonrpc": "2.0", "id": None, "error": {"code": _INVALID_REQUEST, "message": text}}
