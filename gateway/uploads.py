"""A file that is stored while it arrives: no more than a piece of it is ever in memory, and none on another disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi import Request
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from gateway.storage_threads import StorageThreads
from superlink.artifacts import ArtifactWriter
from superlink.errors import SuperlinkError, invalid_argument

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

# Each takes the way through another thread.
WRITE_BYTES = 1024 * 1024
MAX_FIELDS = 16
MAX_FIELD_BYTES = 1024
# Of the multipart body around the file.
OVERHEAD_BYTES = 64 * 1024


@dataclass
class UploadForm:
    """What came with a file."""

    file_name: str
    # Text fields by name.
    fields: dict[str, str]


async def receive_upload(request: Request, writer: ArtifactWriter, threads: StorageThreads) -> UploadForm:
    """Write the one file of a multipart body to ``writer``, as it arrives, in ``threads``, without committing it.

    Raises SuperlinkError ``invalid_multipart`` or ``invalid_request``, and what ``ArtifactWriter.write`` raises.
    """
    parts = _Parts()
    _, options = parse_options_header(request.headers.get("content-type"))
    try:
        if b"boundary" not in options:
            raise _unreadable("Its media type names no boundary.")
        parser = MultipartParser(options[b"boundary"], parts.callbacks())
        async for piece in request.stream():
            parser.write(piece)
            if len(parts.unwritten) >= WRITE_BYTES:
                await threads.run(writer.write, parts.take_unwritten())
    except FormParserError as error:
        raise _unreadable(str(error)) from error
    if not parts.has_ended:
        raise _unreadable("It ends early.")
    if parts.file_name is None:
        raise invalid_argument("invalid_request", "A multipart body needs one file in the field 'file'.")
    await threads.run(writer.write, parts.take_unwritten())
    return UploadForm(parts.file_name, {name: _text(value) for name, value in parts.fields.items()})


@dataclass
class _Parts:
    """Follows the parser through the parts of a body."""

    file_name: str | None = None
    unwritten: bytearray = field(default_factory=bytearray)
    fields: dict[str, bytearray] = field(default_factory=dict)
    has_ended: bool = False
    # Of the part that is being read.
    _header: bytearray = field(default_factory=bytearray)
    _value: bytearray = field(default_factory=bytearray)
    _disposition: bytes = b""
    _target: bytearray = field(default_factory=bytearray)

    def callbacks(self) -> MultipartCallbacks:
        """For ``MultipartParser``."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_header,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_end": self._end,
        }

    def take_unwritten(self) -> bytes:
        """The pieces of the file that have arrived since the last time."""
        taken = bytes(self.unwritten)
        # In place: the file's part goes on with it.
        self.unwritten.clear()
        return taken

    def _begin(self) -> None:
        self._disposition = b""

    def _add_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise _unreadable("A part has no name.")
        name = _text(options[b"name"])
        if b"filename" in options:
            if self.file_name is not None or name != "file":
                raise invalid_argument("invalid_request", "An upload has one file, in the field 'file'.")
            self.file_name = _text(options[b"filename"])
            self._target = self.unwritten
            return
        if name in self.fields or len(self.fields) == MAX_FIELDS:
            raise invalid_argument("invalid_request", f"The field {name[:100]!r} is one too many.")
        self._target = self.fields[name] = bytearray()

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._target += data[start:end]
        if self._target is not self.unwritten and len(self._target) > MAX_FIELD_BYTES:
            raise invalid_argument("invalid_request", f"A text field has more than {MAX_FIELD_BYTES:,} bytes.")

    def _end(self) -> None:
        self.has_ended = True


def _text(value: bytes | bytearray) -> str:
    return value.decode("utf-8", errors="replace")


def _unreadable(reason: str) -> SuperlinkError:
    return invalid_argument("invalid_multipart", f"The multipart body cannot be read: {reason}")
