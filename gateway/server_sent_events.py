"""Server-sent events as OpenAI's clients read them."""

from __future__ import annotations

from gateway.problems import FailureEvent, Problem

DONE = b"data: [DONE]\n\n"


def server_sent_event(document: str, name: str = "") -> bytes:
    """One event that carries a JSON ``document``, with a name where the API has named events."""
    header = f"event: {name}\n" if name else ""
    return f"{header}data: {document}\n\n".encode()


def failure_events(problem: Problem) -> bytes:
    """What ends a stream that fails; OpenAI's clients raise it."""
    return server_sent_event(FailureEvent(error=problem).model_dump_json(exclude_none=True)) + DONE
