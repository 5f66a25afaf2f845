"""API keys for tests, made by the store that the command uses."""

from typing import Any

import httpx

from superlink.api_keys import ApiKeys, KeyRecord
from superlink.redis_connection import connect

REQUIRED = {"required": True}


async def new_key(url: str, name: str = "test", **limits: int) -> tuple[str, KeyRecord]:
    async with connect(url) as redis:
        return await ApiKeys(redis).create(name, limits)


def bearer(key: str, **headers: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}", **headers}


def expect_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert (response.status_code, response.json().get("code")) == (status, code), response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["request_id"] == response.headers["x-request-id"]
    return problem
