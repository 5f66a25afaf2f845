"""What gRPC's core has to say does not end up between the JSON lines of a process's log."""

import asyncio
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

SETTINGS, GOAWAY, ENHANCE_YOUR_CALM = 4, 7, 11


def frame(kind: int, payload: bytes) -> bytes:
    """An HTTP/2 frame of stream 0."""
    return struct.pack(">I", len(payload))[1:] + bytes((kind, 0)) + struct.pack(">I", 0) + payload


async def complain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that wants no more pings; the core's remark on that is an error of its own."""
    await reader.read(24)
    complaint = struct.pack(">II", 0, ENHANCE_YOUR_CALM) + b"too_many_pings"
    writer.write(frame(SETTINGS, b"") + frame(GOAWAY, complaint))
    await writer.drain()
    writer.close()


@pytest.mark.parametrize(("verbosity", "is_json"), [(None, True), ("INFO", False)])
async def test_every_line_is_json_unless_somebody_asks_the_core_to_speak(
    tmp_path: Path, verbosity: str | None, is_json: bool
) -> None:
    complainer = await asyncio.start_server(complain, "127.0.0.1", 0)
    host, port = complainer.sockets[0].getsockname()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        own_port = probe.getsockname()[1]
    worker = {"address": f"{host}:{port}", "weights": "none"}
    orchestrator = {"address": f"127.0.0.1:{own_port}"}
    profile = tmp_path / "profile.yaml"
    profile.write_text(
        yaml.safe_dump({"name": "odd", "mllm": worker, "decoders": {}, "orchestrator": orchestrator}), encoding="utf-8"
    )
    environment = {key: value for key, value in os.environ.items() if key != "GRPC_VERBOSITY"}
    if verbosity is not None:
        environment["GRPC_VERBOSITY"] = verbosity
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "orchestrator", "--profile", str(profile)),
        stderr=asyncio.subprocess.PIPE,
        env=environment,
        cwd=Path(__file__).parents[2],
    )
    lines: list[str] = []

    async def read_until(condition: Callable[[str], bool]) -> None:
        assert process.stderr is not None
        while line := (await process.stderr.readline()).decode():
            lines.append(line)
            if condition(line):
                return

    async with complainer:
        # It probes its workers, and after two probes it says so.
        await asyncio.wait_for(read_until(lambda line: "replica gets no calls" in line), 20)
    process.send_signal(signal.SIGTERM)
    await asyncio.wait_for(read_until(lambda line: False), 20)
    assert await process.wait() == 0

    if is_json:
        assert all({"time", "level", "service", "message"} <= json.loads(line).keys() for line in lines)
    else:
        assert any("too_many_pings" in line for line in lines)
