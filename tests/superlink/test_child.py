"""A process of the stack never outlives the one that started it, not even when that one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from superlink.stack import describe_exit

CHILD = """
import pathlib, signal, sys, time

def stop(*_):
    pathlib.Path(sys.argv[1] + ".stopped").touch()
    sys.exit(0)

signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1]).touch()
while True:
    time.sleep(0.05)
"""
PARENT = """
import os, subprocess, sys, time

reading, writing = os.pipe()
command = [sys.executable, "-m", "superlink.child", str(reading), "patient", sys.argv[1]]
subprocess.Popen(command, pass_fds=(reading,), start_new_session=True)
time.sleep(60)
"""


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < deadline, f"{file} did not appear"
        time.sleep(0.02)


@pytest.mark.faults
def test_a_child_stops_when_its_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "patient.py").write_text(CHILD)
    marker = tmp_path / "running"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(marker)], env=environment)
    wait_for(marker)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(tmp_path / "running.stopped")


def test_exits_are_described_in_words() -> None:
    assert describe_exit(2) == "exit code 2"
    assert describe_exit(-9) == "signal SIGKILL"
