"""Files, keyed requests and live requests, as clients of a stack whose stores fail send them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import uuid4

import httpx

from tests.chaos.questions import sample

FILE_BYTES = 200 * 1024
# Longer than any request of these may take.
TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Reply:
    """What came of one request."""

    status: int
    # The code of the problem; empty where there is none.
    code: str
    seconds: float
    document: dict[str, object]
    # False of an answer that says that a repetition with its key would be done again.
    is_kept: bool = True


@dataclass
class Clients:
    """Of one gateway; they remember what they were promised."""

    url: str
    # Of every request.
    headers: Mapping[str, str] = field(default_factory=dict)
    # Contents by the id under which they were accepted.
    uploaded: dict[str, bytes] = field(default_factory=dict)
    # Answers by idempotency key, of those that were kept.
    answered: dict[str, object] = field(default_factory=dict)

    def upload(self) -> Reply:
        """A new file of random bytes."""
        content = os.urandom(FILE_BYTES)
        reply = self._send("POST", "/v1/files", files={"file": ("chaos.bin", content)}, data={"purpose": "vision"})
        if reply.status == 200:
            self.uploaded[str(reply.document["id"])] = content
        return reply

    def detect(self) -> Reply:
        """Needs no store."""
        return self._send("POST", "/v1/detect", files={"image": sample("dogs")}, data={"categories": "dog"})

    def detect_with_key(self, key: str | None = None) -> Reply:
        """Needs Redis; ``key``: that of a request before."""
        key = key or uuid4().hex
        # A body is known again by its bytes, so the boundary must be the same.
        headers = {"idempotency-key": key, "content-type": "multipart/form-data; boundary=chaos"}
        reply = self._send(
            "POST", "/v1/detect", files={"image": sample("dogs")}, data={"categories": "dog"}, headers=headers
        )
        if reply.status == 200 and reply.is_kept:
            self.answered.setdefault(key, reply.document)
        return reply

    def listed(self) -> set[str]:
        """The ids of all files that there are."""
        reply = self._send("GET", "/v1/files?limit=1000")
        assert reply.status == 200, reply
        data = reply.document["data"]
        assert isinstance(data, list)
        return {each["id"] for each in data}

    def state(self) -> str:
        """What ``/readyz`` says of the deployment."""
        reply = self._send("GET", "/readyz")
        return "ready" if reply.status == 200 else str(reply.document.get("detail", reply.code))

    def damage(self) -> list[str]:
        """What is not as it was promised: files lost, changed or there without having been accepted, and answers."""
        found = []
        for file_id, content in self.uploaded.items():
            path = f"/v1/files/{file_id}/content"
            response = httpx.get(f"{self.url}{path}", headers=self.headers, timeout=TIMEOUT_S)
            if response.content != content:
                found.append(f"{file_id} is not what was uploaded")
        found += [f"{file_id} was never accepted" for file_id in self.listed() - set(self.uploaded)]
        for key, document in tuple(self.answered.items()):
            if self.detect_with_key(key).document != document:
                found.append(f"the answer to key {key} was forgotten")
        return found

    def _send(self, method: str, path: str, headers: Mapping[str, str] | None = None, **content: object) -> Reply:
        began = time.monotonic()
        every = {**self.headers, **(headers or {})}
        try:
            response = httpx.request(method, f"{self.url}{path}", headers=every, timeout=TIMEOUT_S, **content)  # type: ignore[arg-type]
        except httpx.HTTPError as error:
            return Reply(0, type(error).__name__, time.monotonic() - began, {})
        document: dict[str, object] = {}
        with suppress(ValueError):
            document = response.json()
        is_kept = response.headers.get("idempotency-kept") != "false"
        return Reply(response.status_code, str(document.get("code", "")), time.monotonic() - began, document, is_kept)


def until(attempt: Callable[[], Reply], status: int, timeout_s: float) -> float:
    """Seconds until ``attempt`` has that status; infinite where it has not got it in time."""
    began = time.monotonic()
    while time.monotonic() - began < timeout_s:
        if attempt().status == status:
            return time.monotonic() - began
        time.sleep(0.1)
    return float("inf")
