"""Every kind of bad input in one batch, between good ones."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

from PIL import Image

from tests.chaos.batch_results import Results, client_of, line, start_batch, wait_for
from tests.chaos.load import Load
from tests.chaos.questions import Essence, data_url, detect, same, sample, small_image
from tests.chaos.rows import Row, Tell
from tests.chaos.stack import ChaosStack

SCENARIO = "poisoned batch"
ENDPOINT = "/v1/detect"
GOOD_BETWEEN = 3
TIMEOUT_S = 600.0
PROMISE = "every bad line has an error of its own that is no 5xx; every other line is answered, and rightly"


async def run(stack: ChaosStack, tell: Tell) -> list[Row]:
    """One row."""
    good = detect("good", small_image())
    load = Load(stack.url, (good,))
    await load.learn()
    load.close()
    bad = bad_lines()
    tell(f"{len(bad)} kinds of bad lines")
    results, numbers = await asyncio.to_thread(_answered, stack, bad)
    restarts = stack.restarts()
    return [_row(results, numbers, load.known["good"], restarts)]


def bad_lines() -> Mapping[str, bytes]:
    """By what is wrong with them."""
    images = {
        "not an image": b"this is not an image" * 50,
        "an empty image": b"",
        "a truncated PNG": sample("dogs")[:2000],
        "a broken PNG": sample("dogs")[:600] + bytes(400) + sample("dogs")[1000:],
        "a TIFF of 40 pages": _tiff(40),
        "a GIF": _encoded("GIF"),
        "a PNG of 30 000 x 30 000": _bomb(30_000),
        "a PNG of 13 000 x 13 000": _bomb(13_000),
        "a PNG that is 100 000 wide": _encoded("PNG", (100_000, 1)),
    }
    bodies: dict[str, Any] = {name: {"image": data_url(image), "categories": ["dog"]} for name, image in images.items()}
    whole = {"image": data_url(small_image()), "categories": ["dog"]}
    bodies |= {
        "no image": {"categories": ["dog"]},
        "no categories": {"image": whole["image"]},
        "empty categories": {**whole, "categories": ["", " "]},
        "categories that are no list": {**whole, "categories": 5},
        "too long a category": {**whole, "categories": ["dog " * 2000]},
        "too many categories": {**whole, "categories": [f"thing {number}" for number in range(101)]},
        "an unknown field": {**whole, "categoris": ["dog"]},
        "an unknown model": {**whole, "model": "gpt-9"},
        "an image that is no data URL": {**whole, "image": "dogs.png"},
        "an image that is no base64": {**whole, "image": "data:image/png;base64,!!!!"},
        "an image at a private address": {**whole, "image": "http://169.254.169.254/latest/meta-data"},
        "a file that is not there": {**whole, "image": "file-0123456789abcdef"},
        "a threshold of the wrong type": {**whole, "score_threshold": "high"},
        "a threshold out of range": {**whole, "score_threshold": 7},
        "a stream": {**whole, "stream": True},
        "an empty body": {},
    }
    lines = {name: line(name, ENDPOINT, body) for name, body in bodies.items()}
    as_document = {"custom_id": "", "method": "POST", "url": ENDPOINT, "body": whole}
    documents: dict[str, Any] = {
        "another method": {"method": "GET"},
        "another endpoint": {"url": "/v1/segment"},
        "an unknown endpoint": {"url": "/v1/nothing"},
        "a body that is no object": {"body": [1]},
        "an unknown member": {"boddy": {}},
    }
    lines |= {name: json.dumps({**as_document, "custom_id": name, **part}).encode() for name, part in documents.items()}
    return {
        **lines,
        "no custom_id": json.dumps({key: value for key, value in as_document.items() if key != "custom_id"}).encode(),
        "a custom_id that is a number": json.dumps({**as_document, "custom_id": 5}).encode(),
        "no JSON": b"{nonsense",
        "JSON that is cut off": line("cut off", ENDPOINT, whole)[:200],
        "JSON that is no object": b"[1, 2]",
        "not a number": line("not a number", ENDPOINT, {**whole, "score_threshold": 0.5}).replace(b"0.5", b"NaN"),
        "bytes that are no UTF-8": b"\xff\xfe\xfd{}",
        "nested 10 000 deep": b'{"custom_id": "deep", "body": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        "a line of 20 MB": line("20 MB", ENDPOINT, {**whole, "image": "data:image/png;base64," + "A" * 20_000_000}),
        # The first of them is one of the good lines.
        "a custom_id for the second time": line("good 0", ENDPOINT, whole),
    }


def _answered(stack: ChaosStack, bad_lines: Mapping[str, bytes]) -> tuple[Results, Mapping[int, str]]:
    """The results, and what is wrong with the lines of these numbers."""
    body = {"image": data_url(small_image()), "categories": ["dog"]}
    lines: list[bytes] = []
    numbers: dict[int, str] = {}
    good = 0
    for name, bad in bad_lines.items():
        for _ in range(GOOD_BETWEEN):
            lines.append(line(f"good {good}", ENDPOINT, body))
            good += 1
        lines.append(bad)
        numbers[len(lines)] = name
    with client_of(stack) as client:
        return wait_for(client, start_batch(client, lines, ENDPOINT), TIMEOUT_S), numbers


def _row(results: Results, numbers: Mapping[int, str], known: Essence, restarts: int) -> Row:
    good = len(numbers) * GOOD_BETWEEN
    reading = detect().read
    right = {row["custom_id"] for row in results.answered if same(known, reading(row["response"]["body"]))}
    spoiled = [f"good {number}" for number in range(good) if f"good {number}" not in right]
    errors = {row["error"]["line"]: row for row in results.errors}
    forgiven = [name for number, name in numbers.items() if number not in errors]
    blamed = [name for number, name in numbers.items() if number in errors and errors[number]["error"]["status"] >= 500]
    codes = {row["error"]["code"] for row in results.errors}
    extra = len(results.answered) + len(results.errors) - good - len(numbers)
    measured = (
        f"{len(results.errors)} errors with {len(codes)} codes for {len(numbers)} kinds of bad lines; "
        f"{len(forgiven)} had none, {len(blamed)} were a 5xx; "
        f"{good - len(spoiled)} of {good} good lines answered rightly; {restarts} restarts"
    )
    if forgiven or blamed or spoiled:
        measured += f" ({'; '.join([*forgiven, *blamed, *spoiled][:5])})"
    return Row(
        scenario=SCENARIO,
        done=f"{len(numbers)} bad lines among {good} good ones",
        promise=PROMISE,
        measured=measured,
        holds=results.batch.status == "completed" and not (forgiven or blamed or spoiled or extra or restarts),
        figures={
            "bad": len(numbers),
            "good": good,
            "without_error": len(forgiven),
            "5xx": len(blamed),
            "good_spoiled": len(spoiled),
            "restarts": restarts,
        },
    )


def _encoded(kind: str, size: tuple[int, int] = (64, 64)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size).save(content, kind)
    return content.getvalue()


def _tiff(pages: int) -> bytes:
    content = io.BytesIO()
    page = Image.new("RGB", (64, 64))
    page.save(content, "TIFF", save_all=True, append_images=[page] * (pages - 1))
    return content.getvalue()


def _bomb(side: int) -> bytes:
    """A PNG of side x side pixels in a few hundred kilobytes."""

    def block(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + block(b"IHDR", header) + block(b"IDAT", rows) + block(b"IEND", b"")
