"""The least HTTP client that can tell what became of a request: load must cost little beside what it loads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Reply:
    """What a server answered."""

    status: int
    # Names in lower case.
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class ConnectionBroken(Exception):
    """There was no connection, or it ended before the reply was whole."""


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Connections:
    """Connections to one server, kept for the next request."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._host, self._port = address.hostname or "", address.port or 80
        self._idle: list[Connection] = []

    async def send(self, request: bytes) -> Reply:
        """The reply to a request that ``encode`` made. Raises ConnectionBroken."""
        try:
            reader, writer = await self._connect()
            try:
                writer.write(request)
                reply = await _read(reader)
            except BaseException:
                writer.close()
                raise
        except (OSError, EOFError, asyncio.LimitOverrunError, ValueError) as error:
            raise ConnectionBroken(f"{type(error).__name__}: {error}") from error
        if reply.headers.get("connection") == "close":
            writer.close()
        else:
            self._idle.append((reader, writer))
        return reply

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()

    async def _connect(self) -> Connection:
        while self._idle:
            reader, writer = self._idle.pop()
            # A server that ended has closed it.
            if not (reader.at_eof() or writer.is_closing()):
                return reader, writer
        return await asyncio.open_connection(self._host, self._port)


def encode(method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
    """A request as ``Connections.send`` takes it."""
    fields = {"host": "chaos", **headers, "content-length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("ascii") + body


async def _read(reader: asyncio.StreamReader) -> Reply:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readuntil(b"\r\n")
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Reply(int(first.split(" ")[1]), headers, body)
