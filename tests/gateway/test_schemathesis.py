"""Requests made from the OpenAPI document: whatever is sent, the gateway answers as the document says, and never 5xx.

The gateway, the orchestrator, Redis and the file store are real; the workers play a script, so that thousands of
requests take minutes. All of schemathesis' checks are on.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from api_key_maker import REQUIRED, new_key
from live_gateway import LiveGateway, live_gateway
from live_redis import LiveRedis

pytestmark = pytest.mark.surface

REPOSITORY = Path(__file__).parents[2]
# Of the full test, in each of its runs.
LEAST_CASES = 2000


@pytest.fixture
async def gateway(redis_server: LiveRedis) -> AsyncIterator[LiveGateway]:
    """With everything in its document: keys, repetitions, files, batches (on which nobody works)."""
    # Phrases and prompts of any length that fits the document; what is too long for a deployment is tested elsewhere.
    settings = {"redis_url": redis_server.url, "keys": REQUIRED, "max_prompt_characters": 100_000, "max_phrases": 1000}
    async with live_gateway(request_timeout_s=60, batches={"enabled": True}, **settings) as running:
        yield running


async def check(gateway: LiveGateway, redis_server: LiveRedis, folder: Path, *options: str) -> dict[str, Any]:
    """Run schemathesis; returns its report."""
    key, _ = await new_key(redis_server.url, requests_per_minute=0, concurrent_requests=0, requests_per_day=0)
    report = folder / "report.json"
    program = [sys.executable, "-m", "schemathesis.cli", "run", f"{gateway.url}/openapi.json"]
    always = ["--checks", "all", "--header", f"Authorization: Bearer {key}", "--continue-on-failure", "--no-color"]
    always += ["--suppress-health-check", "all", "--report", "json", "--report-json-path", str(report)]
    running = await asyncio.create_subprocess_exec(
        *program,
        *always,
        *options,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "SCHEMATHESIS_HOOKS": "tests.gateway.schemathesis_hooks"},
    )
    told, _ = await running.communicate()
    assert running.returncode == 0, told.decode()[-20_000:]
    content: dict[str, Any] = json.loads(report.read_text())
    assert content["complete"]
    assert not content["errors"]
    return content


async def test_requests_from_the_document_are_answered_as_it_says(
    gateway: LiveGateway, redis_server: LiveRedis, tmp_path: Path
) -> None:
    report = await check(
        gateway, redis_server, tmp_path, "--phases", "examples,fuzzing,stateful", "--max-examples", "8", "--seed", "1"
    )

    assert report["test_cases"]["generated"] > 150
    assert {name for name, phase in report["phases"].items() if phase["status"] == "success"} == {
        "examples",
        "fuzzing",
        "stateful",
    }


@pytest.mark.slow
async def test_single_requests_by_the_thousand_are_answered_as_it_says(
    gateway: LiveGateway, redis_server: LiveRedis, tmp_path: Path
) -> None:
    """Other ones every time; a failure names the seed that makes them again."""
    report = await check(
        gateway, redis_server, tmp_path, "--phases", "examples,coverage,fuzzing", "--max-examples", "40"
    )

    assert report["test_cases"]["generated"] >= LEAST_CASES


@pytest.mark.slow
async def test_requests_that_follow_from_each_other_are_answered_as_it_says(
    gateway: LiveGateway, redis_server: LiveRedis, tmp_path: Path
) -> None:
    """Files are uploaded, read, listed and deleted in all orders; as many runs as it takes."""
    cases = 0
    while cases < LEAST_CASES:
        report = await check(gateway, redis_server, tmp_path, "--phases", "stateful", "--max-time", "60")
        assert report["test_cases"]["generated"]
        cases += report["test_cases"]["generated"]
