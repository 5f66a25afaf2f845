"""Structured logs: one JSON object a line on standard error, with the ids of the request and the trace it works for.

Never log prompts, answers or image content; names, sizes, counts and times are what these lines are for.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime

from superlink.telemetry import current_trace_id

# The request that the current task works for; set it at the server's edge.
current_request_id: ContextVar[str] = ContextVar("current_request_id", default="")

_LONGEST_MESSAGE = 500
_STANDARD_FIELDS = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """Time, level, service, logger, message, the record's ``extra`` fields and the traceback."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        entry: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := current_request_id.get():
            entry["request_id"] = request_id
        if trace_id := current_trace_id():
            entry["trace_id"] = trace_id
        entry.update({key: value for key, value in record.__dict__.items() if key not in _STANDARD_FIELDS})
        if record.exc_info and record.exc_info[1] is not None:
            entry["traceback"] = "".join(_traceback_of(record.exc_info[1]))
        return json.dumps(entry, ensure_ascii=False, default=str)


def _traceback_of(error: BaseException) -> Iterator[str]:
    """As Python writes it, with the first line of each message: below that libraries quote what they were given."""
    origin = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if origin is not None:
        yield from _traceback_of(origin)
        yield "\nThat led to:\n\n"
    yield "Traceback (most recent call last):\n"
    yield from traceback.format_tb(error.__traceback__)
    yield f"{type(error).__qualname__}: {_first_line(error)}\n"
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _traceback_of(each)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:_LONGEST_MESSAGE]


def configure_logs(service: str, level: str = "INFO") -> None:
    """Send every logger of this process through ``JsonFormatter`` to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(service))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
