"""Run one process of the stack so that it never outlives the process that started it, and its log never grows large.

``python -m superlink.child FD LOG module MODULE [ARGUMENT ...]`` runs MODULE as ``__main__``;
``python -m superlink.child FD LOG program PROGRAM [ARGUMENT ...]`` becomes PROGRAM, which opens LOG for each line.

FD is the reading end of a pipe whose writing end only the parent holds: when the parent is gone, however it went, the
pipe closes and this process stops. LOG is the file that standard output and error go to.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import select
import signal
import sys
import threading
import time
from pathlib import Path

from superlink.log_files import rotate_if_large

# Time to finish requests in flight once the parent is gone.
ORPHAN_GRACE_S = 10.0
LOG_CHECK_INTERVAL_S = 5.0


def main() -> None:
    """Follow the parent's pipe and run what is asked for."""
    lifeline, log, kind, *command = sys.argv[1:]
    if kind == "program":
        _become(command, int(lifeline), Path(log))
    sys.argv = command
    threading.Thread(target=_look_after_module, args=(int(lifeline), Path(log)), name="lifeline", daemon=True).start()
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


def _look_after_module(lifeline: int, log: Path) -> None:
    while not _closed_within((lifeline,), LOG_CHECK_INTERVAL_S):
        if rotate_if_large(log):
            # Where that fails, the renamed file goes on growing.
            with contextlib.suppress(OSError):
                _write_to(log)
    _end(os.getpid())


def _become(command: list[str], lifeline: int, log: Path) -> None:
    """Replace this process by a program, and leave a guard behind: the program itself knows nothing of the pipe."""
    alive, held_by_program = os.pipe()
    program = os.getpid()
    if os.fork() == 0:
        os.close(held_by_program)
        _look_after_program(program, lifeline, alive, log)
        os._exit(0)
    os.close(alive)
    os.set_inheritable(held_by_program, True)
    os.execv(command[0], command)  # noqa: S606


def _look_after_program(program: int, lifeline: int, alive: int, log: Path) -> None:
    while not (closed := _closed_within((lifeline, alive), LOG_CHECK_INTERVAL_S)):
        rotate_if_large(log)
    if alive not in closed:
        _end(program, alive)


def _closed_within(pipes: tuple[int, ...], timeout_s: float) -> list[int]:
    """Those of ``pipes`` that nobody can write to any more; waits for the first one. Nothing is ever written."""
    return select.select(pipes, [], [], timeout_s)[0]


def _write_to(log: Path) -> None:
    """Send standard output and error to ``log`` from now on; each line is in one file, whole."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for standard_stream in (1, 2):
        os.dup2(file, standard_stream)
    os.close(file)


def _end(process: int, alive: int | None = None) -> None:
    os.kill(process, signal.SIGTERM)
    if alive is None:
        time.sleep(ORPHAN_GRACE_S)
    elif _closed_within((alive,), ORPHAN_GRACE_S):
        return
    os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    main()
