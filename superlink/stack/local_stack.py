"""All processes of one deployment on this machine, as children of this process.

``LocalStack`` is what ``superlink up`` runs, and what evaluation, benchmarks and tests start for themselves::

    with LocalStack(load_profile(find_profile("tiny")), ports="free") as stack:
        Client(stack.url).detect("scene.png", ["dog"])
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal

import httpx
import yaml

from superlink.ports import explain_ports_in_use, free_port_overrides, ports_in_use
from superlink.profile import Profile, weights_folder
from superlink.stack.errors import StackError
from superlink.stack.processes import describe_exit, plan_processes
from superlink.stack.redis_server import make_folders, names_redis, plan_redis, redis_url, remove_socket_folder
from superlink.stack.state_folder import StateFolder, default_state_folder
from superlink.stack.supervisor import StackEvent, Supervisor

POLL_INTERVAL_S = 0.1
LOG_TAIL_LINES = 15
# What /readyz says may be this old, so it may not know yet that a process was started anew.
READINESS_AGE_S = 1.0


class LocalStack:
    """Starts, watches and stops every process of ``profile``, and a Redis unless it or the environment names one.

    ``ports="profile"`` takes the profile's ports and refuses to start when one is in use; ``ports="free"`` moves all of
    them to free ones. ``state_folder`` is where it keeps its Redis, its files, its logs and its report. Without one, a
    stack on the profile's ports has ``runs/stack/NAME``, and what the Redis and the files of a stack on free ports hold
    ends with the stack.
    Children stop with this process however it ends, a SIGKILL included.
    """

    def __init__(
        self,
        profile: Profile,
        *,
        ports: Literal["profile", "free"] = "profile",
        state_folder: Path | None = None,
        on_event: Callable[[StackEvent], None] | None = None,
        startup_timeout_s: float = 180.0,
    ) -> None:
        """Nothing is started yet. Raises StackError when the package of the Redis that would come along is missing."""
        if ports == "free":
            profile = profile_with(profile, free_port_overrides(profile))
        if state_folder is None:
            self.state = default_state_folder(profile, own_ports=ports == "free")
        else:
            self.state = StateFolder(state_folder)
        plans = []
        self._own_redis = not names_redis(profile)
        if self._own_redis:
            plans.append(plan_redis(self.state))
            profile = profile_with(profile, {"gateway.redis_url": redis_url(self.state)})
        self._own_artifacts = not profile.artifacts.url
        if self._own_artifacts:
            profile = profile_with(profile, {"artifacts.url": str(self.state.artifacts)})
        self._keeps_state = ports == "profile" or state_folder is not None
        self.profile = profile
        plans += plan_processes(profile, self.state.profile_file)
        self._supervisor = Supervisor(plans, self.state, profile.name, profile.gateway.url, on_event)
        self._startup_timeout_s = startup_timeout_s
        # A plain flag: a signal handler may set it at any time, which no lock of threading survives for certain.
        self._stop_requested = False
        self._lock: int | None = None

    @property
    def url(self) -> str:
        """Where the gateway listens: ``http://127.0.0.1:8080``."""
        return self.profile.gateway.url

    @property
    def process_names(self) -> tuple[str, ...]:
        """The processes in starting order."""
        return self._supervisor.names

    @property
    def on_event(self) -> Callable[[StackEvent], None] | None:
        """Called with everything that happens to the processes."""
        return self._supervisor.on_event

    @on_event.setter
    def on_event(self, on_event: Callable[[StackEvent], None] | None) -> None:
        self._supervisor.on_event = on_event

    def pid(self, name: str) -> int | None:
        """Process id of ``name``, or None while it is not running."""
        return self._supervisor.pid(name)

    def log_file(self, name: str) -> Path:
        """Where ``name`` writes its standard output and error."""
        return self.state.log_file(name)

    def __enter__(self) -> LocalStack:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start every process and return when the gateway says that all are ready.

        Raises StackError when weights are missing, another stack has the state folder, a port is in use, a process dies
        before it was ready, or the stack is not ready in time. Nothing is left running then.
        """
        self._check_weights()
        self._lock = self.state.lock()
        try:
            in_use = ports_in_use(self.profile)
            if in_use:
                raise StackError(explain_ports_in_use(in_use))
            if self._own_redis:
                make_folders(self.state)
            self._write_profile()
            self._supervisor.start(self._lock)
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        self._supervisor.watch()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Return True when the stack was told to stop, and False after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s if timeout_s is not None else float("inf")
        while not self._stop_requested and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL_S)
        return self._stop_requested

    def request_stop(self) -> None:
        """Let ``wait`` return and ``start`` give up; safe to call from a signal handler."""
        self._stop_requested = True

    def stop(self) -> None:
        """Stop every process, the gateway first, each with its drain time; returns when none is left."""
        self._stop_requested = True
        if self._lock is None:
            return
        self._supervisor.stop()
        if self._own_redis:
            remove_socket_folder(self.state)
            if not self._keeps_state:
                shutil.rmtree(self.state.redis, ignore_errors=True)
        if self._own_artifacts and not self._keeps_state:
            shutil.rmtree(self.state.artifacts, ignore_errors=True)
        os.close(self._lock)
        self._lock = None

    def kill(self, name: str, signal_number: int = signal.SIGKILL) -> int:
        """Send a signal to one process, as a fault would; it is started again. Returns the process id it had.

        After SIGKILL the process is gone when this returns.
        """
        return self._supervisor.kill(name, signal_number)

    def readiness(self) -> tuple[bool, str]:
        """Whether every process runs and the gateway says that all are ready, and if not, what is waited for."""
        away = [name for name in self.process_names if self.pid(name) is None]
        if away:
            return False, f"waiting for {', '.join(away)}"
        try:
            response = httpx.get(f"{self.url}/readyz", timeout=5.0)
        except httpx.HTTPError:
            return False, "waiting for gateway"
        waited_for = services_waited_for(response)
        # Live requests can do without some, and the gateway then calls itself ready.
        return response.status_code == httpx.codes.OK and not waited_for, describe_readiness(response)

    def wait_until_ready(self, timeout_s: float) -> None:
        """Return when everything is ready again, for example after a restart. Raises StackError after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while True:
            ready, text = self.readiness()
            if ready and time.monotonic() - self._supervisor.latest_start > READINESS_AGE_S:
                return
            if time.monotonic() > deadline:
                raise StackError(f"The stack is not ready after {timeout_s:.0f} s: {text}.")
            time.sleep(POLL_INTERVAL_S)

    def _check_weights(self) -> None:
        workers = {"mllm": self.profile.mllm, **self.profile.decoders}
        missing = [
            f"{name}: no {weights_folder(settings) / 'config.json'}"
            for name, settings in workers.items()
            if not (weights_folder(settings) / "config.json").is_file()
        ]
        if missing:
            raise StackError(f"Weights are missing. {'; '.join(missing)}. `superlink doctor` says how to get them.")

    def _write_profile(self) -> None:
        file = self.state.profile_file
        # It may name a password.
        file.touch(mode=0o600)
        file.write_text(yaml.safe_dump(self.profile.model_dump(mode="json")), encoding="utf-8")

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._startup_timeout_s
        said = ""
        while True:
            for name, code in self._supervisor.exit_codes():
                raise StackError(
                    f"{name} ended with {describe_exit(code)} before it was ready. "
                    f"The end of {self.log_file(name)}:\n{self._log_tail(name)}"
                )
            ready, text = self.readiness()
            if ready:
                self._supervisor.note("ready", "stack", self.url)
                return
            if text != said:
                said = text
                self._supervisor.note("waiting", "stack", text)
            if time.monotonic() > deadline:
                raise StackError(
                    f"The stack is not ready after {self._startup_timeout_s:.0f} s: {text}. Logs: {self.state.logs}"
                )
            if self._stop_requested:
                raise StackError("Stopped before it was ready.")
            time.sleep(POLL_INTERVAL_S)

    def _log_tail(self, name: str) -> str:
        lines = self.log_file(name).read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"  {line}" for line in lines[-LOG_TAIL_LINES:]) or "  (empty)"


def describe_readiness(response: httpx.Response) -> str:
    """What ``/readyz`` says is missing, in one line."""
    waiting = services_waited_for(response)
    return f"waiting for {', '.join(waiting)}" if waiting else f"gateway answers HTTP {response.status_code}"


def services_waited_for(response: httpx.Response) -> list[str]:
    """The services that are not ready by what ``/readyz`` says, each with its reason."""
    try:
        services = response.json().get("services", [])
    except (ValueError, AttributeError):
        return []
    return [
        f"{service['name']} ({service.get('reason') or 'not ready'})"
        for service in services
        if not service.get("ready")
    ]


def profile_with(profile: Profile, overrides: dict[str, object]) -> Profile:
    """``profile`` with dotted keys replaced."""
    content = profile.model_dump(mode="json")
    for dotted, value in overrides.items():
        *parents, last = dotted.split(".")
        target = content
        for parent in parents:
            target = target[parent]
        target[last] = value
    return Profile.model_validate(content)
