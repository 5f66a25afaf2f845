"""What comes back from the gateway, whole or as server-sent events, as typed values; no connection in sight."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

import httpx

from superlink.client_errors import ConnectionLost, InvalidResponse
from superlink.connection_settings import ConnectionSettings
from superlink.rest import Call, failure_of_event, readiness_of, request_id_of
from superlink.results import Readiness

Parsed = TypeVar("Parsed")
Event = TypeVar("Event")
AssembledEvent = TypeVar("AssembledEvent", covariant=True)

EVENT_STREAM = "text/event-stream"


class Assembler(Protocol[AssembledEvent]):
    """What the documents of one kind of stream say."""

    def add(self, document: Mapping[str, Any]) -> Sequence[AssembledEvent]:
        """The next document."""

    def end(self) -> AssembledEvent:
        """The stream is complete."""


Parse = Callable[[Call, httpx.Response], Parsed]
# Made of the call and the request id.
MakeAssembler = Callable[[Call, str], Assembler[Event]]


def read_response(parse: Parse[Parsed], call: Call, response: httpx.Response, settings: ConnectionSettings) -> Parsed:
    """A successful response whose body was read. Raises InvalidResponse where it is none of a gateway."""
    with _shaped(settings, request_id_of(response)):
        return parse(call, response)


def read_readiness(response: httpx.Response, settings: ConnectionSettings) -> Readiness:
    """What the gateway says of itself. Raises InvalidResponse where another server says that all is well."""
    with _shaped(settings, request_id_of(response)):
        return readiness_of(response)


class EventReader(Generic[Event]):
    """Turns the bytes of one stream into events."""

    def __init__(
        self,
        make_assembler: MakeAssembler[Event],
        call: Call,
        response: httpx.Response,
        settings: ConnectionSettings,
    ) -> None:
        """Raises InvalidResponse where ``response`` is no stream of events."""
        self._request_id = request_id_of(response)
        self._assembler = make_assembler(call, self._request_id)
        self._settings = settings
        self._received = b""
        self._is_complete = False
        media_type = response.headers.get("content-type", "no media type")
        if not media_type.startswith(EVENT_STREAM):
            raise InvalidResponse(settings.url, f"{media_type} instead of {EVENT_STREAM}", self._request_id)

    def feed(self, received: bytes) -> Iterator[Event]:
        """Take more of the stream, cut anywhere.

        Raises RequestFailed where the stream reports a failure and InvalidResponse where it is none of a gateway.
        """
        # Only "\n" ends a line here; str.splitlines also cuts at separators that JSON texts may hold.
        *lines, self._received = (self._received + received).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield from self._read(line.removeprefix(b"data:").strip())

    def finish(self) -> None:
        """The connection has ended. Raises ConnectionLost where the stream had not."""
        if not self._is_complete:
            raise ConnectionLost(self._settings.url, "it was closed")

    def _read(self, data: bytes) -> Sequence[Event]:
        with _shaped(self._settings, self._request_id):
            if data == b"[DONE]":
                self._is_complete = True
                return [self._assembler.end()]
            document = json.loads(data)
            if "error" in document:
                raise failure_of_event(document)
            return self._assembler.add(document)


@contextmanager
def _shaped(settings: ConnectionSettings, request_id: str) -> Iterator[None]:
    """Reading documents of another shape than expected raises InvalidResponse, whatever it stumbled over."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InvalidResponse(settings.url, f"{type(error).__name__}: {str(error)[:200]}", request_id) from error
