"""A web server on a loopback address of its own that can be as hostile as it likes."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

Writer = asyncio.StreamWriter
Reply = bytes | Callable[[Writer], Awaitable[None]]


@dataclass
class ImageServer:
    host: str
    port: int = 0
    # By path.
    replies: dict[str, Reply] = field(default_factory=dict)
    # Request lines and headers as they came.
    received: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def handle(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            self.received.append(head)
            reply = self.replies.get(head.split(" ")[1], answer(b"", status="404 Not Found"))
            if isinstance(reply, bytes):
                writer.write(reply)
                await writer.drain()
            else:
                await reply(writer)
        writer.close()


def answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def redirect(location: str, status: str = "302 Found") -> bytes:
    return answer(b"", f"Location: {location}", status=status)


@contextlib.asynccontextmanager
async def image_server(
    host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[ImageServer]:
    running = ImageServer(host)
    server = await asyncio.start_server(running.handle, host, port, ssl=tls)
    running.port = server.sockets[0].getsockname()[1]
    yield running
    server.close()
