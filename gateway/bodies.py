"""Request bodies: JSON, multipart with image files, or the image itself."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TypeVar

import grpc
from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.types import Message, Receive

from gateway.problems import invalid_request
from superlink.errors import SuperlinkError, invalid_argument
from superlink.profile import GatewaySettings

TIMEOUT_HEADER = "x-request-timeout-s"
MAX_FORM_FIELDS = 512

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


def timeout_of(request: Request, settings: GatewaySettings) -> float:
    """The deadline of a request in seconds: what the client's header says, the profile's value at most."""
    given = request.headers.get(TIMEOUT_HEADER)
    if given is None:
        return settings.request_timeout_s
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise invalid_argument("invalid_request", f"The header {TIMEOUT_HEADER} must be a positive number of seconds.")
    return min(seconds, settings.request_timeout_s)


def parse(schema: type[Schema], document: bytes | str) -> Schema:
    """``document`` as ``schema``. Raises SuperlinkError ``invalid_request`` naming the field."""
    try:
        return schema.model_validate_json(document)
    except ValidationError as error:
        raise invalid_request(error) from error


async def read_body(request: Request, timeout_s: float) -> bytes:
    """The whole body. Raises SuperlinkError when it is too large or does not arrive in time."""
    try:
        async with asyncio.timeout(timeout_s):
            return await request.body()
    except TimeoutError as error:
        raise _too_slow() from error


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
    """A multipart body. Raises as ``read_body``; the framework answers a malformed one with status 400."""
    try:
        async with (
            asyncio.timeout(timeout_s),
            request.form(
                max_files=max_files, max_fields=MAX_FORM_FIELDS, max_part_size=settings.max_body_bytes
            ) as form,
        ):
            return await _collect(form)
    except TimeoutError as error:
        raise _too_slow() from error


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


def _too_slow() -> SuperlinkError:
    return SuperlinkError(
        "body_too_slow",
        "The request body did not arrive within the request's deadline.",
        status=grpc.StatusCode.DEADLINE_EXCEEDED,
        retryable=True,
    )
