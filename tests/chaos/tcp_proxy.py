"""A TCP proxy that does to connections what networks do."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

_PIECE_BYTES = 64 * 1024
# How long a lost packet holds up what is behind it: Linux sends it again after 200 ms at the earliest.
_RETRANSMISSION_S = 0.2


@dataclass(frozen=True)
class Fault:
    """What happens to all that goes through."""

    # Every piece arrives so much later, each way.
    latency_s: float = 0.0
    # The share of pieces that are lost and sent again.
    loss: float = 0.0
    # Connections are reset, those there are and new ones.
    reset: bool = False
    # Nothing goes through, and nobody is told.
    blackhole: bool = False


WHOLE = Fault()


@dataclass
class TcpProxy:
    """Passes on what comes to ``address`` to ``target``, under the fault of the moment."""

    target: tuple[str, int]
    address: str = ""
    _fault: Fault = WHOLE
    # Set while pieces may go through.
    _open: asyncio.Event = field(default_factory=asyncio.Event)
    # Set when the fault of the moment ends.
    _over: asyncio.Event = field(default_factory=asyncio.Event)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _connections: set[asyncio.Task[None]] = field(default_factory=set)
    _random: random.Random = field(default_factory=lambda: random.Random(7))  # noqa: S311

    def set(self, fault: Fault) -> None:
        """From now on; what the fault before held up goes through at once."""
        self._fault = fault
        self._over.set()
        self._over = asyncio.Event()
        if fault.blackhole:
            self._open.clear()
        else:
            self._open.set()
        if fault.reset:
            for writer in tuple(self._writers):
                _reset(writer)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A client has connected."""
        task = asyncio.create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def close(self) -> None:
        """End all connections."""
        self.set(Fault(reset=True))
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, until either side closes."""
        if self._fault.reset:
            _reset(writer)
            return
        self._writers.add(writer)
        try:
            await self._open.wait()
            there, back = await asyncio.open_connection(*self.target)
        except OSError:
            self._writers.discard(writer)
            _reset(writer)
            return
        self._writers.add(back)
        ways = [asyncio.create_task(self._pass(reader, back)), asyncio.create_task(self._pass(there, writer))]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        for each in (writer, back):
            self._writers.discard(each)
            each.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction; pieces stay in order, and are on their way at the same time."""
        pieces: asyncio.Queue[tuple[float, asyncio.Event, bytes]] = asyncio.Queue(1024)

        async def receive() -> None:
            while piece := await reader.read(_PIECE_BYTES):
                lost = self._random.random() < self._fault.loss
                due = time.monotonic() + self._fault.latency_s + (_RETRANSMISSION_S if lost else 0.0)
                await pieces.put((due, self._over, piece))
            await pieces.put((0.0, self._over, b""))

        receiving = asyncio.create_task(receive())
        try:
            with suppress(OSError):
                while True:
                    due, over, piece = await pieces.get()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(over.wait(), max(0.0, due - time.monotonic()))
                    await self._open.wait()
                    if not piece:
                        return
                    writer.write(piece)
                    await writer.drain()
        finally:
            receiving.cancel()
            await asyncio.gather(receiving, return_exceptions=True)


@asynccontextmanager
async def proxy_to(address: str) -> AsyncIterator[TcpProxy]:
    """A proxy on a free port, whole at first, to ``host:port``."""
    host, _, port = address.rpartition(":")
    proxy = TcpProxy((host, int(port)))
    proxy.set(WHOLE)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    """RST in place of FIN."""
    connection = writer.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
