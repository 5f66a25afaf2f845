"""Server-sent events as OpenAI's clients read them."""

from __future__ import annotations

import json
from typing import Any

from gateway.problems import Problem

DONE = b"data: [DONE]\n\n"


def server_sent_event(document: str, name: str = "") -> bytes:
    """One event that carries a JSON ``document``, with a name where the API has named events."""
    header = f"event: {name}\n" if name else ""
    return f"{header}data: {document}\n\n".encode()


def failure_events(problem: Problem) -> bytes:
    """What ends a stream that fails; OpenAI's clients raise it. ``message`` is theirs, the rest is the document."""
    fields: dict[str, Any] = {"message": problem.detail, **problem.model_dump(exclude_none=True)}
    return server_sent_event(json.dumps({"error": fields}, ensure_ascii=False)) + DONE
