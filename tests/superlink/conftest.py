"""A small real HTTP server that answers in the gateway's own schema, and whatever the SDK sent to it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

import pytest


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: bytes
    # When it arrived, by ``time.monotonic``.
    at: float = field(default_factory=time.monotonic)

    @property
    def json(self) -> dict:
        return json.loads(self.body)


@dataclass
class Reply:
    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    # Then says nothing more until the client leaves: with no word before, or after the body.
    silent_after: Literal["request", "body"] | None = None


@dataclass
class ScriptedGateway:
    """Gives its replies in order, the last one again and again; or decides by what it is asked."""

    url: str
    replies: list[Reply] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    decide: Callable[[Received], Reply] | None = None
    # Something was received.
    asked: threading.Event = field(default_factory=threading.Event)
    # A client has closed its connection during a silence.
    left: threading.Event = field(default_factory=threading.Event)

    def answer(self, *replies: Reply) -> None:
        self.replies[:] = replies

    def reply_to(self, received: Received) -> Reply:
        if self.decide is not None:
            return self.decide(received)
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]


@pytest.fixture
def gateway() -> Iterator[ScriptedGateway]:
    with scripted_gateway() as scripted:
        yield scripted


@contextmanager
def scripted_gateway(port: int = 0) -> Iterator[ScriptedGateway]:
    class Handler(BaseHTTPRequestHandler):
        def handle_request(self) -> None:
            length = int(self.headers.get("content-length", 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            received = Received(self.path, headers, self.rfile.read(length))
            scripted.received.append(received)
            scripted.asked.set()
            reply = scripted.reply_to(received)
            if reply.silent_after == "request":
                self.wait_for_the_end()
                return
            length_header = {} if reply.silent_after else {"content-length": str(len(reply.body))}
            self.send_response(reply.status)
            for name, value in {"x-request-id": "r-1", **length_header, **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)
            if reply.silent_after == "body":
                self.wait_for_the_end()

        def wait_for_the_end(self) -> None:
            self.connection.settimeout(10)
            with suppress(ConnectionResetError):
                if self.connection.recv(1):
                    return
            scripted.left.set()

        do_GET: Callable[..., None] = handle_request
        do_POST: Callable[..., None] = handle_request

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    scripted = ScriptedGateway(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield scripted
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
