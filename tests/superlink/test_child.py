"""A process of the stack never outlives the one that started it, and its log never grows large."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from superlink.log_files import MAX_LOG_BYTES
from superlink.stack.processes import describe_exit

MODULE = """
import pathlib, signal, sys, time

def stop(*_):
    pathlib.Path(sys.argv[1] + ".stopped").touch()
    sys.exit(0)

signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1]).touch()
while True:
    time.sleep(0.05)
"""
# It knows nothing of the pipe, and writes down who it is.
PROGRAM = 'trap "touch $0.stopped; exit 0" TERM; echo $$ > "$0.begun"; mv "$0.begun" "$0"; while :; do sleep 0.05; done'
PARENT = """
import os, subprocess, sys, time

reading, writing = os.pipe()
command = [sys.executable, "-m", "superlink.child", str(reading), *sys.argv[1:]]
subprocess.Popen(command, pass_fds=(reading,), start_new_session=True)
time.sleep(60)
"""
LINE = b'{"message": "of some length, for a log that is soon full"}\n'
TALKATIVE = f"""
import sys, time

for number in range({2 * MAX_LOG_BYTES // len(LINE)}):
    sys.stdout.buffer.write({LINE!r})
    sys.stdout.buffer.flush()
    if number == {MAX_LOG_BYTES * 3 // 2 // len(LINE)}:
        time.sleep(7)
time.sleep(60)
"""


def wait_until(condition: Callable[[], bool], within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Zombies do not run: nobody may be there to bury them."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def processes_of_session(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found


@contextmanager
def parent_of(folder: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    process = subprocess.Popen([sys.executable, "-c", PARENT, str(folder / "child.log"), *command], env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.faults
def test_a_module_stops_when_its_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "patient.py").write_text(MODULE)
    marker = tmp_path / "running"
    with parent_of(tmp_path, "module", "patient", str(marker)) as parent:
        wait_until(marker.exists)
        parent.send_signal(signal.SIGKILL)
        wait_until((tmp_path / "running.stopped").exists)


@pytest.mark.faults
def test_a_program_that_knows_of_nothing_stops_when_its_parent_is_killed(tmp_path: Path) -> None:
    marker = tmp_path / "running"
    with parent_of(tmp_path, "program", "/bin/sh", "-c", PROGRAM, str(marker)) as parent:
        wait_until(marker.exists)
        program = int(marker.read_text())
        parent.send_signal(signal.SIGKILL)
        wait_until((tmp_path / "running.stopped").exists)
        wait_until(lambda: not is_running(program))
        # Not even its guard is left.
        wait_until(lambda: not processes_of_session(program))


@pytest.mark.faults
def test_nothing_is_left_of_a_program_that_is_killed_itself(tmp_path: Path) -> None:
    marker = tmp_path / "running"
    with parent_of(tmp_path, "program", "/bin/sh", "-c", PROGRAM, str(marker)):
        wait_until(marker.exists)
        program = int(marker.read_text())
        assert len(processes_of_session(program)) >= 2
        os.kill(program, signal.SIGKILL)
        wait_until(lambda: not processes_of_session(program))


def test_a_full_log_is_put_aside_and_no_line_is_lost(tmp_path: Path) -> None:
    (tmp_path / "talkative.py").write_text(TALKATIVE)
    log, older = tmp_path / "child.log", tmp_path / "child.log.1"
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "superlink.child", str(reading), str(log), "module", "talkative"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with log.open("ab") as output:
        child = subprocess.Popen(command, stdout=output, pass_fds=(reading,), env=environment)
    try:
        count = 2 * MAX_LOG_BYTES // len(LINE)
        wait_until(older.exists)
        wait_until(lambda: older.stat().st_size + log.stat().st_size >= count * len(LINE))
        assert log.stat().st_size < MAX_LOG_BYTES
        assert set((older.read_bytes() + log.read_bytes()).splitlines(keepends=True)) == {LINE}
        assert older.stat().st_size + log.stat().st_size == count * len(LINE)
    finally:
        child.kill()
        child.wait()
        for end in (reading, writing):
            os.close(end)


def test_exits_are_described_in_words() -> None:
    assert describe_exit(2) == "exit code 2"
    assert describe_exit(-9) == "signal SIGKILL"
