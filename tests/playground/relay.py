"""Stands between the browser and a gateway, and can break the connections in the middle."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

# Closing then resets the connection, as a machine on the way does that goes away.
_AT_ONCE = struct.pack("ii", 1, 0)


class Relay:
    """Passes bytes both ways."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._gateway = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def serve(self) -> None:
        """Until it is closed."""
        with suppress(OSError):
            while True:
                browser, _ = self._listener.accept()
                gateway = socket.create_connection(self._gateway)
                self._open += [browser, gateway]
                for one, other in ((browser, gateway), (gateway, browser)):
                    threading.Thread(target=_pass_on, args=(one, other), daemon=True).start()

    def break_all(self) -> None:
        """Reset every connection; new ones are served."""
        while self._open:
            end = self._open.pop()
            with suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
                # A thread that waits for bytes keeps the connection until it is told.
                end.shutdown(socket.SHUT_RD)
            end.close()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.break_all()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextmanager
def relay(url: str) -> Iterator[Relay]:
    running = Relay(url)
    serving = threading.Thread(target=running.serve)
    serving.start()
    try:
        yield running
    finally:
        running.close()
        serving.join(timeout=10)
