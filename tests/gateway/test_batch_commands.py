"""`superlink batch` and `client.batches` in front of a gateway and a worker of batches."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from batch_workers import REPOSITORY, batch_gateway
from live_gateway import LiveGateway
from live_redis import LiveRedis
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from request_bodies import data_url, encode_picture
from scripted_workers import Step, detection, detections

from superlink import AsyncClient, Client
from superlink.batch_results import BatchJob, LineResult
from superlink.client_errors import NotFound
from superlink.v1 import decoder_pb2

pytestmark = pytest.mark.surface

IMAGES = 30


@pytest.fixture
async def gateway(redis_server: LiveRedis) -> AsyncIterator[LiveGateway]:
    async with batch_gateway(redis_server) as running:
        yield running


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    for number in range(IMAGES):
        Image.new("RGB", (32, 24), (number, 0, 0)).save(folder / ("sub" if number % 2 else "") / f"{number:02}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(autouse=True)
def heeded_interrupts() -> Iterator[None]:
    """A shell starts what runs in its background with SIGINT ignored, and that is inherited."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@contextmanager
def popen(gateway: LiveGateway, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """The command, which is gone at the end of the block: the gateway that it may wait for runs in this process."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SUPERLINK_")}
    command = [sys.executable, "-m", "superlink", "batch", *map(str, arguments), "--url", gateway.url]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=environment,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


async def run(gateway: LiveGateway, *arguments: str | Path) -> tuple[int, str, str]:
    with popen(gateway, *arguments) as process:
        said, noted = await asyncio.to_thread(process.communicate, timeout=120)
    return process.returncode, said, noted


def asked(gateway: LiveGateway) -> list[bytes]:
    """The images that the detector was asked about."""
    return [request.image.encoded for request in gateway.workers.detection.requests if request.groups]


def folder_run(images: Path, out: Path) -> tuple[str | Path, ...]:
    return "run", "--images", images, "--categories", "dog, cat", "--out", out


async def looks(gateway: LiveGateway) -> float:
    """How often somebody has looked at a batch."""
    families = text_string_to_metric_families((await gateway.http.get("/metrics")).text)
    samples = (sample for family in families for sample in family.samples)
    path = "/v1/batches/{batch_id}"
    return sum(each.value for each in samples if each.name.endswith("_total") and each.labels.get("path") == path)


def files_in(folder: Path, pattern: str) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob(pattern)}


async def test_a_run_over_a_folder_goes_on_where_it_was_killed_and_asks_nothing_twice(
    worker: None, gateway: LiveGateway, images: Path, tmp_path: Path
) -> None:
    # The batch goes on without the command, and may not be over before that is interrupted.
    may_end = asyncio.Event()

    def script(_: decoder_pb2.DecodeRequest) -> list[Step]:
        return [*([may_end] if len(asked(gateway)) > IMAGES // 2 else []), detections([detection(0)], 2)]

    gateway.workers.detection.script = script
    out = tmp_path / "out"
    for number, after in ((signal.SIGKILL, 3), (signal.SIGINT, 8)):
        before = await looks(gateway)
        with popen(gateway, *folder_run(images, out)) as process:
            # It waits for its batch.
            while len(asked(gateway)) < after or await looks(gateway) == before:
                await asyncio.sleep(0.05)
                assert process.poll() is None
            process.send_signal(number)
            said = await asyncio.to_thread(process.communicate, timeout=60)
        if number == signal.SIGINT:
            assert process.returncode == 130
            assert "goes on where it was" in said[1]
    may_end.set()
    status, said, noted = await run(gateway, *folder_run(images, out), "--coco", tmp_path / "coco.json")
    assert status == 0, noted
    assert len(asked(gateway)) == len(set(asked(gateway))) == IMAGES
    names = {"sub/" * (number % 2) + f"{number:02}.png" for number in range(IMAGES)}
    assert files_in(out, "*.png.json") == {f"{name}.json" for name in names}
    assert json.loads((out / "00.png.json").read_text())["categories"][0]["phrase"] == "dog"
    assert not files_in(out, "*.part")
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert {image["file_name"] for image in coco["images"]} == names
    assert [(each["id"], each["name"]) for each in coco["categories"]] == [(1, "dog"), (2, "cat")]
    assert [each["id"] for each in coco["annotations"]] == list(range(1, IMAGES + 1))

    # All is known; a new image is asked alone.
    Image.new("RGB", (32, 24), "blue").save(images / "new.png")
    status, said, _ = await run(gateway, *folder_run(images, out))
    assert (status, len(asked(gateway))) == (0, IMAGES + 1)
    assert [word for word in said.split() if word.isdecimal()] == ["31", "1", "30", "0"]
    status, _, noted = await run(gateway, "run", "--images", images, "--prompt", "What is here?", "--out", out)
    assert status == 2
    assert "another question" in noted


async def test_images_that_fail_are_named_and_asked_again_by_the_next_run(
    worker: None, gateway: LiveGateway, images: Path, tmp_path: Path
) -> None:
    (images / "broken.png").write_bytes(b"no image")
    (images / "cut.jpg").write_bytes(encode_picture()[:12])
    out = tmp_path / "out"
    status, said, noted = await run(gateway, *folder_run(images, out))
    assert status == 1, noted
    failed = {
        entry["image"]: entry["code"] for entry in map(json.loads, (out / "errors.jsonl").read_text().splitlines())
    }
    assert failed.keys() == {"broken.png", "cut.jpg"}
    assert "unsupported_image: 2" in said
    assert str(out / "errors.jsonl") in noted.replace("\n", "")

    (images / "broken.png").write_bytes(encode_picture())
    (images / "cut.jpg").unlink()
    status, said, _ = await run(gateway, *folder_run(images, out))
    assert status == 0
    assert not (out / "errors.jsonl").exists()
    assert len(asked(gateway)) == IMAGES + 1


async def test_a_file_of_requests_is_made_watched_read_and_exported(
    worker: None, gateway: LiveGateway, tmp_path: Path
) -> None:
    file = tmp_path / "requests.jsonl"
    image = data_url(encode_picture())
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/pose", "body": {"image": image, "categories": ["person"]}}
        for name in ("a.png", "b.png")
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{}\n")
    status, said, noted = await run(gateway, "create", file, "--endpoint", "/v1/pose", "--wait")
    batch_id = said.strip()
    assert status == 1, noted
    assert "2 of 3 lines answered, 1 failed" in noted.replace("\n", " ")

    status, said, _ = await run(gateway, "status", batch_id, "--json", "-")
    assert (status, json.loads(said)["request_counts"]["completed"]) == (1, 2)
    status, said, _ = await run(gateway, "list", "--json", "-")
    assert (status, [each["id"] for each in json.loads(said)["data"]]) == (0, [batch_id])
    status, _, _ = await run(gateway, "download", batch_id, "--out", tmp_path / "results")
    assert status == 0
    assert len((tmp_path / "results" / "output.jsonl").read_text().splitlines()) == 2
    assert "invalid_batch_line" in (tmp_path / "results" / "errors.jsonl").read_text()
    status, _, noted = await run(gateway, "export", batch_id, "--coco", tmp_path / "coco.json")
    assert status == 0
    assert "1 lines left out" in noted.replace("\n", " ")
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert {image["file_name"] for image in coco["images"]} == {"a.png", "b.png"}
    assert coco["categories"][0]["keypoints"] == ["nose", "left wrist", "right wrist"]
    assert {len(each["keypoints"]) for each in coco["annotations"]} == {9}

    status, _, noted = await run(gateway, "cancel", batch_id)
    assert status == 1, noted
    assert "batch_over" in noted
    status, _, noted = await run(gateway, "status", "batch_1")
    assert status == 1, noted
    assert "unknown_batch" in noted
    status, _, _ = await run(gateway, "create", file, "--endpoint", "/v1/files")
    assert status == 2


async def test_the_sdk_makes_waits_for_and_reads_batches(worker: None, gateway: LiveGateway, tmp_path: Path) -> None:
    image = data_url(encode_picture())
    requests: dict[str, Any] = {f"scene-{number}": {"image": image, "categories": ["dog"]} for number in range(7)}
    requests["scene-3"] = {"image": image}
    seen: list[BatchJob] = []

    def ask() -> tuple[BatchJob, list[LineResult]]:
        with Client(gateway.url) as client:
            job = client.batches.create(iter(requests.items()), endpoint="/v1/detect", metadata={"run": "7"})
            job = client.batches.wait(job, on_progress=seen.append, poll_s=0.1)
            with pytest.raises(NotFound):
                client.batches.get("batch_1")
            assert client.batches.list(limit=1).data[0].id == job.id
            return job, list(client.batches.results(job))

    job, lines = await asyncio.to_thread(ask)
    assert (job.status, job.counts.total, job.counts.failed, job.metadata) == ("completed", 7, 1, {"run": "7"})
    assert seen[-1] == job
    assert {line.custom_id for line in lines} == requests.keys()
    assert [(line.custom_id, line.error.code) for line in lines if line.error] == [("scene-3", "empty_prompt")]

    file = tmp_path / "requests.jsonl"
    body = {"image": image, "categories": ["dog"]}
    line = {"custom_id": "one", "method": "POST", "url": "/v1/detect", "body": body}
    file.write_text(json.dumps(line))
    async with AsyncClient(gateway.url) as client:
        made = await client.batches.create(file, endpoint="/v1/detect", completion_window="10m")
        over = await client.batches.wait(made.id, poll_s=0.1)
        [result] = [each async for each in client.batches.results(over)]
        assert (result.custom_id, result.error) == ("one", None)
        assert (await client.batches.list()).data[0].id == made.id
