"""``superlink up`` as a person runs it, and what other terminals see of it; the tests share one stack, in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from superlink.ports import free_port_overrides
from superlink.profile import Profile, find_profile, load_profile
from superlink.redis_connection import URL_VARIABLE

pytestmark = pytest.mark.surface

PROCESSES = ["redis", "mllm", "detection", "orchestrator", "gateway", "batches"]
# No settings from the environment of the tests.
ENVIRONMENT = {**os.environ, URL_VARIABLE: "", "SUPERLINK_URL": "", "COLUMNS": "200"}


class LocalSuperlink:
    """A stack of the MLLM and the detector that needs API keys, and names no Redis."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state"
        self._profile = folder / "small.yaml"
        whole = load_profile(find_profile("tiny"), {"mllm.threads": 1, "decoders.detection.threads": 1})
        small = whole.model_copy(update={"decoders": {"detection": whole.decoders["detection"]}})
        self._profile.write_text(yaml.safe_dump(small.model_dump(mode="json")), encoding="utf-8")
        overrides = {**free_port_overrides(small), "gateway.keys.required": True}
        self.profile: Profile = load_profile(self._profile, overrides)
        self._profile.write_text(yaml.safe_dump(self.profile.model_dump(mode="json")), encoding="utf-8")
        self.process = self.popen("up")
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        assert "Superlink runs at" in self.process.stdout.readline(), self.process.stderr.read()

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "superlink", *arguments, "-p", str(self._profile), "--state", str(self.state)]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, start_new_session=True
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        with self.popen(*arguments) as process:
            said, noted = process.communicate(timeout=120)
        return subprocess.CompletedProcess(process.args, process.returncode, said, noted)

    def status(self) -> tuple[int, dict[str, Any]]:
        result = self.run("status", "--json", "-")
        return result.returncode, json.loads(result.stdout)

    def key(self, *options: str) -> str:
        created = self.run("keys", "create", "me", *options)
        assert created.returncode == 0, created.stderr
        return created.stdout.strip()

    def detect(self, key: str, image: bytes, **headers: str) -> httpx.Response:
        return httpx.post(
            f"{self.profile.gateway.url}/v1/detect",
            files={"image": image},
            data={"categories": "dog"},
            headers={"authorization": f"Bearer {key}", **headers},
            timeout=60,
        )


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSuperlink]:
    stack = LocalSuperlink(tmp_path_factory.mktemp("local"))
    try:
        yield stack
    finally:
        stack.process.kill()
        stack.process.communicate()


def wait_until(condition: Callable[[], bool], within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_status_tells_how_every_process_fares(local: LocalSuperlink) -> None:
    code, status = local.status()
    assert code == 0
    assert status["ready"]
    assert status["pid"] == local.process.pid
    processes = {process["name"]: process for process in status["processes"]}
    assert list(processes) == PROCESSES
    for process in processes.values():
        assert (process["state"], process["ready"], process["reason"]) == ("running", True, "")
        assert (process["restarts"], process["last_end"]) == (0, "")
        assert Path(f"/proc/{process['pid']}").exists()
        assert process["memory_bytes"] > 1024**2
        assert process["uptime_s"] > 0
    assert processes["gateway"]["port"] == local.profile.gateway.port
    assert processes["mllm"]["address"] == local.profile.mllm.address
    assert processes["mllm"]["metrics_port"] == local.profile.mllm.metrics_port
    assert processes["redis"]["port"] is None
    # A flood that the gateway refuses must not take the models' time.
    niceness = {name: os.getpriority(os.PRIO_PROCESS, process["pid"]) for name, process in processes.items()}
    assert niceness["gateway"] > niceness["detection"] == niceness["mllm"]

    table = local.run("status")
    assert table.returncode == 0
    for word in (*PROCESSES, "ready", str(local.profile.gateway.port), "MiB"):
        assert word in table.stdout


def test_keys_limits_and_repetitions_work_without_any_set_up(local: LocalSuperlink, sample: bytes) -> None:
    assert local.detect("sl_0_0", sample).status_code == 401
    key = local.key("--requests-per-minute", "2")
    first = local.detect(key, sample, **{"idempotency-key": "order-1"})
    assert first.status_code == 200, first.text
    again = local.detect(key, sample, **{"idempotency-key": "order-1"})
    assert again.headers["idempotency-replayed"] == "true"
    assert again.json() == first.json()
    assert local.detect(key, sample).json()["code"] == "rate_limited"


def test_a_second_stack_in_the_same_folder_is_refused(local: LocalSuperlink) -> None:
    second = local.run("up")
    assert second.returncode == 1
    said = " ".join(second.stderr.split())
    assert f"A stack runs already with the state folder {local.state} (process {local.process.pid})" in said
    assert "--state FOLDER" in said
    assert "started" not in said
    assert local.status()[0] == 0


def test_logs_are_shown_to_people(local: LocalSuperlink) -> None:
    shown = local.run("logs", "mllm", "stack", "--lines", "50")
    assert shown.returncode == 0
    assert f"ready address={local.profile.mllm.address}" in shown.stdout
    assert f"detail={local.profile.gateway.url}" in shown.stdout
    assert "{" not in shown.stdout
    unknown = local.run("logs", "mlm")
    assert unknown.returncode == 2
    assert "mllm" in unknown.stderr


@pytest.mark.faults
def test_a_killed_redis_is_started_anew_and_forgets_no_key(local: LocalSuperlink, sample: bytes) -> None:
    key = local.key()
    redis = next(process for process in local.status()[1]["processes"] if process["name"] == "redis")
    os.kill(redis["pid"], signal.SIGKILL)
    wait_until(lambda: local.status()[0] == 0)
    healed = next(process for process in local.status()[1]["processes"] if process["name"] == "redis")
    assert (healed["restarts"], healed["last_end"]) == (1, "signal SIGKILL")
    assert healed["pid"] != redis["pid"]
    assert local.detect(key, sample).status_code == 200


@pytest.mark.faults
def test_status_says_what_is_wrong(local: LocalSuperlink) -> None:
    detection = next(process for process in local.status()[1]["processes"] if process["name"] == "detection")
    os.kill(detection["pid"], signal.SIGKILL)
    code, status = local.status()
    away = next(process for process in status["processes"] if process["name"] == "detection")
    assert code == 1
    assert not status["ready"]
    assert not away["ready"]
    assert away["reason"]
    wait_until(lambda: local.status()[0] == 0, within_s=120)


@pytest.mark.faults
def test_a_killed_stack_leaves_nothing_behind_but_its_keys(local: LocalSuperlink) -> None:
    key = local.key()
    sessions = {process["pid"] for process in local.status()[1]["processes"]}
    # Each has a session of its own.
    assert sessions <= set(sessions_that_run())
    local.process.kill()
    wait_until(lambda: not sessions & set(sessions_that_run()))
    stopped = local.run("status")
    assert stopped.returncode == 1
    assert "superlink up" in stopped.stderr
    assert key.split("_")[1] in local.run("keys", "list").stdout


def sessions_that_run() -> Iterator[int]:
    """The session of every process, guards included; zombies do not run."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session, *_ = file.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            yield int(session)
