"""Images that are drawn and edited, in the SDK and the command."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from email.parser import BytesParser
from pathlib import Path

import pytest
from PIL import Image
from pydantic import BaseModel

from gateway.chat_schema import AnswerExtension, ChatRequest, Delta
from gateway.drawing_schema import (
    CompletedImage,
    DrawingProgress,
    GenerationRequest,
    ImagesResponse,
    ImagesUsage,
    InputTokensDetails,
)
from gateway.results import GeneratedImageResult, PhraseResult, TimingEntry, ToolCallResult
from superlink import AsyncClient, Client
from superlink.client_errors import RequestFailed
from superlink.composition import GAP
from superlink.results import ToolCallChanged
from tests.superlink.conftest import Received, Reply, ScriptedGateway
from tests.superlink.gateway_replies import PROBLEM, chunk, event_stream, png, reply

USAGE = ImagesUsage(
    input_tokens=9, total_tokens=9, input_tokens_details=InputTokensDetails(text_tokens=9, image_tokens=0)
)
TIMINGS = [TimingEntry(service="diffusion", phase="compute", milliseconds=12.5)]


def made(side: int, seed: int) -> GeneratedImageResult:
    encoded = base64.b64encode(png(side)).decode()
    return GeneratedImageResult(b64_json=encoded, width=side, height=side, seed=seed)


def images(*entries: GeneratedImageResult) -> Reply:
    return reply(ImagesResponse(created=0, model="superlink-tiny", data=list(entries), usage=USAGE, timings=TIMINGS))


def image_stream(*entries: GeneratedImageResult, steps: int = 2) -> Reply:
    events: list[BaseModel] = [DrawingProgress(done=done, total=steps) for done in range(1, steps + 1)]
    events += [
        CompletedImage(
            type="image_generation.completed",
            created_at=0,
            model="superlink-tiny",
            size=f"{entry.width}x{entry.height}",
            usage=USAGE,
            timings=TIMINGS,
            **entry.model_dump(),
        )
        for entry in entries
    ]
    return event_stream(*(event.model_dump_json() for event in events))


def form_of(received: Received) -> dict[str, bytes]:
    document = BytesParser().parsebytes(
        b"content-type: " + received.headers["content-type"].encode() + b"\r\n\r\n" + received.body
    )
    return {
        str(part.get_param("name", header="content-disposition")): part.get_payload(decode=True)
        for part in document.get_payload()
    }


def test_generate_returns_pictures_that_can_be_saved(gateway: ScriptedGateway, tmp_path: Path) -> None:
    gateway.answer(images(made(8, 3), made(4, 4)))
    with Client(gateway.url) as client:
        drawn = client.generate("a cat", n=2, size=(128, 64), seed=3, steps=5, guidance=2.5)
    drawn.save(tmp_path / "cat.png")
    drawn.images[1].save(tmp_path / "other.png")

    assert drawn.image.size == (8, 8)
    assert [image.seed for image in drawn.images] == [3, 4]
    assert (drawn.model, drawn.request_id, drawn.timings[0].service) == ("superlink-tiny", "r-1", "diffusion")
    with Image.open(tmp_path / "other.png") as saved:
        assert saved.size == (4, 4)
    sent = GenerationRequest.model_validate_json(gateway.received[0].body)
    assert (sent.prompt, sent.n, sent.size) == ("a cat", 2, "128x64")
    assert (sent.superlink.seed, sent.superlink.steps, sent.superlink.guidance) == (3, 5, 2.5)
    assert not sent.stream


def test_progress_is_told_on_the_way(gateway: ScriptedGateway) -> None:
    gateway.answer(image_stream(made(8, 3), steps=3))
    seen: list[tuple[int, int]] = []
    with Client(gateway.url) as client:
        drawn = client.generate("a cat", on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert (drawn.images[0].seed, drawn.model, drawn.timings[0].milliseconds) == (3, "superlink-tiny", 12.5)
    assert gateway.received[0].json["stream"] is True


def test_a_drawing_that_fails_half_way_raises(gateway: ScriptedGateway) -> None:
    error = {"error": {"message": PROBLEM.detail, **PROBLEM.model_dump(exclude_none=True)}}
    gateway.answer(event_stream(DrawingProgress(done=1, total=2).model_dump_json(), json.dumps(error)))
    with Client(gateway.url) as client, pytest.raises(RequestFailed) as raised:
        client.generate("a cat", on_progress=lambda done, total: None)
    assert raised.value.code == "image_too_large"


def test_edit_uploads_the_image_and_the_mask(gateway: ScriptedGateway) -> None:
    gateway.answer(images(made(8, 3)))
    with Client(gateway.url) as client:
        edited = client.edit(png(16), "make it blue", mask=png(17), image_guidance=1.5)
    assert edited.image.size == (8, 8)
    form = form_of(gateway.received[0])
    assert (form["image"], form["mask"]) == (png(16), png(17))
    assert (form["prompt"], form["superlink[image_guidance]"]) == (b"make it blue", b"1.5")


async def test_the_asynchronous_client_does_the_same(gateway: ScriptedGateway) -> None:
    gateway.answer(image_stream(made(8, 3)), images(made(4, 4)))
    seen: list[tuple[int, int]] = []
    async with AsyncClient(gateway.url) as client:
        drawn = await client.generate("a cat", on_progress=lambda done, total: seen.append((done, total)))
        edited = await client.edit(png(), "blue")
    assert seen == [(1, 2), (2, 2)]
    assert (drawn.images[0].seed, edited.images[0].seed) == (3, 4)


def drawn_call(status: str = "completed") -> ToolCallResult:
    phrase = PhraseResult(phrase="a cat", route="[GEN]", images=[made(8, 5)] if status == "completed" else [])
    return ToolCallResult.model_validate(
        {
            "id": "call_0",
            "tool": "diffusion",
            "status": status,
            "phrases": [phrase],
            "progress": {"done": 1, "total": 2} if status == "running" else None,
        }
    )


def test_an_answer_has_the_images_that_it_drew(gateway: ScriptedGateway) -> None:
    gateway.answer(
        event_stream(
            chunk(Delta(superlink=AnswerExtension(tool_calls=[drawn_call("running")]))),
            chunk(Delta(superlink=AnswerExtension(tool_calls=[drawn_call()]))),
            chunk(Delta(), "stop"),
        )
    )
    with Client(gateway.url) as client:
        running, completed, last = client.chat(None, "Draw a cat", stream=True, drawing={"seed": 5})
    assert isinstance(running, ToolCallChanged)
    assert running.call.progress is not None
    assert (running.call.progress.done, running.call.phrases[0].images) == (1, ())
    assert [image.seed for image in last.answer.images] == [5]
    assert ChatRequest.model_validate_json(gateway.received[0].body).superlink.drawing.seed == 5


def superlink(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "superlink", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def test_the_command_writes_numbered_files_and_what_made_them(gateway: ScriptedGateway, tmp_path: Path) -> None:
    gateway.answer(image_stream(made(8, 3), made(4, 4)))
    out, written = tmp_path / "new" / "cat.png", tmp_path / "cat.json"
    arguments = ["generate", "a cat", "--out", str(out), "-n", "2", "--size", "128x64", "--url", gateway.url]
    result = superlink(*arguments, "--json", str(written))
    assert result.returncode == 0, result.stderr
    assert "seed 4" in result.stdout
    with Image.open(tmp_path / "new" / "cat-2.png") as second:
        assert second.size == (4, 4)
    entries = json.loads(written.read_text())["images"]
    assert [(entry["file"], entry["seed"]) for entry in entries] == [
        (str(tmp_path / "new" / "cat-1.png"), 3),
        (str(tmp_path / "new" / "cat-2.png"), 4),
    ]
    assert gateway.received[0].json["size"] == "128x64"


def test_the_command_edits_a_file(gateway: ScriptedGateway, tmp_path: Path) -> None:
    gateway.answer(image_stream(made(8, 3)))
    source, out = tmp_path / "in.png", tmp_path / "out.png"
    source.write_bytes(png(16))
    result = superlink("edit", str(source), "make it blue", "--out", str(out), "--seed", "3", "--url", gateway.url)
    assert result.returncode == 0, result.stderr
    assert out.read_bytes() == png(8)
    form = form_of(gateway.received[0])
    assert (form["image"], form["superlink[seed]"], form["stream"]) == (png(16), b"3", b"true")


def test_a_size_that_is_none_is_explained() -> None:
    result = superlink("generate", "a cat", "--size", "large", "--url", "http://127.0.0.1:9")
    assert result.returncode == 2
    assert "128x128" in result.stderr


def test_ask_writes_what_was_drawn_beside_the_image(gateway: ScriptedGateway, tmp_path: Path) -> None:
    call = chunk(Delta(superlink=AnswerExtension(tool_calls=[drawn_call()])))
    gateway.answer(event_stream(chunk(Delta(content="Here is a cat.")), call, chunk(Delta(), "stop")))
    source, out = tmp_path / "in.png", tmp_path / "out.png"
    source.write_bytes(png(64))
    result = superlink("ask", str(source), "Draw a cat", "--out", str(out), "--url", gateway.url)
    assert result.returncode == 0, result.stderr
    assert "a cat: an image of 8 x 8 pixels, seed 5" in result.stdout
    with Image.open(out) as picture:
        # Both 256 px high, as the annotated image is.
        assert picture.size == (256 + GAP + 256, 256)
