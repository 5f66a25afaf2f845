"""Workers of batches, ``python -m orchestrator.batches``, in processes of their own, beside a live gateway."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import yaml
from live_gateway import LiveGateway, live_gateway
from live_redis import LiveRedis

REPOSITORY = Path(__file__).parents[2]
ENABLED = {"enabled": True, "max_shard_lines": 5}
BATCH_TIMEOUT_S = 90.0


class BatchWorker:
    """One worker process; may be started again after it ended."""

    def __init__(self, folder: Path, profile: dict[str, Any]) -> None:
        self._file = folder / "batches.yaml"
        self._file.write_text(yaml.safe_dump(profile), encoding="utf-8")
        self.log = folder / "batches.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("SUPERLINK_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator.batches", "--profile", str(self._file)],
                stdout=log,
                stderr=log,
                cwd=REPOSITORY,
                env=environment,
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def is_running(self) -> bool:
        """Whether it has not ended since it was started."""
        return self.process is not None and self.process.poll() is None

    def children(self) -> list[int]:
        """The processes in which steps are done."""
        assert self.process is not None
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(word) for word in listed.split()]

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def is_ready(self) -> bool:
        return any(entry["message"] == "ready" for entry in self.entries())


@contextlib.contextmanager
def batch_worker(folder: Path, gateway: LiveGateway, **batches: Any) -> Iterator[BatchWorker]:
    """``batches``: other settings than the gateway's."""
    profile = gateway.workers.profile.model_dump(mode="json")
    profile["batches"] |= {"gateway_url": gateway.url, **batches}
    folder.mkdir(exist_ok=True)
    worker = BatchWorker(folder, profile)
    worker.start()
    try:
        yield worker
    finally:
        if worker.process is not None and worker.process.poll() is None:
            worker.kill()


@contextlib.asynccontextmanager
async def batch_gateway(redis: LiveRedis, **settings: Any) -> AsyncIterator[LiveGateway]:
    """A gateway with batches, on which nobody works yet."""
    batches = {**ENABLED, **settings.pop("batches", {})}
    async with live_gateway(redis_url=redis.url, batches=batches, **settings) as running:
        yield running


async def upload(gateway: LiveGateway, content: bytes, **headers: str) -> str:
    response = await gateway.http.post(
        "/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": "batch"}, headers=headers
    )
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


async def order(
    gateway: LiveGateway,
    content: bytes,
    endpoint: str = "/v1/detect",
    headers: dict[str, str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    body = {
        "input_file_id": await upload(gateway, content, **(headers or {})),
        "endpoint": endpoint,
        "completion_window": "24h",
        **more,
    }
    response = await gateway.http.post("/v1/batches", json=body, headers=headers)
    assert response.status_code == 200, response.text
    batch: dict[str, Any] = response.json()
    return batch


async def look(gateway: LiveGateway, batch: dict[str, Any], headers: dict[str, str] | None = None) -> dict[str, Any]:
    response = await gateway.http.get(f"/v1/batches/{batch['id']}", headers=headers)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def until_over(
    gateway: LiveGateway,
    batch: dict[str, Any],
    timeout_s: float = BATCH_TIMEOUT_S,
    headers: dict[str, str] | None = None,
) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(AssertionError):
            # Whoever kills Redis in between does not wait for it.
            found = await look(gateway, batch, headers)
            if found["status"] in ("completed", "failed", "expired", "cancelled"):
                return found
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.1)


async def rows_of(
    gateway: LiveGateway, file_id: str | None, headers: dict[str, str] | None = None
) -> list[dict[str, Any]]:
    if file_id is None:
        return []
    response = await gateway.http.get(f"/v1/files/{file_id}/content", headers=headers)
    assert response.status_code == 200, response.text
    assert response.content.endswith(b"\n")
    return [json.loads(line) for line in response.content.splitlines()]
