"""Logs of processes: kept in numbers, followed across rotations, and readable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from superlink.log_files import KEPT_LOGS, LogFollower, append_entry, last_lines, readable, rotate


def test_the_newest_logs_are_kept(tmp_path: Path) -> None:
    log = tmp_path / "mllm.log"
    for number in range(KEPT_LOGS + 3):
        log.write_text(str(number))
        rotate(log)
    kept = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert kept == {f"mllm.log.{age}": str(KEPT_LOGS + 3 - age) for age in range(1, KEPT_LOGS + 1)}


def test_lines_are_followed_across_a_rotation(tmp_path: Path) -> None:
    mllm, other = tmp_path / "mllm.log", tmp_path / "other.log"
    mllm.write_text("before\n")
    follower = LogFollower([mllm, other])
    writer = mllm.open("a")
    writer.write("one\ntw")
    writer.flush()
    assert list(follower.new_lines()) == [("mllm", "one")]
    writer.write("o\n")
    rotate(mllm)
    # Its writer has not noticed yet.
    writer.write("three\n")
    writer.close()
    assert list(follower.new_lines()) == [("mllm", "two"), ("mllm", "three")]
    mllm.write_text("four\n")
    other.write_text("five\n")
    assert list(follower.new_lines()) == [("mllm", "four"), ("other", "five")]
    assert list(follower.new_lines()) == []


def test_a_line_of_json_is_put_into_words(tmp_path: Path) -> None:
    log = tmp_path / "stack.log"
    append_entry(log, "warning", "mllm draining", detail="held 3 GiB")
    [line] = last_lines(log, 5)
    assert readable(line)[8:] == " warning mllm draining detail=held 3 GiB"
    moment = json.loads(line)["time"]
    traced = json.dumps({"time": moment, "level": "error", "message": "failed", "traceback": "Traceback\n  line 1"})
    assert readable(traced).splitlines()[1:] == ["Traceback", "  line 1"]


@pytest.mark.parametrize("line", ["plain words", "7", "{}", '{"time": "never", "level": "info", "message": "m"}', ""])
def test_other_lines_stay_as_they_are(line: str) -> None:
    assert readable(line) == line


def test_only_the_last_lines_are_shown(tmp_path: Path) -> None:
    log = tmp_path / "mllm.log"
    assert last_lines(log, 2) == []
    log.write_text("one\ntwo\nthree\n")
    assert last_lines(log, 2) == ["two", "three"]
