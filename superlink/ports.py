"""Which ports a deployment needs, whether they are free, and how to move them."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

from superlink.profile import OrchestratorSettings, Profile, WorkerSettings


@dataclass(frozen=True)
class PortUse:
    """One port of a profile: who listens there and which key of the profile says so."""

    process: str
    # Dotted key: "gateway.port", "mllm.address", "decoders.detection.metrics_port".
    key: str
    host: str
    port: int

    @property
    def purpose(self) -> str:
        """What the process answers there."""
        return {"port": "HTTP", "address": "gRPC", "metrics_port": "metrics"}[self.key.rpartition(".")[2]]


def ports_of(profile: Profile) -> tuple[PortUse, ...]:
    """Every port that the processes of ``profile`` bind, metrics included."""
    uses = [PortUse("gateway", "gateway.port", profile.gateway.host, profile.gateway.port)]
    servers: list[tuple[str, str, OrchestratorSettings | WorkerSettings]] = [
        ("orchestrator", "orchestrator", profile.orchestrator),
        ("mllm", "mllm", profile.mllm),
        *((name, f"decoders.{name}", settings) for name, settings in profile.decoders.items()),
    ]
    for process, key, settings in servers:
        host, port = split_address(settings.address)
        uses.append(PortUse(process, f"{key}.address", host, port))
        if settings.metrics_port:
            uses.append(PortUse(process, f"{key}.metrics_port", host, settings.metrics_port))
    if profile.batches.enabled and profile.batches.metrics_port:
        uses.append(PortUse("batches", "batches.metrics_port", profile.gateway.host, profile.batches.metrics_port))
    return tuple(uses)


def split_address(address: str) -> tuple[str, int]:
    """``"127.0.0.1:50051"`` as host and port."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen on ``host:port`` now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As servers do it: a connection that is still closing does not hold the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def ports_in_use(profile: Profile) -> tuple[PortUse, ...]:
    """The ports of ``profile`` that somebody else holds."""
    return tuple(use for use in ports_of(profile) if not is_free(use.host, use.port))


def explain_ports_in_use(uses: Iterable[PortUse]) -> str:
    """One line a port, who wanted it and which setting moves it, and what to do."""
    lines = [
        f"Port {use.port} on {use.host} is in use; {use.process} wants it for its {use.purpose} "
        f"(to move it: --set {moved_setting(use)})."
        for use in uses
    ]
    remedy = "See with `superlink status` whether a stack runs already; else stop what listens there, move the ports, "
    return "\n".join([*lines, remedy + "or take any free ones: superlink up --free-ports"])


def moved_setting(use: PortUse) -> str:
    """An example of a setting that moves ``use`` out of the way: ``mllm.address=127.0.0.1:51051``."""
    port = use.port + 1000 if use.port + 1000 <= 65535 else use.port - 1000
    return f"{use.key}={use.host}:{port}" if use.key.endswith(".address") else f"{use.key}={port}"


def free_port_overrides(profile: Profile) -> dict[str, object]:
    """Overrides that move every port of ``profile`` to one that is free on its host now."""
    overrides: dict[str, object] = {}
    with ExitStack() as held:
        # All are held open until the last one is found, so that no port is handed out twice.
        for use in ports_of(profile):
            probe = held.enter_context(socket.socket(socket.AF_INET6 if ":" in use.host else socket.AF_INET))
            probe.bind((use.host, 0))
            port = probe.getsockname()[1]
            overrides[use.key] = f"{use.host}:{port}" if use.key.endswith(".address") else port
    return overrides
