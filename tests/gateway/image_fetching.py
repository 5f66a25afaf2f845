"""Asking a gateway about images that it has to fetch.

The tests stay on this machine. 127.0.0.1 stands for the public internet (the profile allows it), 127.0.0.2 for the
private network that nobody must reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import httpx
from image_server import ImageServer
from live_gateway import LiveGateway
from request_bodies import chat_body

from superlink.public_addresses import Address

PRIVATE = "127.0.0.2"


class Names:
    """A resolver whose answers the tests decide, look-up by look-up; the last one stays."""

    def __init__(self) -> None:
        self.answers: dict[str, list[list[str]]] = {}
        self.asked: list[str] = []

    async def __call__(self, host: str) -> Sequence[Address]:
        self.asked.append(host)
        if host not in self.answers:
            try:
                return [ip_address(host)]
            except ValueError as error:
                raise OSError(f"nobody knows {host}") from error
        answers = self.answers[host]
        return [ip_address(each) for each in (answers.pop(0) if len(answers) > 1 else answers[0])]


def settings_for(image_host: ImageServer, **others: Any) -> dict[str, Any]:
    return {
        "enabled": True,
        "ports": [80, 443, image_host.port],
        "allowed_networks": ["127.0.0.1/32"],
        "timeout_s": 5.0,
        **others,
    }


async def detect(gateway: LiveGateway, url: str) -> httpx.Response:
    return await gateway.http.post("/v1/detect", json={"image": url, "phrase": "dog"})


def show(url: str, words: str = "Where is the dog?") -> dict[str, Any]:
    body = chat_body(words)
    body["messages"][0]["content"].insert(0, {"type": "image_url", "image_url": {"url": url}})
    return body


def requests_to_every_endpoint(url: str) -> dict[str, tuple[str, dict[str, Any]]]:
    answered = {"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": url}}]}
    again = {"messages": [*chat_body("Draw a dog.")["messages"], answered, {"role": "user", "content": "What is it?"}]}
    return {
        "chat": ("/v1/chat/completions", show(url)),
        "an image that an answer made": ("/v1/chat/completions", again),
        "detect": ("/v1/detect", {"image": url, "phrase": "dog"}),
        "segment": ("/v1/segment", {"image": url, "phrase": "dog"}),
        "pose": ("/v1/pose", {"image": url, "phrase": "person"}),
        "edit": ("/v1/images/edits", {"image": url, "prompt": "make the dog blue"}),
    }
