"""A Redis that answers and takes nothing, because its memory is full."""

from __future__ import annotations

import pytest
from live_gateway import live_gateway
from live_redis import LiveRedis

pytestmark = pytest.mark.faults


async def test_a_full_redis_is_named_and_refuses_only_who_needs_it(redis_server: LiveRedis, png: bytes) -> None:
    form = {"files": {"image": png}, "data": {"categories": "dog"}}
    async with live_gateway(redis_url=redis_server.url) as gateway:
        assert (await gateway.http.get("/readyz")).status_code == 200
        with redis_server.client() as client:
            client.config_set("maxmemory", 1)
            try:
                ready = await gateway.http.get("/readyz")
                keyed = await gateway.http.post("/v1/detect", **form, headers={"idempotency-key": "order-1"})
                plain = await gateway.http.post("/v1/detect", **form)
            finally:
                client.config_set("maxmemory", 0)
        assert ready.status_code == 503
        assert "redis" in ready.json()["detail"]
        assert "no memory left" in ready.json()["detail"]
        assert (keyed.status_code, keyed.json()["code"]) == (503, "redis_unavailable")
        assert "no memory left" in keyed.json()["message"]
        assert plain.status_code == 200
        assert (await gateway.http.get("/readyz")).status_code == 200
        again = await gateway.http.post("/v1/detect", **form, headers={"idempotency-key": "order-1"})
        assert again.status_code == 200
