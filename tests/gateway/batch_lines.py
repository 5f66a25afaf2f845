"""Lines for the detector, and what must have become of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from batch_workers import rows_of
from live_gateway import LiveGateway
from request_bodies import data_url, encode_picture
from scripted_workers import detection, detections

from superlink.batch_store import open_batches


def detect_line(custom_id: str, **body: Any) -> bytes:
    request = {"image": data_url(encode_picture()), "categories": ["dog"], **body}
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/detect", "body": request}
    return json.dumps(line).encode() + b"\n"


def detect_lines(count: int) -> bytes:
    return b"".join(detect_line(f"line-{number}") for number in range(count))


def slow_detector(gateway: LiveGateway, seconds: float) -> None:
    gateway.workers.detection.script = lambda request: [seconds, detections([detection(0)])]


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 30.0) -> None:
    async with asyncio.timeout(timeout_s):
        while True:
            with contextlib.suppress(AssertionError):
                if await condition():
                    return
            await asyncio.sleep(0.05)


async def until_begun(gateway: LiveGateway, least: int = 1) -> None:
    async def has_begun() -> bool:
        return len(gateway.workers.detection.requests) >= least

    await until(has_begun)


async def expect_each_once(gateway: LiveGateway, batch: dict[str, Any], count: int, failed: int = 0) -> list[Any]:
    """Every line is in one of the files, once; returns the errors."""
    answers = await rows_of(gateway, batch["output_file_id"])
    errors = await rows_of(gateway, batch["error_file_id"])
    seen = Counter(row["custom_id"] for row in (*answers, *errors))
    assert seen == Counter(f"line-{number}" for number in range(count))
    assert (len(answers), len(errors)) == (count - failed, failed)
    assert batch["request_counts"] == {"total": count, "completed": count - failed, "failed": failed}
    assert all(row["error"] is None and row["response"]["status_code"] == 200 for row in answers)
    # Nothing of how it was worked on is left.
    stored = open_batches(gateway.workers.profile)

    async def is_closed() -> bool:
        return not await asyncio.to_thread(stored.open_names)

    await until(is_closed)
    assert not _shards(Path(gateway.workers.profile.artifacts.url))
    return errors


def _shards(folder: Path) -> list[Path]:
    return list(folder.rglob("shards/*"))
