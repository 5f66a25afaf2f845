"""A store of files that takes connections and never answers: only requests for files wait for it."""

from __future__ import annotations

import asyncio
import os
import socket
import time

import pytest
from live_gateway import live_gateway
from s3fs import S3FileSystem

pytestmark = pytest.mark.faults

# More than the threads of an event loop.
UPLOADS = 2 * ((os.cpu_count() or 1) + 4)


async def test_a_silent_store_holds_up_nobody_else(monkeypatch: pytest.MonkeyPatch, png: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent.getsockname()[1]}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
            monkeypatch.setenv(name, "test")
        S3FileSystem.clear_instance_cache()
        async with live_gateway(artifacts={"url": "s3://bucket/folder"}) as gateway:
            uploads = [
                asyncio.create_task(
                    gateway.http.post(
                        "/v1/files", files={"file": ("a.png", png)}, data={"purpose": "vision"}, timeout=60
                    )
                )
                for _ in range(UPLOADS)
            ]
            await asyncio.sleep(0.5)
            began = time.monotonic()
            drawn = await gateway.http.post(
                "/v1/detect", files={"image": png}, data={"categories": "dog", "overlay": "true"}
            )
            assert drawn.status_code == 200, drawn.text
            assert time.monotonic() - began < 3
            replies = await asyncio.gather(*uploads)
            # Not the six minutes of s3fs and botocore.
            assert time.monotonic() - began < 30
            assert {(each.status_code, each.json()["code"]) for each in replies} == {(503, "storage_unavailable")}
