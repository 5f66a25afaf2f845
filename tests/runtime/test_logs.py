import json
import logging

import pytest
from opentelemetry.trace import NonRecordingSpan, SpanContext, use_span
from pydantic import BaseModel, ValidationError

from superlink.logs import JsonFormatter, current_request_id


def line(**extra: object) -> dict[str, object]:
    record = logging.makeLogRecord({"name": "a.b", "levelname": "INFO", "msg": "took %d s", "args": (3,), **extra})
    text = JsonFormatter("detection").format(record)
    assert "\n" not in text
    return json.loads(text)


def test_lines_are_json_with_extra_fields() -> None:
    entry = line(batch_size=4, text="图像")
    assert entry["message"] == "took 3 s"
    assert (entry["service"], entry["level"], entry["logger"]) == ("detection", "info", "a.b")
    assert (entry["batch_size"], entry["text"]) == (4, "图像")
    assert "request_id" not in entry
    assert str(entry["time"]).endswith("+00:00")


def test_request_id_of_the_task_is_on_every_line() -> None:
    token = current_request_id.set("r-9")
    assert line()["request_id"] == "r-9"
    current_request_id.reset(token)


def test_traceback_stays_on_the_line() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        1 // 0  # noqa: B018
    entry = line(exc_info=(caught.type, caught.value, caught.tb))
    assert "ZeroDivisionError" in str(entry["traceback"])


class Prompt(BaseModel):
    words: int


def fail_on(given: str) -> None:
    try:
        Prompt.model_validate({"words": given})
    except ValidationError as error:
        raise ExceptionGroup("of two", [ValueError(f"first\n{given}")]) from error


def test_what_libraries_quote_below_the_first_line_of_a_message_is_not_logged() -> None:
    given = "".join(["quetzal", "coatlus"])
    with pytest.raises(ExceptionGroup) as caught:
        fail_on(given)
    assert given in str(caught.value.__cause__)
    text = str(line(exc_info=(caught.type, caught.value, caught.tb))["traceback"])
    assert "ValidationError: 1 validation error for Prompt" in text
    assert "ExceptionGroup: of two" in text
    assert "ValueError: first" in text
    assert "in fail_on" in text
    assert given not in text


def test_the_trace_of_the_task_is_on_every_line() -> None:
    context = SpanContext(0xABC, 0x1, is_remote=True)
    with use_span(NonRecordingSpan(context)):
        assert line()["trace_id"] == f"{0xABC:032x}"
    assert "trace_id" not in line()
