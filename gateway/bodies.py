"""Request bodies: JSON, multipart with image files, or the image itself."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TypeVar

import grpc
from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

from gateway.problems import invalid_request
from gateway.whole_numbers import with_whole_numbers
from superlink.errors import SuperlinkError, invalid_argument
from superlink.profile import GatewaySettings

TIMEOUT_HEADER = "x-request-timeout-s"
MAX_FORM_FIELDS = 512
# More are not even read; how many a request may have is for the route to say.
MAX_FORM_FILES = 64

Schema = TypeVar("Schema", bound=BaseModel)


@dataclass(frozen=True)
class Form:
    """A multipart body: text fields, which may repeat, and the contents of its files in order."""

    fields: dict[str, list[str]]
    files: list[bytes]
    # The fields that the files came in, in the same order.
    file_fields: list[str]

    def files_of(self, *fields: str) -> list[bytes]:
        """The files that came in any of ``fields``."""
        return [content for field, content in zip(self.file_fields, self.files, strict=True) if field in fields]


def media_type_of(request: Request) -> str:
    """The media type of the body, without parameters, lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def timeout_of(request: Request, longest_s: float) -> float:
    """The deadline of a request in seconds: what the client's header says, ``longest_s`` at most."""
    given = request.headers.get(TIMEOUT_HEADER)
    if given is None:
        return longest_s
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise invalid_argument("invalid_request", f"The header {TIMEOUT_HEADER} must be a positive number of seconds.")
    return min(seconds, longest_s)


def parse(schema: type[Schema], document: bytes | str) -> Schema:
    """``document`` as ``schema``. Raises SuperlinkError ``invalid_request`` naming the field."""
    try:
        given = from_json(document, allow_inf_nan=False)
    except ValueError as error:
        raise invalid_argument("invalid_request", f"The body is not valid JSON: {error}.") from error
    try:
        # Strict: a number that comes as a text is a mistake, and the description of the API says so, too.
        return schema.model_validate(with_whole_numbers(given), strict=True)
    except ValidationError as error:
        raise invalid_request(error) from error


async def read_body(request: Request, timeout_s: float) -> bytes:
    """The whole body. Raises SuperlinkError when it is too large or does not arrive in time."""
    try:
        async with asyncio.timeout(timeout_s):
            return await request.body()
    except TimeoutError as error:
        raise too_slow() from error


def body_again(body: bytes, receive: Receive) -> Receive:
    """``receive`` that begins with a body that has been read."""
    unread = True

    async def receive_again() -> Message:
        nonlocal unread
        if unread:
            unread = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return receive_again


async def read_form(request: Request, settings: GatewaySettings, max_files: int, timeout_s: float) -> Form:
    """A multipart body. Raises as ``read_body``, and SuperlinkError ``invalid_multipart`` or ``too_many_images``."""
    try:
        async with (
            asyncio.timeout(timeout_s),
            request.form(
                max_files=MAX_FORM_FILES, max_fields=MAX_FORM_FIELDS, max_part_size=settings.max_body_bytes
            ) as form,
        ):
            collected = await _collect(form)
    except HTTPException as error:
        raise invalid_argument("invalid_multipart", f"The multipart body cannot be read: {error.detail}") from error
    except TimeoutError as error:
        raise too_slow() from error
    if len(collected.files) > max_files:
        raise invalid_argument(
            "too_many_images", f"The form has {len(collected.files)} image files; the limit is {max_files}."
        )
    return collected


async def _collect(form: FormData) -> Form:
    fields: dict[str, list[str]] = {}
    files: list[bytes] = []
    file_fields: list[str] = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            files.append(await value.read())
            file_fields.append(name)
        else:
            fields.setdefault(name, []).append(value)
    return Form(fields, files, file_fields)


def too_slow() -> SuperlinkError:
    """The body did not arrive in time."""
    return SuperlinkError(
        "body_too_slow",
        "The request body did not arrive within the request's deadline.",
        status=grpc.StatusCode.DEADLINE_EXCEEDED,
        retryable=True,
    )
