"""A stack for chaos: ``superlink up`` as a person runs it, on free ports, in a folder of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import grpc
import httpx
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from superlink.ports import free_port_overrides
from superlink.profile import Profile, find_profile, load_profile
from superlink.redis_connection import URL_VARIABLE
from superlink.stack.state_folder import ProcessReport, StateFolder

POLL_INTERVAL_S = 0.05
STARTUP_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 90.0


def chaos_profile(overrides: Mapping[str, object] | None = None) -> Profile:
    """Profile tiny on free ports."""
    file = find_profile("tiny")
    return load_profile(file, {**free_port_overrides(load_profile(file)), **(overrides or {})})


class ChaosStack:
    """As a context manager it starts, and leaves nothing behind but its folder."""

    def __init__(
        self,
        folder: Path,
        overrides: Mapping[str, object] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """``overrides`` of the profile by dotted keys; ``environment`` beside that of this process."""
        self.folder = folder
        self.profile = chaos_profile(overrides)
        self.state = StateFolder(folder / "state")
        self.url = self.profile.gateway.url
        # No settings from the environment of whoever runs this.
        self._environment = {**os.environ, URL_VARIABLE: "", "OMP_NUM_THREADS": "1", **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline = -1

    def __enter__(self) -> ChaosStack:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "tiny.yaml"
        file.write_text(yaml.safe_dump(self.profile.model_dump(mode="json")), encoding="utf-8")
        log = self.folder / "up.log"
        # It stops when this process is gone, however that went: nobody else holds the writing end.
        lifeline, self._lifeline = os.pipe()
        command = [sys.executable, "-m", "superlink.child", str(lifeline), str(log), "module", "superlink", "up"]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*command, "--profile", str(file), "--state", str(self.state.path)],
                stdout=output,
                stderr=output,
                env=self._environment,
                start_new_session=True,
                pass_fds=(lifeline,),
            )
        os.close(lifeline)
        try:
            self.wait_until_ready(STARTUP_TIMEOUT_S)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    @property
    def supervisor(self) -> int:
        """Process id of ``superlink up``."""
        assert self._process is not None
        return self._process.pid

    def processes(self) -> dict[str, ProcessReport]:
        """What the supervision reports, by name in starting order."""
        report = self.state.running()
        return {process.name: process for process in report.processes} if report is not None else {}

    def restarts(self) -> int:
        """Of all processes together, until now."""
        return sum(process.restarts for process in self.processes().values())

    def kill(self, name: str) -> int:
        """SIGKILL, as the kernel does it when memory runs out. Returns the process id; it is gone."""
        pid = self.processes()[name].pid
        assert pid is not None, f"{name} does not run"
        os.kill(pid, signal.SIGKILL)
        while _runs(pid):
            time.sleep(0.005)
        return pid

    def wait_until_back(self, name: str, killed: int, timeout_s: float = 120.0) -> float:
        """Wait until ``name`` itself says that it serves again; returns when that was, by ``time.monotonic()``.

        ``killed`` is the process id that it had.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            process = self.processes().get(name)
            if process is not None and process.pid not in (None, killed) and self.serves(process):
                return time.monotonic()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} is not back after {timeout_s:g} s")
            time.sleep(POLL_INTERVAL_S)

    def serves(self, process: ProcessReport) -> bool:
        """Whether it answers itself, whatever others think of it."""
        match process.name:
            case "redis":
                return _redis_answers(process.address)
            case "gateway":
                return self._ready_services() is not None
            case "batches":
                # It answers nobody, and leaves word in Redis.
                return "batches" in (self._ready_services() or ())
        return _grpc_serves(process.address)

    def _ready_services(self) -> list[str] | None:
        """As the gateway names them; None while it does not answer."""
        try:
            services = httpx.get(f"{self.url}/readyz", timeout=5.0).json()["services"]
        except (httpx.HTTPError, ValueError, KeyError):
            return None
        return [service["name"] for service in services if service["ready"]]

    def is_ready(self) -> bool:
        """Whether the gateway says that all can be used."""
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5.0).is_success
        except httpx.HTTPError:
            return False

    def wait_until_ready(self, timeout_s: float = 120.0) -> None:
        """Wait until all processes run and the gateway says that all can be used."""
        deadline = time.monotonic() + timeout_s
        while True:
            processes = self.processes().values()
            if processes and all(each.pid is not None for each in processes) and self.is_ready():
                return
            if self._process is not None and self._process.poll() is not None:
                raise RuntimeError(f"superlink up ended: {(self.folder / 'up.log').read_text()[-2000:]}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"not ready after {timeout_s:g} s; logs in {self.state.logs}")
            time.sleep(POLL_INTERVAL_S)

    def redis_command(self, *words: str) -> bytes:
        """The first bytes of the answer of the stack's own Redis."""
        return _redis(self.processes()["redis"].address, *words)

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._lifeline)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _grpc_serves(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=0.5)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _redis_answers(path: str) -> bool:
    try:
        return _redis(path, "PING").startswith(b"+PONG")
    except OSError:
        return False


def _redis(path: str, *words: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5.0)
        connection.connect(path)
        parts = [f"${len(word.encode())}\r\n{word}\r\n" for word in words]
        connection.sendall(f"*{len(words)}\r\n{''.join(parts)}".encode())
        return connection.recv(65536)
