"""The lines of an input file: cutting it into them, and what each asks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError
from pydantic_core import from_json

from superlink.batch_documents import ENDPOINTS, MAX_CUSTOM_ID_CHARACTERS
from superlink.errors import SuperlinkError, invalid_argument, invalid_fields

READ_BYTES = 1024 * 1024
# Of a line around the body of its request.
OVERHEAD_BYTES = 16 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class RawLine:
    """A line of the input file that is not blank."""

    # Its bytes, without the line end: from ``start`` up to ``end``.
    start: int
    end: int
    # None: longer than any line may be.
    content: bytes | None


class LineRequest(BaseModel):
    """What a line asks, in OpenAI's shape."""

    model_config = ConfigDict(strict=True, extra="forbid")

    custom_id: Annotated[str, StringConstraints(min_length=1, max_length=MAX_CUSTOM_ID_CHARACTERS)]
    method: Literal["POST"]
    url: str
    body: dict[str, Any]


def lines_of(file: BinaryIO, max_line_bytes: int, offset: int = 0) -> Iterator[RawLine]:
    """The lines of ``file``, which begins at ``offset`` of the input; no more than one of them is ever in memory."""
    held = bytearray()
    start, position, is_too_long = offset, offset, False
    while piece := file.read(READ_BYTES):
        *ends, rest = piece.split(b"\n")
        for part in ends:
            position += len(part)
            if not is_too_long:
                held += part
            yield from _line(held, start, position, is_too_long or len(held) > max_line_bytes)
            position += 1
            start, is_too_long = position, False
            held.clear()
        position += len(rest)
        if not is_too_long:
            held += rest
            if len(held) > max_line_bytes:
                is_too_long = True
                held.clear()
    yield from _line(held, start, position, is_too_long)


def custom_id_of(content: bytes) -> str | None:
    """The custom_id of a line, as far as it has one that can be one."""
    try:
        document = from_json(content)
    except ValueError:
        return None
    custom_id = document.get("custom_id") if isinstance(document, dict) else None
    if isinstance(custom_id, str) and 1 <= len(custom_id) <= MAX_CUSTOM_ID_CHARACTERS and _is_text(custom_id):
        return custom_id
    return None


def read_request(content: bytes, endpoint: str) -> LineRequest:
    """What a line asks.

    Raises SuperlinkError ``invalid_batch_line``, ``wrong_endpoint`` or ``unsupported_parameter``.
    """
    try:
        document = from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise _invalid(f"It is not valid JSON: {error}.") from error
    if not isinstance(document, dict):
        raise _invalid("It is no JSON object.")
    try:
        request = LineRequest.model_validate(document)
    except ValidationError as error:
        raise _invalid(invalid_fields(error.errors()).message) from error
    if not _is_text(request.custom_id):
        raise _invalid("Its custom_id holds half a character.")
    if request.url != endpoint:
        known = "" if request.url in ENDPOINTS else f" No batch asks {request.url[:100]!r}."
        raise invalid_argument("wrong_endpoint", f"The lines of this batch ask {endpoint}.{known}")
    if request.body.get("stream"):
        raise invalid_argument("unsupported_parameter", "Answers of a batch are not streamed. Leave stream out.")
    return request


def body_of(request: LineRequest) -> bytes:
    """The body to send."""
    return json.dumps(request.body, separators=(",", ":")).encode()


def _line(held: bytearray, start: int, end: int, is_too_long: bool) -> Iterator[RawLine]:
    if is_too_long:
        yield RawLine(start, end, None)
        return
    content = bytes(held)
    if start == 0:
        content = content.removeprefix(_BYTE_ORDER_MARK)
    if content.strip():
        yield RawLine(start, end, content)


def _is_text(value: str) -> bool:
    """Whether it can be written as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _invalid(reason: str) -> SuperlinkError:
    return invalid_argument(
        "invalid_batch_line",
        f'{reason} A line reads {{"custom_id": "…", "method": "POST", "url": "/v1/…", "body": {{…}}}}.',
    )
