"""``python -m gateway`` in a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

_WORKER = {"address": "127.0.0.1:1", "weights": "none"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def alone(**settings: object) -> dict[str, Any]:
    """A profile with these settings of the gateway, and nothing behind it."""
    return {
        "name": "alone",
        "mllm": _WORKER,
        "decoders": {"detection": _WORKER},
        "orchestrator": {"address": "127.0.0.1:1"},
        "gateway": settings,
    }


def gateway_process(
    folder: Path, port: int, profile: dict[str, Any], stderr: int | None = subprocess.PIPE
) -> subprocess.Popen[str]:
    """It takes no settings from the environment of the tests."""
    file = folder / "profile.yaml"
    file.write_text(yaml.safe_dump(profile), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "SUPERLINK_REDIS_URL"}
    return subprocess.Popen(
        [sys.executable, "-m", "gateway", "--profile", str(file), "--port", str(port)],
        stderr=stderr,
        text=True,
        env={**environment, "GRPC_VERBOSITY": "NONE"},
        cwd=Path(__file__).parents[2],
    )
