"""What a stack on this machine keeps in a folder: its profile, its logs, its Redis, its files, and a report.

- ``profile.yaml``: the profile as it was started
- ``report.json``: which processes there are and how they fare, for ``superlink status``
- ``logs/NAME.log``: of each process, and of the stack itself
- ``artifacts/``: the files of clients, unless the profile keeps them elsewhere
- ``redis/``: the append-only file of the Redis that came along, and its socket
- ``lock``: held by the stack, and by its Redis: one stack at a time
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from superlink.profile import ARTIFACTS, Profile, state_folder_of
from superlink.stack.errors import StackError

# A Redis whose stack was killed has the folder until it has ended, and `superlink keys` for a moment.
LOCK_PATIENCE_S = 15.0
LOCK_POLL_S = 0.1


class ProcessReport(BaseModel):
    """One process as the stack that supervises it sees it."""

    model_config = ConfigDict(frozen=True)

    name: str
    state: Literal["running", "draining", "restarting", "stopped"]
    # None while it does not run.
    pid: int | None
    # Seconds since 1970, of its latest start.
    started_at: float | None
    restarts: int
    # How it ended the last time; empty when it never did.
    last_end: str
    # host:port, or the path of a socket.
    address: str
    metrics_port: int
    # 0: no ceiling.
    max_memory_bytes: int
    log: str


class StackReport(BaseModel):
    """A stack that runs on this machine."""

    model_config = ConfigDict(frozen=True)

    # Of the process that supervises the others.
    pid: int
    profile: str
    url: str
    started_at: float
    state: Literal["starting", "running", "stopping"]
    processes: tuple[ProcessReport, ...]


class StateFolder:
    """The folder at ``path``; nothing is made or read yet."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.profile_file = self.path / "profile.yaml"
        self.logs = self.path / "logs"
        self.redis = self.path / "redis"
        self.artifacts = self.path / ARTIFACTS
        self._report_file = self.path / "report.json"
        self._lock_file = self.path / "lock"

    def log_file(self, name: str) -> Path:
        """Where the process ``name`` writes its standard output and error."""
        return self.logs / f"{name}.log"

    def lock(self) -> int:
        """Take the folder, which is made where it is missing, and return the descriptor that holds it.

        It is free again when this descriptor and all that child processes inherited are closed. Raises StackError when
        a stack has it, or it cannot be written.
        """
        try:
            # Others need not read the profile, which may name a password, nor what logs tell.
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.logs.mkdir(exist_ok=True)
            descriptor = os.open(self._lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StackError(
                f"{self.path} cannot be written ({error.strerror}). Choose another folder: --state FOLDER"
            ) from error
        try:
            self._wait_for_lock(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def running(self) -> StackReport | None:
        """The report of the stack that has the folder; None when there is none, or it was killed."""
        try:
            descriptor = os.open(self._lock_file, os.O_RDWR)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StackError(f"{self._lock_file} cannot be read: {error.strerror}.") from error
        try:
            if _locked(descriptor):
                return None
        finally:
            os.close(descriptor)
        report = self._read_report()
        return report if report is not None and _is_alive(report.pid) else None

    def write_report(self, report: StackReport) -> None:
        """Keep ``report`` for ``running``, in one step. Raises OSError when the disk is full."""
        partial = self._report_file.with_suffix(".part")
        partial.write_text(report.model_dump_json(), encoding="utf-8")
        partial.replace(self._report_file)

    def remove_report(self) -> None:
        """The stack has ended."""
        self._report_file.unlink(missing_ok=True)

    def _wait_for_lock(self, descriptor: int) -> None:
        deadline = time.monotonic() + LOCK_PATIENCE_S
        while not _locked(descriptor):
            report = self._read_report()
            if report is not None and _is_alive(report.pid):
                raise StackError(
                    f"A stack runs already with the state folder {self.path} (process {report.pid}). "
                    "Stop it, or give this one a folder of its own: --state FOLDER"
                )
            if time.monotonic() > deadline:
                raise StackError(
                    f"{self.path} is still in use, although its stack is gone (`fuser {self._lock_file}` names who has "
                    "it). Stop that process, or choose another folder: --state FOLDER"
                )
            time.sleep(LOCK_POLL_S)

    def _read_report(self) -> StackReport | None:
        try:
            return StackReport.model_validate_json(self._report_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise StackError(f"{self._report_file} was written by another version of Superlink. Stop it.") from error


def default_state_folder(profile: Profile, own_ports: bool = False) -> StateFolder:
    """Of the stack of a profile. ``own_ports``: of one that runs beside it, which has a folder by its port."""
    folder = state_folder_of(profile)
    return StateFolder(folder.with_name(f"{folder.name}-{profile.gateway.port}") if own_ports else folder)


def _locked(descriptor: int) -> bool:
    """Whether the lock could be had."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
