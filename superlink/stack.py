"""All processes of one deployment on this machine, as children of this process.

``LocalStack`` is what ``superlink up`` runs, and what evaluation, benchmarks and tests start for themselves::

    with LocalStack(load_profile(find_profile("tiny")), ports="free") as stack:
        Client(stack.url).detect("scene.png", ["dog"])
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal

import httpx
import yaml

from superlink.ports import explain_ports_in_use, free_port_overrides, ports_in_use
from superlink.profile import Profile, superlink_home, weights_folder

POLL_INTERVAL_S = 0.1
# A child that dies is started again after 0.5 s, then twice as long each time, at most 30 s.
FIRST_RESTART_DELAY_S = 0.5
LONGEST_RESTART_DELAY_S = 30.0
# A child that ran this long starts over with the first delay.
STABLE_AFTER_S = 60.0
# Beyond a process's own drain time, before it is killed.
STOP_MARGIN_S = 5.0
LOG_TAIL_LINES = 15
# What /readyz says may be this old, so it may not know yet that a process was started anew.
READINESS_AGE_S = 1.0


class StackError(Exception):
    """The stack could not be started. The text says which process, why, and what to do."""


@dataclass(frozen=True)
class StackEvent:
    """Something that happened to a process of the stack, or to the stack as a whole (``process`` is then "stack")."""

    kind: Literal["started", "waiting", "ready", "died", "restarting", "stopping", "stopped"]
    process: str
    text: str


@dataclass(frozen=True)
class ProcessPlan:
    """How one process is started."""

    name: str
    module: str
    drain_timeout_s: float


def plan_processes(profile: Profile) -> tuple[ProcessPlan, ...]:
    """The processes of a profile in the order in which they are started; they are stopped the other way round."""
    return (
        ProcessPlan("mllm", "services.mllm.service", profile.mllm.drain_timeout_s),
        *(
            ProcessPlan(name, f"services.{name}.service", settings.drain_timeout_s)
            for name, settings in profile.decoders.items()
        ),
        ProcessPlan("orchestrator", "orchestrator", profile.orchestrator.drain_timeout_s),
        ProcessPlan("gateway", "gateway", profile.orchestrator.drain_timeout_s),
    )


class _Child:
    """One running process and what its supervision needs to know."""

    def __init__(self, plan: ProcessPlan) -> None:
        self.plan = plan
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        self.restarts_in_a_row = 0
        self.restart_at: float | None = None


class LocalStack:
    """Starts, watches and stops every process of ``profile``.

    ``ports="profile"`` takes the profile's ports and refuses to start when one is in use; ``ports="free"`` moves all of
    them to free ones. ``log_folder`` receives one log per process and the profile as it was started.
    Children stop with this process however it ends, a SIGKILL included.
    """

    def __init__(
        self,
        profile: Profile,
        *,
        ports: Literal["profile", "free"] = "profile",
        log_folder: Path | None = None,
        on_event: Callable[[StackEvent], None] | None = None,
        startup_timeout_s: float = 180.0,
    ) -> None:
        self.profile = _with_overrides(profile, free_port_overrides(profile)) if ports == "free" else profile
        self.log_folder = log_folder or _default_log_folder(self.profile, ports)
        self.on_event = on_event
        self._startup_timeout_s = startup_timeout_s
        self._children = {plan.name: _Child(plan) for plan in plan_processes(self.profile)}
        # A plain flag: a signal handler may set it at any time, which no lock of threading survives for certain.
        self._stop_requested = False
        self._watcher: threading.Thread | None = None
        self._lifeline: tuple[int, int] | None = None

    @property
    def url(self) -> str:
        """Where the gateway listens: ``http://127.0.0.1:8080``."""
        return self.profile.gateway.url

    @property
    def process_names(self) -> tuple[str, ...]:
        """The processes in starting order."""
        return tuple(self._children)

    def pid(self, name: str) -> int | None:
        """Process id of ``name``, or None while it is not running."""
        process = self._children[name].process
        return process.pid if process is not None and process.poll() is None else None

    def log_file(self, name: str) -> Path:
        """Where ``name`` writes its standard output and error."""
        return self.log_folder / f"{name}.log"

    def __enter__(self) -> LocalStack:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start every process and return when the gateway says that all are ready.

        Raises StackError when weights are missing, a port is in use, a process dies before it was ready, or the stack
        is not ready in time. Nothing is left running then.
        """
        self._check_weights()
        in_use = ports_in_use(self.profile)
        if in_use:
            raise StackError(explain_ports_in_use(in_use))
        self.log_folder.mkdir(parents=True, exist_ok=True)
        self._profile_file.write_text(yaml.safe_dump(self.profile.model_dump(mode="json")), encoding="utf-8")
        for name in self._children:
            self.log_file(name).write_bytes(b"")
        self._lifeline = os.pipe()
        try:
            for child in self._children.values():
                self._spawn(child)
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        self._watcher = threading.Thread(target=self._watch, name="stack-watcher", daemon=True)
        self._watcher.start()

    def wait(self, timeout_s: float | None = None) -> None:
        """Return when the stack was told to stop, or after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s if timeout_s is not None else float("inf")
        while not self._stop_requested and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL_S)

    def request_stop(self) -> None:
        """Let ``wait`` return and ``start`` give up; safe to call from a signal handler."""
        self._stop_requested = True

    def stop(self) -> None:
        """Stop every process, the gateway first, each with its drain time; returns when none is left."""
        self._stop_requested = True
        if self._watcher is not None:
            self._watcher.join()
            self._watcher = None
        for child in reversed(self._children.values()):
            self._stop_child(child)
        if self._lifeline is not None:
            for end in self._lifeline:
                os.close(end)
            self._lifeline = None

    def kill(self, name: str, signal_number: int = signal.SIGKILL) -> int:
        """Send a signal to one process, as a fault would; it is started again. Returns the process id it had.

        After SIGKILL the process is gone when this returns.
        """
        process = self._children[name].process
        if process is None:
            raise StackError(f"{name} is not running.")
        process.send_signal(signal_number)
        if signal_number == signal.SIGKILL:
            process.wait()
        return process.pid

    def readiness(self) -> tuple[bool, str]:
        """Whether every process runs and the gateway says that all are ready, and if not, what is waited for."""
        away = [name for name in self._children if self.pid(name) is None]
        if away:
            return False, f"waiting for {', '.join(away)}"
        try:
            response = httpx.get(f"{self.url}/readyz", timeout=5.0)
        except httpx.HTTPError:
            return False, "waiting for gateway"
        return response.status_code == httpx.codes.OK, describe_readiness(response)

    def wait_until_ready(self, timeout_s: float) -> None:
        """Return when everything is ready again, for example after a restart. Raises StackError after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while True:
            ready, text = self.readiness()
            latest_start = max(child.started_at for child in self._children.values())
            if ready and time.monotonic() - latest_start > READINESS_AGE_S:
                return
            if time.monotonic() > deadline:
                raise StackError(f"The stack is not ready after {timeout_s:.0f} s: {text}.")
            time.sleep(POLL_INTERVAL_S)

    @property
    def _profile_file(self) -> Path:
        return self.log_folder / "profile.yaml"

    def _check_weights(self) -> None:
        workers = {"mllm": self.profile.mllm, **self.profile.decoders}
        missing = [
            f"{name}: no {weights_folder(settings) / 'config.json'}"
            for name, settings in workers.items()
            if not (weights_folder(settings) / "config.json").is_file()
        ]
        if missing:
            raise StackError(f"Weights are missing. {'; '.join(missing)}. `superlink doctor` says how to get them.")

    def _spawn(self, child: _Child) -> None:
        assert self._lifeline is not None  # noqa: S101
        reading_end = self._lifeline[0]
        command = [sys.executable, "-m", "superlink.child", str(reading_end), child.plan.module]
        command += ["--profile", str(self._profile_file)]
        log: BinaryIO
        with self.log_file(child.plan.name).open("ab") as log:
            child.process = subprocess.Popen(  # noqa: S603
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(reading_end,),
                # A session of its own: Ctrl-C reaches this process only, which stops the children in order.
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        child.started_at = time.monotonic()
        child.restart_at = None
        self._emit("started", child.plan.name, f"process {child.process.pid}, log {self.log_file(child.plan.name)}")

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._startup_timeout_s
        said = ""
        while True:
            for child in self._children.values():
                code = child.process.poll() if child.process else None
                if code is not None:
                    raise StackError(
                        f"{child.plan.name} ended with {describe_exit(code)} before it was ready. "
                        f"The end of {self.log_file(child.plan.name)}:\n{self._log_tail(child.plan.name)}"
                    )
            ready, text = self.readiness()
            if ready:
                self._emit("ready", "stack", self.url)
                return
            if text != said:
                said = text
                self._emit("waiting", "stack", text)
            if time.monotonic() > deadline:
                raise StackError(
                    f"The stack is not ready after {self._startup_timeout_s:.0f} s: {text}. Logs: {self.log_folder}"
                )
            if self._stop_requested:
                raise StackError("Stopped before it was ready.")
            time.sleep(POLL_INTERVAL_S)

    def _watch(self) -> None:
        while not self._stop_requested:
            for child in self._children.values():
                self._revive(child)
            time.sleep(POLL_INTERVAL_S)

    def _revive(self, child: _Child) -> None:
        """Notice that a child died and start it again when its delay is over."""
        now = time.monotonic()
        if child.restart_at is not None:
            if now >= child.restart_at:
                self._emit("restarting", child.plan.name, f"attempt {child.restarts_in_a_row}")
                self._spawn(child)
            return
        code = child.process.poll() if child.process else None
        if code is None:
            return
        if now - child.started_at > STABLE_AFTER_S:
            child.restarts_in_a_row = 0
        delay = min(FIRST_RESTART_DELAY_S * 2**child.restarts_in_a_row, LONGEST_RESTART_DELAY_S)
        child.restarts_in_a_row += 1
        child.restart_at = now + delay
        self._emit(
            "died",
            child.plan.name,
            f"{describe_exit(code)}; starts again in {delay:g} s; log {self.log_file(child.plan.name)}",
        )

    def _stop_child(self, child: _Child) -> None:
        process = child.process
        if process is None or process.poll() is not None:
            return
        self._emit("stopping", child.plan.name, f"process {process.pid}")
        process.terminate()
        try:
            process.wait(child.plan.drain_timeout_s + STOP_MARGIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._emit("stopped", child.plan.name, describe_exit(process.returncode))

    def _log_tail(self, name: str) -> str:
        lines = self.log_file(name).read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-LOG_TAIL_LINES:]) or "  (empty)"

    def _emit(self, kind: Any, process: str, text: str) -> None:
        if self.on_event is not None:
            self.on_event(StackEvent(kind, process, text))


def describe_exit(code: int) -> str:
    """``"exit code 1"`` or ``"signal SIGKILL"``."""
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"


def describe_readiness(response: httpx.Response) -> str:
    """What ``/readyz`` says is missing, in one line."""
    try:
        services = response.json().get("services", [])
    except (ValueError, AttributeError):
        return f"gateway answers HTTP {response.status_code}"
    waiting = [
        f"{service['name']} ({service.get('reason') or 'not ready'})"
        for service in services
        if not service.get("ready")
    ]
    return f"waiting for {', '.join(waiting)}" if waiting else f"gateway answers HTTP {response.status_code}"


def _default_log_folder(profile: Profile, ports: str) -> Path:
    """Stacks on free ports run beside each other, so each has a folder of its own."""
    folder = superlink_home() / "runs" / "logs"
    return folder if ports == "profile" else folder / f"port-{profile.gateway.port}"


def _with_overrides(profile: Profile, overrides: dict[str, object]) -> Profile:
    """``profile`` with dotted keys replaced."""
    content = profile.model_dump(mode="json")
    for dotted, value in overrides.items():
        *parents, last = dotted.split(".")
        target = content
        for parent in parents:
            target = target[parent]
        target[last] = value
    return Profile.model_validate(content)
