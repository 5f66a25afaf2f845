"""``superlink keys``: a key is shown once, listed without its secret, and ended for good."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from superlink.api_keys import ApiKeys
from superlink.errors import SuperlinkError
from superlink.redis_connection import URL_VARIABLE, connect
from tests.gateway.live_redis import LiveRedis, live_redis

pytestmark = pytest.mark.surface


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRedis]:
    with live_redis(tmp_path_factory.mktemp("redis")) as running:
        yield running


def keys(*arguments: str, redis: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "superlink", "keys", *arguments]
    environment = {**os.environ, URL_VARIABLE: redis, "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


async def code_of(server: LiveRedis, key: str) -> str:
    """The error that the key meets; empty where it is valid."""
    async with connect(server.url) as redis:
        try:
            await ApiKeys(redis).verify(key)
        except SuperlinkError as error:
            return error.code
    return ""


async def test_a_key_lives_from_its_creation_to_its_revocation(server: LiveRedis, tmp_path: Path) -> None:
    created = keys("create", "the annotation team", "--requests-per-day", "7", redis=server.url)
    assert created.returncode == 0, created.stderr
    [key] = created.stdout.split()
    key_id = key.split("_")[1]
    assert key_id in created.stderr
    assert key not in created.stderr
    assert "gateway.keys.required" in created.stderr
    assert await code_of(server, key) == ""

    file = tmp_path / "keys.json"
    listed = keys("list", "--json", str(file), redis=server.url)
    for word in (key_id, "the annotation team", "valid", "7"):
        assert word in listed.stdout
    for text in (listed.stdout, listed.stderr, file.read_text()):
        assert key.rpartition("_")[2] not in text
        assert "sha256" not in text
    [record] = json.loads(file.read_text())
    assert (record["id"], record["requests_per_day"], record["requests_per_minute"]) == (key_id, 7, 60)

    revoked = keys("revoke", key_id, redis=server.url)
    assert revoked.returncode == 0, revoked.stderr
    assert await code_of(server, key) == "revoked_api_key"
    assert "revoked" in keys("list", redis=server.url).stdout


def test_the_profile_names_the_redis(server: LiveRedis) -> None:
    result = keys("list", "--set", f"gateway.redis_url={server.url}")

    assert result.returncode == 0, result.stderr


@pytest.mark.faults
def test_what_cannot_be_done_is_said_without_a_traceback(server: LiveRedis) -> None:
    attempts = [
        (keys("revoke", "0123456789abcdef", redis=server.url), 1, "There is no key '0123456789abcdef'"),
        (keys("list", redis="redis://:word@127.0.0.1:1"), 1, "Redis does not answer"),
        (keys("list", redis="localhost"), 2, "no address of a Redis"),
    ]
    for result, code, word in attempts:
        assert result.returncode == code, result.stderr
        assert word in " ".join(result.stderr.split())
        assert "Traceback" not in result.stderr
        assert ":word@" not in result.stderr


@pytest.mark.parametrize("command", ["create", "list", "revoke"])
def test_every_help_has_an_example(command: str) -> None:
    assert f"Example: superlink keys {command}" in " ".join(keys(command, "--help").stdout.split())
