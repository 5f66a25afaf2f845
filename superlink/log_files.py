"""The logs of the processes on this machine: one file each, rotated before it grows large, and read by people.

Needs nothing but the standard library, because every child of a stack loads it.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

MAX_LOG_BYTES = 10 * 1024 * 1024
# ``mllm.log.1`` is the newest of these.
KEPT_LOGS = 3

# What the readable form of a line has at its beginning.
_LEADING = ("time", "level", "message")
# Known from the file that the line is in, or of no use to a person.
_LEFT_OUT = ("service", "logger", "traceback")


def rotate(log: Path) -> None:
    """Give ``log`` its first number, those before it the next one, and forget the oldest.

    Who has it open goes on writing to the renamed file.
    """
    for number in range(KEPT_LOGS, 0, -1):
        older = _numbered(log, number - 1)
        if older.exists():
            older.replace(_numbered(log, number))


def rotate_if_large(log: Path) -> bool:
    """Rotate ``log`` when it holds more than MAX_LOG_BYTES. Returns whether it did."""
    try:
        if log.stat().st_size <= MAX_LOG_BYTES:
            return False
        rotate(log)
    except OSError:
        # It is tried again; a log that grows is no reason to end a process.
        return False
    return True


def _numbered(log: Path, number: int) -> Path:
    return log.with_name(f"{log.name}.{number}") if number else log


def append_entry(log: Path, level: str, message: str, **fields: Any) -> None:
    """Add one line in the form of ``superlink.logs.JsonFormatter``. Raises OSError when the disk is full."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    entry = {"time": now, "level": level, "service": log.stem, "message": message, **fields}
    with log.open("a", encoding="utf-8") as file:
        file.write(f"{json.dumps(entry, ensure_ascii=False)}\n")


def last_lines(log: Path, count: int) -> list[str]:
    """The last ``count`` lines; none when there is no such file."""
    try:
        with log.open(encoding="utf-8", errors="replace") as file:
            return [line.rstrip("\n") for line in deque(file, maxlen=count)]
    except FileNotFoundError:
        return []


def readable(line: str) -> str:
    """A line of JSON as people read it: local time, level, message, fields, traceback. Others stay as they are."""
    try:
        entry = json.loads(line)
        moment = datetime.fromisoformat(entry["time"]).astimezone()
        words = [f"{moment:%H:%M:%S}", f"{entry['level']:<7}", str(entry["message"])]
    except (ValueError, TypeError, KeyError):
        return line
    words += [f"{name}={value}" for name, value in entry.items() if name not in (*_LEADING, *_LEFT_OUT)]
    text = " ".join(words)
    return f"{text}\n{entry['traceback'].rstrip()}" if entry.get("traceback") else text


class LogFollower:
    """Gives the lines that are added to logs from now on, across rotations."""

    def __init__(self, logs: Sequence[Path]) -> None:
        self._logs = logs
        self._open: dict[Path, BinaryIO] = {}
        self._begun: dict[Path, bytes] = {}
        for log in logs:
            self._find(log, at_end=True)

    def new_lines(self) -> Iterator[tuple[str, str]]:
        """Each complete new line with the name of its log: ``("mllm", "…")``."""
        for log in self._logs:
            file = self._open.get(log)
            if file is not None:
                yield from self._read(log, file)
                if _was_rotated(file, log):
                    # For what was written to it since.
                    yield from self._read(log, file)
                    file.close()
                    del self._open[log]
            if log not in self._open:
                found = self._find(log, at_end=False)
                if found is not None:
                    yield from self._read(log, found)

    def _find(self, log: Path, at_end: bool) -> BinaryIO | None:
        try:
            file = log.open("rb")
        except FileNotFoundError:
            return None
        if at_end:
            file.seek(0, 2)
        self._open[log] = file
        return file

    def _read(self, log: Path, file: BinaryIO) -> Iterator[tuple[str, str]]:
        *lines, rest = (self._begun.get(log, b"") + file.read()).split(b"\n")
        self._begun[log] = rest
        for line in lines:
            yield log.stem, line.decode(errors="replace")


def _was_rotated(file: BinaryIO, log: Path) -> bool:
    """Whether another file is at ``log`` by now; between two files there is none for a moment."""
    try:
        return not os.path.samestat(os.fstat(file.fileno()), log.stat())
    except FileNotFoundError:
        return False
