"""Starts the processes of a stack, starts those anew that died or grew too large, and stops them in order."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, TypeAlias

from superlink.log_files import append_entry, rotate, rotate_if_large
from superlink.stack.errors import StackError
from superlink.stack.processes import ProcessPlan, describe_bytes, describe_exit, resident_bytes, start_process
from superlink.stack.state_folder import ProcessReport, StackReport, StateFolder

POLL_INTERVAL_S = 0.1
# A child that dies is started again after 0.5 s, then twice as long each time, at most 30 s.
FIRST_RESTART_DELAY_S = 0.5
LONGEST_RESTART_DELAY_S = 30.0
# A child that ran this long starts over with the first delay.
STABLE_AFTER_S = 60.0
# Beyond a process's own drain time, before it is killed.
STOP_MARGIN_S = 5.0
# A large image may take a child above its ceiling for a moment; only what stays is a reason to restart it.
MEMORY_INTERVAL_S = 1.0
MEMORY_LOOKS = 3

EventKind: TypeAlias = Literal["started", "waiting", "ready", "died", "draining", "restarting", "stopping", "stopped"]
_LEVELS: dict[EventKind, str] = {"died": "error", "draining": "warning", "restarting": "warning"}


@dataclass(frozen=True)
class StackEvent:
    """Something that happened to a process of the stack, or to the stack as a whole (``process`` is then "stack")."""

    kind: EventKind
    process: str
    text: str


class _Child:
    """One process and what its supervision needs to know. Times are of ``time.monotonic()``."""

    def __init__(self, plan: ProcessPlan) -> None:
        self.plan = plan
        self.process: subprocess.Popen[bytes] | None = None
        self.started_at = 0.0
        # Seconds since 1970, for people.
        self.started_time: float | None = None
        self.restarts = 0
        self.restarts_in_a_row = 0
        # It does not run and will be started then.
        self.restart_at: float | None = None
        # It was told to end, because it holds too much memory, and will be killed then.
        self.kill_at: float | None = None
        self.last_end = ""
        self.next_look_at_memory = 0.0
        self.looks_above_ceiling = 0

    @property
    def pid(self) -> int | None:
        """None while it is not running."""
        return self.process.pid if self.process is not None and self.process.poll() is None else None

    def report(self, log: str) -> ProcessReport:
        """As `superlink status` reads it."""
        pid = self.pid
        if self.restart_at is not None:
            state: Literal["running", "draining", "restarting", "stopped"] = "restarting"
        elif pid is None:
            state = "stopped"
        else:
            state = "running" if self.kill_at is None else "draining"
        return ProcessReport(
            name=self.plan.name,
            state=state,
            pid=pid,
            started_at=self.started_time if pid is not None else None,
            restarts=self.restarts,
            last_end=self.last_end,
            address=self.plan.address,
            metrics_port=self.plan.metrics_port,
            max_memory_bytes=self.plan.max_memory_bytes,
            log=log,
        )


class Supervisor:
    """The processes of ``plans``, in starting order, with their logs and their report in ``state``."""

    def __init__(
        self,
        plans: Sequence[ProcessPlan],
        state: StateFolder,
        profile: str,
        url: str,
        on_event: Callable[[StackEvent], None] | None = None,
    ) -> None:
        """``profile`` and ``url`` are what the report says. ``on_event`` is called in the thread that saw it."""
        self.on_event = on_event
        self._children = {plan.name: _Child(plan) for plan in plans}
        self._state = state
        self._report = StackReport(
            pid=os.getpid(), profile=profile, url=url, started_at=time.time(), state="starting", processes=()
        )
        self._lock = -1
        self._lifeline: tuple[int, int] | None = None
        self._watcher: threading.Thread | None = None
        self._stopping = False

    @property
    def names(self) -> tuple[str, ...]:
        """The processes in starting order."""
        return tuple(self._children)

    @property
    def latest_start(self) -> float:
        """When a process was started last, by ``time.monotonic()``."""
        return max(child.started_at for child in self._children.values())

    def pid(self, name: str) -> int | None:
        """Process id of ``name``, or None while it is not running."""
        return self._children[name].pid

    def exit_codes(self) -> Iterator[tuple[str, int]]:
        """The processes that have ended by themselves."""
        for name, child in self._children.items():
            code = child.process.poll() if child.process else None
            if code is not None:
                yield name, code

    def start(self, lock: int) -> None:
        """Start every process. ``lock`` is the descriptor that holds the state folder."""
        self._lock = lock
        self._report = self._report.model_copy(update={"started_at": time.time()})
        for name in (*self._children, "stack"):
            log = self._state.log_file(name)
            if log.exists():
                rotate(log)
        self._lifeline = os.pipe()
        for child in self._children.values():
            self._spawn(child)

    def watch(self) -> None:
        """From now on, start those anew that die or hold more memory than they may."""
        self._report = self._report.model_copy(update={"state": "running"})
        self._write_report()
        self._watcher = threading.Thread(target=self._watch, name="stack-watcher", daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        """Stop every process, the last one first, each with its drain time; returns when none is left."""
        self._stopping = True
        if self._watcher is not None:
            self._watcher.join()
            self._watcher = None
        self._report = self._report.model_copy(update={"state": "stopping"})
        for child in reversed(self._children.values()):
            self._stop_child(child)
        if self._lifeline is not None:
            for end in self._lifeline:
                os.close(end)
            self._lifeline = None
        self._state.remove_report()

    def kill(self, name: str, signal_number: int) -> int:
        """Send a signal to one process. Returns the process id it had; after SIGKILL it is gone."""
        process = self._children[name].process
        if process is None:
            raise StackError(f"{name} is not running.")
        process.send_signal(signal_number)
        if signal_number == signal.SIGKILL:
            process.wait()
        return process.pid

    def note(self, kind: EventKind, process: str, text: str) -> None:
        """Write an event to the stack's own log and to the report, and pass it on."""
        log = self._state.log_file("stack")
        rotate_if_large(log)
        # A full disk must not end the supervision.
        with suppress(OSError):
            append_entry(log, _LEVELS.get(kind, "info"), f"{process} {kind}", detail=text)
        self._write_report()
        if self.on_event is not None:
            self.on_event(StackEvent(kind, process, text))

    def _write_report(self) -> None:
        processes = tuple(child.report(str(self._state.log_file(name))) for name, child in self._children.items())
        with suppress(OSError):
            self._state.write_report(self._report.model_copy(update={"processes": processes}))

    def _spawn(self, child: _Child) -> None:
        assert self._lifeline is not None  # noqa: S101
        log = self._state.log_file(child.plan.name)
        child.process = start_process(child.plan, log, self._lifeline[0], self._lock)
        if child.started_time is not None:
            child.restarts += 1
        child.started_at = time.monotonic()
        child.started_time = time.time()
        child.restart_at = child.kill_at = None
        child.looks_above_ceiling = 0
        self.note("started", child.plan.name, f"process {child.process.pid}, log {log}")

    def _watch(self) -> None:
        while not self._stopping:
            for child in self._children.values():
                self._look_after(child)
            time.sleep(POLL_INTERVAL_S)

    def _look_after(self, child: _Child) -> None:
        now = time.monotonic()
        if child.restart_at is not None:
            if now >= child.restart_at:
                self._restart(child)
            return
        code = child.process.poll() if child.process else None
        if code is not None:
            self._note_end(child, code, now)
        elif child.kill_at is None:
            self._look_at_memory(child, now)
        elif now >= child.kill_at and child.process is not None:
            child.process.kill()

    def _restart(self, child: _Child) -> None:
        self.note("restarting", child.plan.name, f"attempt {child.restarts_in_a_row}")
        try:
            self._spawn(child)
        except OSError as error:
            self._try_again(child, f"could not be started ({error.strerror})", time.monotonic())

    def _note_end(self, child: _Child, code: int, now: float) -> None:
        if now - child.started_at > STABLE_AFTER_S:
            child.restarts_in_a_row = 0
        self._try_again(child, describe_exit(code), now)

    def _try_again(self, child: _Child, end: str, now: float) -> None:
        """Start it when its delay is over."""
        delay = min(FIRST_RESTART_DELAY_S * 2**child.restarts_in_a_row, LONGEST_RESTART_DELAY_S)
        child.restarts_in_a_row += 1
        child.restart_at = now + delay
        drained = child.kill_at is not None
        if not drained:
            # Else it says already why the child was drained.
            child.last_end = end
        child.kill_at = None
        log = self._state.log_file(child.plan.name)
        self.note("stopped" if drained else "died", child.plan.name, f"{end}; starts again in {delay:g} s; log {log}")

    def _look_at_memory(self, child: _Child, now: float) -> None:
        """Let a child drain that holds more than its ceiling time and again; it is started anew when it has ended."""
        ceiling = child.plan.max_memory_bytes
        if not ceiling or child.process is None or now < child.next_look_at_memory:
            return
        child.next_look_at_memory = now + MEMORY_INTERVAL_S
        held = resident_bytes(child.process.pid)
        child.looks_above_ceiling = child.looks_above_ceiling + 1 if held is not None and held > ceiling else 0
        if held is None or child.looks_above_ceiling < MEMORY_LOOKS:
            return
        child.last_end = f"held {describe_bytes(held)}, more than its ceiling of {describe_bytes(ceiling)}"
        child.kill_at = now + child.plan.drain_timeout_s + STOP_MARGIN_S
        child.process.terminate()
        self.note("draining", child.plan.name, f"{child.last_end}; it is started anew when it has drained")

    def _stop_child(self, child: _Child) -> None:
        process = child.process
        child.restart_at = None
        if process is None or process.poll() is not None:
            return
        self.note("stopping", child.plan.name, f"process {process.pid}")
        if child.kill_at is None:
            # A second signal would cut short what is being drained already.
            process.terminate()
        try:
            process.wait(child.plan.drain_timeout_s + STOP_MARGIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.note("stopped", child.plan.name, describe_exit(process.returncode))
