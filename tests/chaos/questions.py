"""What is asked of a stack under chaos, and whether an answer is the one that is known from before."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
from PIL import Image

from tests.chaos.plain_http import encode

SAMPLES = Path(__file__).resolve().parent.parent.parent / "assets" / "samples"
JSON = {"content-type": "application/json"}
# Another batch rounds otherwise: so far may answers to one question lie apart.
_BOX_PIXELS, _SCORE, _PIXEL_VALUES = 2.0, 0.05, 4.0


@dataclass(frozen=True)
class Found:
    """One thing that a tool found."""

    phrase: str
    # COCO's [x, y, width, height].
    box: tuple[float, ...]
    score: float
    has_mask: bool
    keypoints: int


@dataclass(frozen=True)
class Essence:
    """What of an answer must be the same whenever the question is asked."""

    text: str
    # By tool, of those that answered.
    found: Mapping[str, tuple[Found, ...]]
    images: tuple[bytes, ...]
    # The tools whose part failed, as the answer itself says.
    failed: frozenset[str]


@dataclass(frozen=True)
class Question:
    """A request that has one right answer."""

    name: str
    # The services that it needs beside the gateway and the orchestrator.
    needs: frozenset[str]
    # The request, with these headers beside its own.
    encode: Callable[[Mapping[str, str]], bytes]
    read: Callable[[Any], Essence]


def all_questions() -> tuple[Question, ...]:
    """One or more for every service of profile tiny."""
    return (detect(), segment(), pose(), draw(), greet(), two_tools(), keyed_detect())


def detect(name: str = "detect", image: bytes | None = None) -> Question:
    """Where are the dogs? By the fast path."""
    return _typed(name, "detection", "/v1/detect", image or sample("dogs"), "dog")


def keyed_detect() -> Question:
    """The same with an idempotency key, for which the gateway needs Redis."""
    plain = detect()

    def request(headers: Mapping[str, str]) -> bytes:
        return plain.encode({"idempotency-key": uuid4().hex, **headers})

    return Question("detect with a key", plain.needs | {"redis"}, request, plain.read)


def segment() -> Question:
    """Which pixels are the cow?"""
    return _typed("segment", "segmentation", "/v1/segment", sample("tour"), "cow")


def pose() -> Question:
    """Where are the person's joints?"""
    return _typed("pose", "pose", "/v1/pose", sample("tour"), "person")


def draw() -> Question:
    """A small picture in few steps."""
    body = json.dumps({"prompt": "a cat", "superlink": {"seed": 1, "steps": 2}}).encode()
    return Question(
        "draw", frozenset({"mllm", "diffusion"}), _posted("/v1/images/generations", JSON, body), _read_images
    )


def greet() -> Question:
    """Text alone."""
    return _chat("chat", "Hello", frozenset())


def two_tools() -> Question:
    """Text with the results of two tools."""
    return _chat(
        "chat with two tools",
        "Detect the butterfly and segment the cow.",
        frozenset({"detection", "segmentation"}),
    )


@cache
def sample(name: str) -> bytes:
    return (SAMPLES / f"{name}.png").read_bytes()


@cache
def small_image(number: int = 0, side: int = 64) -> bytes:
    """A sample in small, each number another one."""
    pixels = np.array(Image.open(io.BytesIO(sample("dogs"))).convert("RGB").resize((side, side)))
    pixels[0, :2] = np.frombuffer(number.to_bytes(6, "big"), np.uint8).reshape(2, 3)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


def data_url(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def same(known: Essence, answer: Essence) -> bool:
    """Whether what ``answer`` has is right; parts that it says have failed are not looked at."""
    return (
        answer.text == known.text
        and set(answer.found) | answer.failed >= set(known.found)
        and all(_same_things(known.found.get(tool, ()), things) for tool, things in answer.found.items())
        and len(answer.images) == len(known.images)
        and all(map(_same_images, known.images, answer.images))
    )


def _posted(path: str, fields: Mapping[str, str], body: bytes) -> Callable[[Mapping[str, str]], bytes]:
    return lambda headers: encode("POST", path, {**fields, **headers}, body)


def _typed(name: str, tool: str, path: str, image: bytes, category: str) -> Question:
    form = httpx.Request("POST", f"http://chaos{path}", files={"image": image}, data={"categories": category})
    request = _posted(path, {"content-type": form.headers["content-type"]}, form.read())

    def read(document: Any) -> Essence:
        return Essence("", {tool: _found(document["detections"], category)}, (), frozenset())

    return Question(name, frozenset({"mllm", tool}), request, read)


def _chat(name: str, words: str, tools: frozenset[str]) -> Question:
    content = [
        {"type": "text", "text": words},
        {"type": "image_url", "image_url": {"url": data_url(sample("tour"))}},
    ]
    body = json.dumps({"messages": [{"role": "user", "content": content}]}).encode()
    return Question(name, frozenset({"mllm"}) | tools, _posted("/v1/chat/completions", JSON, body), _read_chat)


def _read_chat(document: Any) -> Essence:
    message = document["choices"][0]["message"]
    found: dict[str, tuple[Found, ...]] = {}
    failed = set()
    for call in message["superlink"]["tool_calls"]:
        if call["status"] == "failed":
            failed.add(call["tool"])
            continue
        things = [thing for part in call["phrases"] for thing in _found(part["detections"], part["phrase"])]
        found[call["tool"]] = (*found.get(call["tool"], ()), *things)
    return Essence(message["content"], found, (), frozenset(failed))


def _read_images(document: Any) -> Essence:
    images = tuple(base64.b64decode(each["b64_json"]) for each in document["data"])
    return Essence("", {}, images, frozenset())


def _found(detections: Iterable[Any], phrase: str) -> tuple[Found, ...]:
    return tuple(
        Found(phrase, tuple(each["bbox"]), each["score"], "segmentation" in each, len(each.get("keypoints") or ()))
        for each in detections
    )


def _same_things(known: Iterable[Found], answer: Iterable[Found]) -> bool:
    # By place: scores that are nearly equal may change the order.
    pairs = (sorted(known, key=_place), sorted(answer, key=_place))
    return len(pairs[0]) == len(pairs[1]) and all(map(_same_thing, *pairs))


def _place(thing: Found) -> tuple[Any, ...]:
    return (thing.phrase, *(round(side / (2 * _BOX_PIXELS)) for side in thing.box))


def _same_thing(one: Found, other: Found) -> bool:
    return (
        (one.phrase, one.has_mask, one.keypoints) == (other.phrase, other.has_mask, other.keypoints)
        and math.isclose(one.score, other.score, abs_tol=_SCORE)
        and all(math.isclose(a, b, abs_tol=_BOX_PIXELS) for a, b in zip(one.box, other.box, strict=True))
    )


def _same_images(one: bytes, other: bytes) -> bool:
    pixels = [np.asarray(Image.open(io.BytesIO(image)).convert("RGB"), float) for image in (one, other)]
    return pixels[0].shape == pixels[1].shape and float(np.abs(pixels[0] - pixels[1]).mean()) <= _PIXEL_VALUES
