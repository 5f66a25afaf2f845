"""How the processes of a stack on this machine fare: what its supervision reports, and what its gateway says."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
from pydantic import BaseModel

from superlink.stack.processes import resident_bytes
from superlink.stack.state_folder import ProcessReport, StackReport, StateFolder

READY_TIMEOUT_S = 5.0
UNKNOWN = "the gateway does not say"


class ServiceReadiness(BaseModel):
    """A service as ``/readyz`` names it."""

    name: str
    ready: bool
    reason: str | None = None


class ProcessStatus(BaseModel):
    """One process."""

    name: str
    pid: int | None
    # running; draining: above its memory ceiling; restarting: waits for its next start; stopped.
    state: str
    # None: nobody can say.
    ready: bool | None
    # Why it is not ready; empty when it is.
    reason: str
    restarts: int
    # How it ended the last time; empty when it never did.
    last_end: str
    uptime_s: float | None
    # None where the system does not say.
    memory_bytes: int | None
    # 0: no ceiling.
    max_memory_bytes: int
    # host:port, or the path of a socket.
    address: str
    port: int | None
    # 0: none.
    metrics_port: int
    log: str


class StackStatus(BaseModel):
    """A stack, or a gateway whose processes are not known here: then there are none."""

    url: str
    # Whether all is well.
    ready: bool
    # starting, running or stopping.
    state: str | None = None
    profile: str | None = None
    # Of the process that supervises the others.
    pid: int | None = None
    uptime_s: float | None = None
    state_folder: str | None = None
    processes: list[ProcessStatus] = []
    # What the gateway needs besides these processes.
    services: list[ServiceReadiness] = []


def status_of_stack(report: StackReport, state: StateFolder) -> StackStatus:
    """How every process of a stack that runs here fares."""
    services = ask_gateway(report.url)
    said = {service.name: service for service in services or ()}
    processes = [_status_of_process(process, said, services is not None) for process in report.processes]
    others = [service for name, service in said.items() if name not in {process.name for process in processes}]
    well = report.state == "running" and all(process.ready for process in processes)
    return StackStatus(
        url=report.url,
        ready=well and all(service.ready for service in others),
        state=report.state,
        profile=report.profile,
        pid=report.pid,
        uptime_s=round(time.time() - report.started_at, 1),
        state_folder=str(state.path),
        processes=processes,
        services=others,
    )


def ask_gateway(url: str) -> list[ServiceReadiness] | None:
    """What the gateway at ``url`` says of the services behind it; None when no gateway answers."""
    try:
        services = httpx.get(f"{url}/readyz", timeout=READY_TIMEOUT_S).json()["services"]
        return [ServiceReadiness.model_validate(service) for service in services]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None


def _status_of_process(
    process: ProcessReport, services: dict[str, ServiceReadiness], gateway_answers: bool
) -> ProcessStatus:
    service = services.get(process.name)
    ready: bool | None
    if process.state in ("restarting", "stopped") or process.pid is None:
        ready, reason = False, process.last_end or "is not started yet"
    elif process.name == "gateway":
        ready, reason = gateway_answers, "" if gateway_answers else "does not answer"
    elif service is None:
        ready, reason = None, UNKNOWN
    else:
        ready, reason = service.ready, "" if service.ready else service.reason or "not ready"
    host, _, port = process.address.rpartition(":")
    return ProcessStatus(
        name=process.name,
        pid=process.pid,
        state=process.state,
        ready=ready,
        reason=reason,
        restarts=process.restarts,
        last_end=process.last_end,
        uptime_s=round(time.time() - process.started_at, 1) if process.started_at is not None else None,
        memory_bytes=resident_bytes(process.pid) if process.pid is not None else None,
        max_memory_bytes=process.max_memory_bytes,
        address=process.address,
        # The path of a socket has none.
        port=int(port) if host and not Path(process.address).is_absolute() else None,
        metrics_port=process.metrics_port,
        log=process.log,
    )
