"""Which processes a profile has, how each is started, and what it may use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from superlink.profile import Profile, WorkerSettings

# The gateway gives way to the others on a machine that has too little for all: under a flood most of its work is
# refusing, and on two cores that took the model threads a tenth of their time.
GATEWAY_NICENESS = 5


@dataclass(frozen=True)
class ProcessPlan:
    """How one process is started, and when it is drained."""

    name: str
    # What `python -m superlink.child FD LOG` is told: "module" or "program", which one, and its arguments.
    command: Sequence[str]
    drain_timeout_s: float
    # host:port, or the path of a socket; empty where it serves nobody.
    address: str
    metrics_port: int = 0
    # 0: no ceiling.
    max_memory_bytes: int = 0
    # Whether the state folder stays taken as long as the process runs, whatever becomes of the one that started it.
    keeps_folder: bool = False
    # As of nice(1): the higher, the more it gives way.
    niceness: int = 0


def plan_processes(profile: Profile, profile_file: Path) -> tuple[ProcessPlan, ...]:
    """Superlink's own processes in the order in which they are started; they are stopped the other way round.

    ``profile_file`` is where they read ``profile``.
    """

    def command(module: str) -> tuple[str, ...]:
        return ("module", module, "--profile", str(profile_file))

    workers: dict[str, WorkerSettings] = {"mllm": profile.mllm, **profile.decoders}
    orchestrator, gateway, batches = profile.orchestrator, profile.gateway, profile.batches
    return (
        *(
            ProcessPlan(
                name,
                command(f"services.{name}.service"),
                settings.drain_timeout_s,
                settings.address,
                settings.metrics_port,
                settings.max_memory_bytes,
            )
            for name, settings in workers.items()
        ),
        ProcessPlan(
            "orchestrator",
            command("orchestrator"),
            orchestrator.drain_timeout_s,
            orchestrator.address,
            orchestrator.metrics_port,
            orchestrator.max_memory_bytes,
        ),
        ProcessPlan(
            "gateway",
            command("gateway"),
            orchestrator.drain_timeout_s,
            f"{gateway.host_in_url}:{gateway.port}",
            max_memory_bytes=gateway.max_memory_bytes,
            niceness=GATEWAY_NICENESS,
        ),
        # The last one: what it still asks when it is stopped, the gateway answers.
        *(
            (
                ProcessPlan(
                    "batches",
                    command("orchestrator.batches"),
                    batches.drain_timeout_s,
                    f"{gateway.host_in_url}:{batches.metrics_port}" if batches.metrics_port else "",
                    batches.metrics_port,
                    batches.max_memory_bytes,
                ),
            )
            if batches.enabled
            else ()
        ),
    )


def start_process(plan: ProcessPlan, log: Path, lifeline: int, lock: int) -> subprocess.Popen[bytes]:
    """Start what is planned; see ``superlink.child``.

    ``lifeline`` is the reading end of the pipe that it follows, ``lock`` the descriptor that holds the state folder.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", "superlink.child", str(lifeline), str(log), *plan.command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(lifeline, lock) if plan.keeps_folder else (lifeline,),
            # A session of its own: Ctrl-C reaches this process only, which stops the children in order.
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    if plan.niceness:
        _give_way(process.pid, plan.niceness)
    return process


def _give_way(pid: int, niceness: int) -> None:
    """Set the niceness of a session that has only begun; best effort, for it is about speed alone."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, 0) + niceness)
    # Where Linux groups processes by session, as it does by default, niceness counts within a session only, and between
    # sessions this.
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(niceness), encoding="ascii")


def describe_exit(code: int) -> str:
    """``"exit code 1"`` or ``"signal SIGKILL"``."""
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def resident_bytes(pid: int) -> int | None:
    """The memory that a process holds; None when it is gone, or the system does not say (only Linux does)."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def describe_bytes(count: int) -> str:
    """``"3.2 GiB"`` or ``"812 MiB"``."""
    mebibytes = count / 1024**2
    return f"{mebibytes / 1024:.1f} GiB" if mebibytes >= 1024 else f"{mebibytes:.0f} MiB"
