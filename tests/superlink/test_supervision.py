"""How the processes of a stack are kept alive: back-off, memory ceilings, and an end in order; with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from superlink.stack.errors import StackError
from superlink.stack.processes import ProcessPlan
from superlink.stack.state_folder import ProcessReport, StateFolder
from superlink.stack.supervisor import StackEvent, Supervisor

pytestmark = pytest.mark.faults

# Holds as many MiB as it is told, answers SIGTERM as late as it is told, and says what happens to it.
PROCESS = """
import os, signal, sys, time

name, held, drain_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])

def drain(*_):
    print(name, "drains", flush=True)
    time.sleep(drain_s)
    print(name, "has drained", flush=True)
    sys.exit(0)

signal.signal(signal.SIGTERM, drain)
ballast = os.urandom(1024) * 1024 * held
print(name, "runs", flush=True)
while True:
    time.sleep(0.02)
"""


def plan(name: str, *, held: int = 0, drain_s: float = 0.0, max_memory_bytes: int = 0) -> ProcessPlan:
    command = ("module", "worker_for_tests", name, str(held), str(drain_s))
    return ProcessPlan(name, command, 5.0, "127.0.0.1:1", max_memory_bytes=max_memory_bytes)


class Bench:
    """A supervisor of plans, and what it reported."""

    def __init__(self, folder: Path, plans: list[ProcessPlan]) -> None:
        self.state = StateFolder(folder / "state")
        self.events: list[tuple[float, StackEvent]] = []
        self.supervisor = Supervisor(
            plans, self.state, "test", "http://127.0.0.1:1", lambda event: self.events.append((time.monotonic(), event))
        )

    def kinds(self, name: str) -> list[str]:
        return [event.kind for _, event in self.events if event.process == name]

    def reported(self, name: str) -> ProcessReport:
        report = self.state.running()
        assert report is not None
        return next(process for process in report.processes if process.name == name)

    def says(self, name: str, words: str) -> bool:
        return words in self.state.log_file(name).read_text()


@pytest.fixture
def supervised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Bench]]:
    (tmp_path / "worker_for_tests.py").write_text(PROCESS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    running: list[Bench] = []

    def start(*plans: ProcessPlan) -> Bench:
        bench = Bench(tmp_path, list(plans))
        lock = bench.state.lock()
        bench.supervisor.start(lock)
        running.append(bench)
        wait_until(lambda: all(bench.says(each.name, "runs") for each in plans))
        bench.supervisor.watch()
        return bench

    yield start
    for bench in running:
        bench.supervisor.stop()


def wait_until(condition: Callable[[], bool], within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_process_that_dies_again_and_again_is_started_later_each_time(supervised: Callable[..., Bench]) -> None:
    bench = supervised(plan("unlucky"), plan("other"))
    other = bench.supervisor.pid("other")
    for times in range(1, 4):
        bench.supervisor.kill("unlucky", signal.SIGKILL)
        wait_until(lambda: bench.kinds("unlucky").count("died") == times)  # noqa: B023
        assert bench.reported("unlucky").state == "restarting"
        wait_until(lambda: bench.kinds("unlucky").count("started") == times + 1)  # noqa: B023
    at = {
        kind: [when for when, event in bench.events if event.process == "unlucky" and event.kind == kind]
        for kind in ("died", "started")
    }
    waited = [started - died for died, started in zip(at["died"], at["started"][1:], strict=True)]
    for wait, least in zip(waited, (0.5, 1.0, 2.0), strict=True):
        assert wait >= least
    report = bench.reported("unlucky")
    assert (report.state, report.restarts, report.last_end) == ("running", 3, "signal SIGKILL")
    assert bench.supervisor.pid("other") == other
    assert bench.reported("other").restarts == 0


def test_a_process_that_gives_way_does_so_after_a_restart_too(supervised: Callable[..., Bench]) -> None:
    bench = supervised(replace(plan("polite"), niceness=5), plan("other"))

    def gives_way() -> bool:
        polite, other = (bench.supervisor.pid(name) for name in ("polite", "other"))
        assert other is not None
        own, groups = os.getpriority(os.PRIO_PROCESS, other), Path(f"/proc/{polite}/autogroup")
        return (
            polite is not None
            and os.getpriority(os.PRIO_PROCESS, polite) == own + 5
            and (not groups.exists() or "nice 5" in groups.read_text())
        )

    assert gives_way()
    bench.supervisor.kill("polite", signal.SIGKILL)
    wait_until(lambda: bench.kinds("polite").count("started") == 2)
    assert gives_way()


def test_a_process_above_its_memory_ceiling_is_drained_and_started_anew(supervised: Callable[..., Bench]) -> None:
    ceiling = 64 * 1024 * 1024
    bench = supervised(
        plan("large", held=96, drain_s=1.5, max_memory_bytes=ceiling), plan("small", max_memory_bytes=ceiling)
    )
    first = bench.supervisor.pid("large")
    wait_until(lambda: "draining" in bench.kinds("large"))
    report = bench.reported("large")
    assert (report.state, report.pid) == ("draining", first)
    assert report.last_end.endswith("more than its ceiling of 64 MiB")
    wait_until(lambda: bench.kinds("large").count("started") == 2)
    # It was not cut short.
    assert bench.says("large", "large has drained")
    report = bench.reported("large")
    assert (report.state, report.restarts) == ("running", 1)
    assert report.pid != first
    assert "more than its ceiling" in report.last_end
    assert bench.kinds("large") == ["started", "draining", "stopped", "restarting", "started"]
    entries = [json.loads(line) for line in bench.state.log_file("stack").read_text().splitlines()]
    assert any(
        entry["level"] == "warning" and entry["message"] == "large draining" and "64 MiB" in entry["detail"]
        for entry in entries
    )
    assert bench.kinds("small") == ["started"]


def test_one_that_does_not_drain_in_its_time_is_killed(
    supervised: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("superlink.stack.supervisor.STOP_MARGIN_S", -4.5)
    bench = supervised(plan("stubborn", held=96, drain_s=60, max_memory_bytes=64 * 1024 * 1024))
    wait_until(lambda: bench.kinds("stubborn").count("started") == 2)
    [end] = [event.text for _, event in bench.events if event.kind == "stopped"]
    assert end.startswith("signal SIGKILL")


def test_processes_end_in_order_and_leave_no_report(supervised: Callable[..., Bench]) -> None:
    bench = supervised(plan("first"), plan("second", drain_s=0.3), plan("third"))
    assert bench.state.running() is not None
    bench.supervisor.stop()
    ended = [event.process for _, event in bench.events if event.kind == "stopped"]
    assert ended == ["third", "second", "first"]
    assert bench.says("second", "second has drained")
    assert bench.state.running() is None


def test_logs_of_the_run_before_are_kept(supervised: Callable[..., Bench]) -> None:
    bench = supervised(plan("only"))
    bench.supervisor.stop()
    before = bench.state.log_file("only").read_text()
    again = Supervisor([plan("only")], bench.state, "test", "http://127.0.0.1:1")
    again.start(-1)
    try:
        assert bench.state.log_file("only").with_suffix(".log.1").read_text() == before
    finally:
        again.stop()


HOLDER = """
import sys, time
from pathlib import Path
from superlink.stack.state_folder import StackReport, StateFolder
import os

state = StateFolder(Path(sys.argv[1]))
state.lock()
if sys.argv[2] == "stack":
    state.write_report(StackReport(pid=os.getpid(), profile="p", url="u", started_at=0, state="running", processes=()))
print("held", flush=True)
time.sleep(float(sys.argv[3]))
"""


@contextmanager
def holder(folder: Path, kind: str, seconds: float) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(folder), kind, str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_folder_has_one_stack_at_a_time(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    with holder(state.path, "stack", 60) as process:
        report = state.running()
        assert report is not None
        assert report.pid == process.pid
        with pytest.raises(StackError, match=rf"runs already .*{state.path}.*process {process.pid}.*--state"):
            state.lock()
    # A killed stack leaves its report, which counts for nothing.
    assert state.running() is None
    os.close(state.lock())


def test_who_has_the_folder_for_a_moment_is_waited_for(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    with holder(state.path, "keys", 1.0):
        assert state.running() is None
        os.close(state.lock())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StackError, match=r"file/state cannot be written .*--state FOLDER"):
        StateFolder(tmp_path / "file" / "state").lock()
